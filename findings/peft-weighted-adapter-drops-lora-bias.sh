#!/usr/bin/env bash
# peft 0.21.2 (torch 2.13.0, transformers 5.23.0): add_weighted_adapter loses the biases of lora_bias=True, without a word.
# Expected: a combination of one adapter with weight 1 is that adapter. PEFT's guide to LoRA says that add_weighted_adapter merges adapters
#           by the given weights, and LoraConfig that lora_bias adds a bias to lora_B; nothing says that the two do not go together.
# Seen:     the new adapter has lora_bias=True in its config and zeros in its biases. An adapter that is all bias does nothing any more.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 || exit 2
"$work/venv/bin/python" - <<'PYTHON'
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=64
)
lora = LoraConfig(r=1, target_modules=["down_proj"], lora_bias=True, task_type="CAUSAL_LM")
model = get_peft_model(LlamaForCausalLM(config).eval(), lora, adapter_name="bias")
for name, parameter in model.named_parameters():
    if name.endswith("lora_B.bias.bias"):
        parameter.data.normal_()
ids = torch.tensor([[1, 2, 3, 4]])
with torch.no_grad(), model.disable_adapter():
    base = model(ids).logits
model.add_weighted_adapter(["bias"], [1.0], adapter_name="combined", combination_type="linear")
effects = {}
for name in ("bias", "combined"):
    model.set_adapter(name)
    with torch.no_grad():
        effects[name] = (model(ids).logits - base).abs().max().item()
print("expected: the combination of one adapter with weight 1 moves the logits as far as the adapter does")
print(f"seen: the adapter by {effects['bias']:.4f}, the combination by {effects['combined']:.4f}")
print("its config says lora_bias =", model.peft_config["combined"].lora_bias)
sys.exit(0 if effects["bias"] > 0.01 and effects["combined"] == 0 else 1)
PYTHON
