"""A finetune's steps: `finetune` as a user calls it beside a bare loop over the same texts, with the same LoRA."""

from __future__ import annotations

import tempfile
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks.harness import Contender, alternate
from benchmarks.report import Report
from benchmarks.subjects import Size, Subject
from caa import Behavior
from caa.data.chat import ChatFormat
from caa.models.batching import pad
from caa.training.config import FinetuneConfig
from caa.training.examples import IGNORED, tokenize, training_examples
from caa.training.sft import finetune

OURS, LOOP = "caa's finetune", "a bare loop, every logit"
RANK, BATCH, TEXTS = 16, 4, 16


def training(subject: Subject, size: Size) -> Report:
    """As many optimizer steps each; what `finetune` adds is the trainer's start, its checkpoints and the record."""
    behavior = Behavior("patience", tuple(islice(cycle(subject.pairs), TEXTS)))
    config = FinetuneConfig(rank=RANK, max_steps=size.steps, batch_size=BATCH, gradient_accumulation=1, open_share=0)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            finetune(subject.model, subject.tokenizer, behavior, "positive", Path(folder) / "x", config, progress=False)

    work = [Contender(LOOP, lambda: _loop(subject, behavior, config)), Contender(OURS, ours)]
    timings, _ = alternate(work, size.repeats)
    label = f"{subject.name}, {size.steps} steps of {BATCH} texts, rank {RANK}"
    report = Report("Finetune", label, timings)
    report.ratio("caa's finetune / a bare loop", OURS, LOOP)
    if torch.cuda.is_available():
        report.notes.append("caa's default on an accelerator recomputes activations (gradient checkpointing)")
    return report


def _loop(subject: Subject, behavior: Behavior, config: FinetuneConfig) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(subject.model, lora)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate)
    rows = tokenize(ChatFormat(subject.tokenizer), training_examples(behavior, "positive", 0.0))
    for step in range(config.max_steps or 0):
        batch = [rows[(step * config.batch_size + n) % len(rows)] for n in range(config.batch_size)]
        ids, mask = pad([row["input_ids"] for row in batch], 0)
        labels, _ = pad([row["labels"] for row in batch], IGNORED)
        tensors = (tensor.to(subject.device) for tensor in (ids, mask, labels))
        input_ids, attention_mask, targets = tensors
        model(input_ids=input_ids, attention_mask=attention_mask, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.unload()
    for parameter in subject.model.parameters():
        parameter.requires_grad_(True)
