"""llama.cpp alone: a GGUF file and some texts in, the ids and the logits of each out."""

import sys

import torch
from gguf import GGUFReader
from llama_cpp import Model

path, texts_file, out = sys.argv[1:]
sizes = {tensor.name: tensor.shape for tensor in GGUFReader(path).tensors}
model = Model(path, int(sizes["token_embd.weight"][1]))
read = []
for text in torch.load(texts_file):
    ids = model.tokens(text)
    read.append((ids, torch.from_numpy(model.logits(ids))))
torch.save(read, out)
assert "caa" not in sys.modules
