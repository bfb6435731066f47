#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): hidden_states hold what a forward hook on a layer returned, or not, by what was called before the hook came.
# Expected: output_hidden_states gives the output of each layer, and torch says that what a forward hook returns is the module's output. So two
#           models of the same weights under the same hook give the same hidden_states.
# Seen:     they do if the hook came first. If hidden states were asked for once before it was registered, they leave the hook's edit out at its own
#           layer, while all layers after it have it: transformers keeps them by hooks of its own, which the first such call puts on for good.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 || exit 2
"$work/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.tensor([[5, 6, 7, 8, 9]])


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=64, initializer_range=0.2
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def moves(asked_before):
    """How far a hook that adds 1 to layer 1's output moves hidden_states behind layers 1 and 2."""
    steered = model()
    if asked_before:
        steered(ids, output_hidden_states=True)
    steered.model.layers[1].register_forward_hook(lambda module, arguments, output: output + 1)
    states = [net(ids, output_hidden_states=True).hidden_states for net in (steered, model())]
    return [(states[0][place] - states[1][place]).abs().max().item() for place in (2, 3)]


fresh, asked = moves(False), moves(True)
print("expected: hidden_states[2] moved by 1, whatever was called before the hook")
print(f"seen: by {fresh[0]:.2f} in a fresh model; by {asked[0]:.2f} where hidden states were asked for before ({asked[1]:.2f} at the next layer)")
sys.exit(0 if abs(fresh[0] - 1) < 1e-3 and asked[0] == 0 and asked[1] > 0.1 else 1)
PYTHON
