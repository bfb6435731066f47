"""llama.cpp alone: a Llama written as GGUF, a control vector loaded by its own loader, the logits of some ids."""

import sys
from pathlib import Path

import torch
from llama_cpp import Model, load_control_vector, write_llama

base, lora, vector, ids_file, out = sys.argv[1:]
assert not lora, "llama.cpp reads a LoRA after its own converter only"
path = Path(out).with_suffix(".gguf")
config = write_llama(Path(base), path)
model = Model(str(path), config["vocab_size"])
model.steer(load_control_vector(vector, config["hidden_size"]), config["hidden_size"], 1, config["num_hidden_layers"])
(ids,) = torch.load(ids_file).tolist()
torch.save(torch.from_numpy(model.logits(ids))[None], out)
assert "caa" not in sys.modules
