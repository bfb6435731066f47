"""Questions to padded tensors, for the loops that caa is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.subjects import Subject
from caa import ContrastPair, Question
from caa.data.chat import ChatFormat


@dataclass(frozen=True)
class Asked:
    """A question as ids: the prompt and what both answers begin with, and the two tokens to choose from."""

    ids: list[int]
    prompt_length: int
    answers: tuple[int, int]


def rendered(tokenizer: Any, questions: Sequence[Question]) -> list[Asked]:
    asked = []
    for question in questions:
        found = ChatFormat(tokenizer).encode_pair(ContrastPair(question.text, *question.answers))
        place = found.parting
        tokens = found.positive[place], found.negative[place]
        asked.append(Asked(found.positive[:place], found.prompt_length, tokens))
    return asked


@dataclass(frozen=True)
class Batch:
    """Questions of similar lengths, padded on the left, on the model's device."""

    rows: list[int]
    inputs: dict[str, Tensor]
    prompt_lengths: Tensor
    answers: Tensor


def batches(subject: Subject, questions: Sequence[Question], batch_size: int) -> list[Batch]:
    asked = rendered(subject.tokenizer, questions)
    order = sorted(range(len(asked)), key=lambda row: len(asked[row].ids))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [_batch(rows, [asked[row] for row in rows], subject.device) for rows in chunks]


def _batch(rows: list[int], asked: Sequence[Asked], device: torch.device) -> Batch:
    longest = max(len(each.ids) for each in asked)
    ids = torch.tensor([[0] * (longest - len(each.ids)) + each.ids for each in asked])
    mask = torch.tensor([[0] * (longest - len(each.ids)) + [1] * len(each.ids) for each in asked])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    named = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    prompts = torch.tensor([each.prompt_length for each in asked])
    answers = torch.tensor([each.answers for each in asked])
    return Batch(rows, {k: v.to(device) for k, v in named.items()}, prompts.to(device), answers.to(device))
