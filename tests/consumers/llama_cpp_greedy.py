"""llama.cpp alone: is what somebody wrote, token by token, what it would have written greedily?

    llama_cpp_greedy.py CHECKPOINT VECTOR TEXTS OUT

CHECKPOINT is a folder of a Llama (biases in its MLPs too), VECTOR a control vector or "", TEXTS a json list of
[ids of the prompt, ids of the answer]. OUT gets, for each text, how many of the answer's tokens were the likeliest ones
in their places, out of how many: all of them are if and only if the greedy texts are equal.
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Model, load_control_vector, write_llama

folder, vector, texts_file, out = sys.argv[1:]
path = Path(out).with_suffix(".gguf")
config = write_llama(Path(folder), path)
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
