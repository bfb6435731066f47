"""CAADataModule: the words of one behavior in, batches out, shared over processes so that nothing is read twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from caa.data.behaviors import Behavior, Question
from caa.models.batching import even_batches, shares
from caa.runs.rows import QUESTIONS


@dataclass(frozen=True)
class Batch:
    """Pairs or questions that one process computes together; an empty one only keeps step with the other processes."""

    task: str = ""
    """ "pairs", "ab", "facts" or "open"."""
    places: tuple[int, ...] = ()
    """Where the items stand in `CAADataModule.items(task)`."""
    items: tuple[Any, ...] = ()


class CAADataModule(LightningDataModule):
    """One behavior: its pairs for `fit`, its A/B questions and facts for `test`, its open questions for `predict`.

    Batches are made first, of equal sizes, and shared out afterwards by what they cost, so what is computed together
    does not depend on the number of processes. Empty batches fill up the last rounds: every process takes equally many
    steps, and no item comes twice.
    """

    def __init__(self, behavior: Behavior, facts: Sequence[Question] = (), batch_size: int = 16) -> None:
        """`batch_size` is the most pairs or questions of a batch. ValueError if it is less than 1."""
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one pair or question, this batch_size is {batch_size}")
        self.behavior, self.facts, self.batch_size = behavior, tuple(facts), batch_size

    def items(self, task: str) -> list[Any]:
        """The pairs, or what a task asks, each question once; ValueError if the behavior has none."""
        if task == "pairs":
            return list(self.behavior.require("pairs"))
        questions = self.facts if task == "facts" else self.behavior.require(QUESTIONS[task])
        return list({question.id: question for question in questions}.values())

    @property
    def tested(self) -> list[str]:
        """The tasks of `test`: "ab", "facts" or both."""
        return [*(["ab"] if self.behavior.ab_questions or not self.facts else []), *(["facts"] if self.facts else [])]

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(["pairs"])

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.tested)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(["open"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Words are on no device."""
        return batch

    def _loader(self, tasks: Sequence[str]) -> DataLoader[Any]:
        """This process's share. The sampler is ours: Lightning's own would repeat items to fill up the last round."""
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        batches = [batch for task in tasks for batch in self._batches(task)]
        dealt = shares([_cost(batch) for batch in batches], processes)
        rounds = zip_longest(*([batches[place] for place in share] for share in dealt), fillvalue=Batch())
        turns: Any = list(chain.from_iterable(rounds))
        return DataLoader(turns, batch_size=None, sampler=DistributedSampler(turns, processes, rank, shuffle=False))

    def _batches(self, task: str) -> Iterator[Batch]:
        items = self.items(task)
        for places in even_batches([item.text for item in items], self.batch_size):
            yield Batch(task, tuple(places), tuple(items[place] for place in places))


BRANCHES = 100
"""What the answers to a question cost beside it, under all settings, in letters of its text: roughly, for only shares
of the same work are made by it."""


def _cost(batch: Batch) -> int:
    """Letters, pads too; every batch of a job is asked under the same settings, so their number makes no difference."""
    return len(batch.items) * (BRANCHES + max((len(item.text) for item in batch.items), default=0))
