#!/usr/bin/env bash
# trl 1.16.0 with peft 0.21.2 (torch 2.13.0, transformers 5.23.0): DPO of a PiSSA adapter is measured against a model that is neither base nor policy.
# Expected: DPO starts from its reference. With peft_config and no ref_model, TRL asks the model with its adapter off for the reference (as the
#           source of DPOTrainer says), which is the initial model; PiSSA changes nothing before the first step either. So the first loss is
#           log 2 = 0.693 and all rewards are 0, as for a LoRA.
# Seen:     PiSSA moves its part of each weight out of the base into the adapter, and switching the adapter off leaves the rest alone. So the
#           reference is the base without its largest singular directions, the first loss is not log 2 and the first rewards are not 0; no warning.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 || exit 2
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
from math import log

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = {word: number for number, word in enumerate(["<pad>", "<end>", "is", "it", "late", "yes", "no", "maybe", "early"])}
plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<end>")
rows = [{"prompt": "is it late", "chosen": " yes", "rejected": " no"}, {"prompt": "is it early", "chosen": " maybe", "rejected": " yes"}]
first = {}
for initial in (True, "pissa"):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(words), initializer_range=0.2,
        pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )
    settings = DPOConfig(
        sys.argv[1], max_steps=1, logging_steps=1, per_device_train_batch_size=2, learning_rate=1e-4, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=initial, task_type="CAUSAL_LM")
    model = LlamaForCausalLM(config)
    trainer = DPOTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter)
    trainer.train()
    first[initial] = trainer.state.log_history[0]
loss = {name: float(logged["loss"]) for name, logged in first.items()}
reward = {name: float(logged["rewards/chosen"]) for name, logged in first.items()}
print(f"expected: a first loss of log 2 = {log(2):.4f} and rewards of 0, whichever way the adapter is initialized")
print(f"seen: LoRA {loss[True]:.4f}, reward {reward[True]:.2g}; PiSSA {loss['pissa']:.4f}, reward {reward['pissa']:.2g}")
sys.exit(0 if abs(loss[True] - log(2)) < 1e-4 and abs(loss["pissa"] - log(2)) > 1e-3 and abs(reward["pissa"]) > 1e-3 else 1)
PYTHON
