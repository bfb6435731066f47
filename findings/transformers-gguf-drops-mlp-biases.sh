#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0, gguf 0.19.0): a GGUF file of a Llama with biases in its MLPs loads without them, and nothing says so.
# Expected: from_pretrained(gguf_file=) gives the model of the file, and output_loading_info names each tensor that has no place in it. Biases of the
#           feed-forward layers (blk.N.ffn_down.bias) are a part of the llama architecture in llama.cpp, and of transformers' own Llama (mlp_bias=True).
# Seen:     the configuration says mlp_bias=False, the biases are left out, and unexpected_keys is empty.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 || exit 2
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
import numpy as np
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

work, heads, layers, ids = sys.argv[1], 4, 2, torch.tensor([[5, 6, 7, 8, 9]])
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=64, initializer_range=0.2,
        mlp_bias=True,
    )
    return LlamaForCausalLM(config).eval()  # its biases are 0


def write(path, bias):
    """The model above, with `bias` in each coordinate of each ffn_down.bias."""
    weights, file = llama().state_dict(), GGUFWriter(path, "llama")
    file.add_name("tiny")
    file.add_vocab_size(64)
    file.add_context_length(64)
    file.add_block_count(layers)
    file.add_embedding_length(32)
    file.add_feed_forward_length(64)
    file.add_head_count(heads)
    file.add_head_count_kv(heads)
    file.add_rope_dimension_count(32 // heads)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_tokenizer_model("llama")
    file.add_token_list([f"<{token}>" for token in range(64)])
    file.add_token_scores([0.0] * 64)
    file.add_token_types([1] * 64)
    for name, key in (("token_embd", "model.embed_tokens"), ("output", "lm_head"), ("output_norm", "model.norm")):
        file.add_tensor(f"{name}.weight", weights[f"{key}.weight"].numpy())
    for layer in range(layers):
        for name, key in NAMES.items():
            weight = weights[f"model.layers.{layer}.{key}.weight"].numpy()
            if name in ("attn_q", "attn_k"):  # llama.cpp keeps the two halves of a head's rotation by turns
                weight = np.ascontiguousarray(weight.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(weight.shape))
            file.add_tensor(f"blk.{layer}.{name}.weight", weight)
        for name, size, value in (("ffn_down", 32, bias), ("ffn_up", 64, 0), ("ffn_gate", 64, 0)):
            file.add_tensor(f"blk.{layer}.{name}.bias", np.full(size, value, np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


with torch.no_grad():
    plain, biased = llama(), llama()
    for block in biased.model.layers:
        block.mlp.down_proj.bias.fill_(0.5)
    write(f"{work}/biased.gguf", 0.5)
    loaded, info = AutoModelForCausalLM.from_pretrained(work, gguf_file="biased.gguf", output_loading_info=True)
    logits = loaded.eval()(ids).logits
    without, expected = (net(ids).logits for net in (plain, biased))
off, lost = ((logits - other).abs().max().item() for other in (expected, without))
print("expected: the logits of the model with its biases, or their names among the unexpected keys")
print(f"seen: off by {off:.2f}, and by {lost:.2g} from the model without them; unexpected_keys {sorted(info['unexpected_keys'])}, "
      f"mlp_bias {loaded.config.mlp_bias}")
sys.exit(0 if off > 0.1 and lost < 1e-4 and not info["unexpected_keys"] else 1)
PYTHON
