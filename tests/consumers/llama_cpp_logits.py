"""llama.cpp alone: a Llama written as GGUF, a control vector loaded by its own loader, the logits of some ids."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from llama_cpp import Model, load_control_vector
from safetensors.torch import load_file

base, lora, vector, ids_file, out = sys.argv[1:]
assert not lora, "llama.cpp reads a LoRA after its own converter only"
config = json.loads((Path(base) / "config.json").read_text())
weights = {name: tensor.float().numpy() for name, tensor in load_file(Path(base) / "model.safetensors").items()}


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Llama's query and key rows in the order of llama.cpp's rotary embedding (convert_hf_to_gguf.py, permute)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_model(path: Path) -> None:
    writer, heads, kv = gguf.GGUFWriter(path, "llama"), config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = rotated(weight, heads if "q_proj" in name else kv)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


pushes = load_control_vector(vector, config["hidden_size"])
write_model(Path(out).with_suffix(".gguf"))
model = Model(str(Path(out).with_suffix(".gguf")), config["vocab_size"])
model.steer(pushes, config["hidden_size"], 1, config["num_hidden_layers"])
(ids,) = torch.load(ids_file).tolist()
torch.save(torch.from_numpy(model.logits(ids))[None], out)
assert "caa" not in sys.modules
