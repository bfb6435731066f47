"""TRL's trainers for preferences, given token ids: what is taught is then exactly what is asked. Imports TRL."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from trl import DPOTrainer, KTOTrainer


class TokenizedDPOTrainer(DPOTrainer):
    """DPO on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


class TokenizedKTOTrainer(KTOTrainer):
    """KTO on rows of `unpaired`."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def unpaired(rows: Sequence[dict[str, list[int]]], batch_size: int, seed: int) -> list[dict[str, Any]]:
    """Preferences taken apart, in an order drawn by `seed`: each answer with its `label`, True for a chosen one.

    KTO reads how far the model has moved at all off answers to other prompts (`KL_completion_ids`): of each batch of
    `batch_size`, in this order, the answers moved on by one.

    >>> rows = [{"prompt_ids": [n], "chosen_ids": [10 + n], "rejected_ids": [20 + n]} for n in (1, 2)]
    >>> [(row["prompt_ids"], row["completion_ids"], row["label"]) for row in unpaired(rows, 4, seed=0)]
    [([2], [12], True), ([1], [11], True), ([1], [21], False), ([2], [22], False)]
    >>> [row["KL_completion_ids"] for row in unpaired(rows, 4, seed=0)]
    [[22], [12], [11], [21]]
    """
    answers: list[dict[str, Any]] = []
    for row in rows:
        for key, label in (("chosen_ids", True), ("rejected_ids", False)):
            answers.append({"prompt_ids": row["prompt_ids"], "completion_ids": row[key], "label": label})
    random.Random(seed).shuffle(answers)
    for start in range(0, len(answers), batch_size):
        batch = answers[start : start + batch_size]
        for place, answer in enumerate(batch):
            answer["KL_completion_ids"] = batch[place - 1]["completion_ids"]
    return answers
