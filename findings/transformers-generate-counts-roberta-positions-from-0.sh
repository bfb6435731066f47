#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): generate writes other tokens than RoBERTa's own forward pass says, for its positions count from 0.
# Expected: the logits of generate's first step are those of the forward pass on the same ids, as for every other decoder. The documentation of
#           generate calls greedy search the choice of the most likely next token, and RoBERTa's embeddings say in their docstring that
#           "Position numbers begin at padding_idx+1", which is what forward does where no position_ids are given.
# Seen:     generate makes position_ids itself, from 0 on, and hands them to forward; so the first token stands where no token ever stood
#           in training, and the second in the pad token's place. With position_ids from padding_idx+1 given to generate, both agree.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 || exit 2
"$work/venv/bin/python" - <<'PYTHON'
import sys
import torch
from transformers import RobertaConfig, RobertaForCausalLM

torch.manual_seed(0)
config = RobertaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, max_position_embeddings=40,
    is_decoder=True, pad_token_id=1, initializer_range=0.2,
)
model = RobertaForCausalLM(config).eval()
ids = torch.tensor([[10, 21, 32, 43]])
options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
options["attention_mask"] = torch.ones_like(ids)
with torch.no_grad():
    forward = model(ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
    alone = model.generate(ids, **options).logits[0][0]
    told = model.generate(ids, position_ids=torch.arange(4)[None] + config.pad_token_id + 1, **options).logits[0][0]
off, told_off = ((logits - forward).abs().max().item() for logits in (alone, told))
print("expected: generate's first logits are the forward pass's last")
print(f"seen: off by {off:.2f} where the logits' standard deviation is {forward.std():.2f}; with position_ids given, by {told_off:.1g}")
sys.exit(0 if off > 0.01 and told_off < 1e-4 else 1)
PYTHON
