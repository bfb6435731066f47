"""Pieces of work in, seconds out: contenders take turns, and what each returns is kept for comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Contender:
    """One way to do a job."""

    name: str
    run: Callable[[], Any]
    share: float = 1.0
    """The part of the job that `run` does; its time is divided by it. 1 unless the whole would take too long."""
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"{self.name!r} does a share of the job in (0, 1], this is {self.share}")


@dataclass(frozen=True)
class Timing:
    """How long the whole job takes one contender."""

    name: str
    seconds: tuple[float, ...]
    """One for each repeat, already divided by the contender's share."""
    note: str = ""
    cpu: tuple[float, ...] = ()
    """Seconds of all of this process's threads in the same repeats: what others on the machine do adds little to it."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """
        >>> Timing("x", (1.0, 2.0, 3.0, 4.0, 5.0)).quartiles
        (2.0, 4.0)
        """
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def alternate(contenders: Sequence[Contender], repeats: int) -> tuple[list[Timing], dict[str, Any]]:
    """Time every contender `repeats` times, by turns, after one run each that warms up and gives what they return.

    Each round begins with another contender, so that none always follows the same one.
    """
    results = {each.name: each.run() for each in contenders}
    seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
    cpu: dict[str, list[float]] = {each.name: [] for each in contenders}
    for round_ in range(repeats):
        turn = round_ % len(contenders)
        for each in (*contenders[turn:], *contenders[:turn]):
            start = time.process_time()
            seconds[each.name].append(once(each.run) / each.share)
            cpu[each.name].append((time.process_time() - start) / each.share)
    timings = [Timing(each.name, tuple(seconds[each.name]), each.note, tuple(cpu[each.name])) for each in contenders]
    return timings, results


def once(run: Callable[[], Any]) -> float:
    """Seconds, with whatever a GPU still has to do before and after."""
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fastest(run: Callable[[int], Any], sizes: Sequence[int]) -> int:
    """The batch size at which `run(batch_size)` takes least time; tried once each, after one run that warms up."""
    run(sizes[0])
    return min(sizes, key=lambda size: once(lambda: run(size)))
