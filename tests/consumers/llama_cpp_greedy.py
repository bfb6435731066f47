"""llama.cpp alone: is what somebody wrote, token by token, what it would have written greedily?

    llama_cpp_greedy.py CHECKPOINT VECTOR TEXTS OUT

CHECKPOINT is a folder of a Llama (biases in its MLPs too), VECTOR a control vector or "", TEXTS a json list of
[ids of the prompt, ids of the answer]. OUT gets, for each text, how many of the answer's tokens were the likeliest ones
in their places, out of how many: all of them are if and only if the greedy texts are equal.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Model, load_control_vector
from safetensors.numpy import load_file

folder, vector, texts_file, out = sys.argv[1:]
config = json.loads((Path(folder) / "config.json").read_text())


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Query and key rows in the order of llama.cpp's rotary embedding."""
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
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for file in sorted(Path(folder).glob("*.safetensors")):
        for name, weight in load_file(file).items():
            assert weight.dtype == np.float32, "equal texts are promised in F32 alone"
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight = rotated(weight, heads if "q_proj" in name else kv)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


path = Path(out).with_suffix(".gguf")
write_model(path)
model = Model(str(path), config["vocab_size"])
if vector:
    model.steer(
        load_control_vector(vector, config["hidden_size"]), config["hidden_size"], 1, config["num_hidden_layers"]
    )
likeliest = []
for prompt, answer in json.loads(Path(texts_file).read_text()):
    choices = model.logits([*prompt, *answer])[len(prompt) - 1 : -1].argmax(-1)
    likeliest.append([int((choices == np.array(answer)).sum()), len(answer)])
Path(out).write_text(json.dumps(likeliest))
path.unlink()
assert "caa" not in sys.modules
