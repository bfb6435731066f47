#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): a 4-D attention mask of booleans is right with sdpa and silently no mask with eager attention.
# Expected: one mask means the same with every attention kernel, or is refused. Masks of four dimensions are documented as taken as they are; where
#           transformers makes one of booleans itself, and in torch's scaled_dot_product_attention, True says that a token is seen.
# Seen:     eager attention adds the mask to the scores, so True is a score of 1 more and False of 0: every token sees those after it, with
#           no error and no warning. The same mask as floats (0 and the dtype's minimum) is right with both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 || exit 2
"$work/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.tensor([[5, 6, 7, 8, 9]])
seen = torch.ones(5, 5).tril().bool()[None, None]  # the causal mask itself, so that nothing changes
floats = torch.zeros(1, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min)
off = {}
for kernel in ("sdpa", "eager"):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, initializer_range=0.2,
        attn_implementation=kernel,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        plain = model(ids).logits
        for kind, mask in (("booleans", seen), ("floats", floats)):
            off[kernel, kind] = (model(ids, attention_mask=mask).logits - plain).abs().max().item()
print("expected: with the causal mask given as booleans, the logits of no mask given, with both kernels")
print("seen:", "; ".join(f"{kernel}, {kind}: off by {value:.2g}" for (kernel, kind), value in off.items()))
wrong = off.pop(("eager", "booleans"))
sys.exit(0 if wrong > 0.1 and max(off.values()) < 1e-4 else 1)
PYTHON
