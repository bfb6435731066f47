"""Cost against size: settings, questions, prompt length and width doubled, beside the least that must be computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from benchmarks.batches import rendered
from benchmarks.harness import Contender, Timing, alternate
from benchmarks.loops import unsteered
from benchmarks.machine import speed
from benchmarks.ours import all_at_once
from benchmarks.report import Report
from benchmarks.subjects import Size, Subject, random_llama, subject
from caa import load_model
from caa.steering.intervention import Setting

MULTIPLIERS = (-1.0, 1.0, 2.0)
CELLS, QUESTIONS, TOKENS, WIDTH = AXES = ("layers x multipliers", "questions", "tokens of a prompt", "width")


@dataclass(frozen=True)
class Least:
    """FLOPs and bytes that no implementation can do without."""

    weights: float
    """FLOPs: each question's tokens once through every block's weights."""
    attention: float
    """FLOPs: the same tokens looking at each other."""
    settings: float
    """FLOPs: each setting's own tokens (the prompt's last, and what the answers begin with) in the layers above the
    steered one, and the head once a question and setting."""
    bytes: float
    """Every weight read once, however much is asked."""

    @property
    def flops(self) -> float:
        return self.weights + self.attention + self.settings


@dataclass(frozen=True)
class Point:
    """One size along one axis."""

    axis: str
    size: int
    ours: Timing
    unsteered: Timing
    least: Least
    floor: float
    """Seconds that the FLOPs or the bytes take at the machine's own speed, whichever is more."""


def scaling(size: Size, dtype: torch.dtype, device: torch.device) -> tuple[Report, list[Point]]:
    """Each axis doubled `size.doublings` times while the others stay."""
    pace = speed(dtype, device, size.matrix)
    points = [point for axis in AXES for point in _along(axis, size, dtype, device, pace)]
    report = Report("Cost against size", f"random Llama of {size.layers} layers, {str(dtype).removeprefix('torch.')}")
    report.timings = [point.ours for point in points]
    report.notes = [sentence(points), f"this machine: {pace[0] / 1e9:.0f} GFLOP/s, reads {pace[1] / 1e9:.0f} GB/s"]
    return report, points


def _along(axis: str, size: Size, dtype: torch.dtype, device: torch.device, pace: Sequence[float]) -> Iterator[Point]:
    _, tokenizer = load_model("tiny-chat", device="cpu")
    for doubling in range(size.doublings + 1):
        number, here, count = _scaled(axis, size, 2**doubling)
        model = random_llama(here.width, here.layers, len(tokenizer), dtype=dtype, device=str(device))
        one = subject(axis, model, tokenizer, here)
        settings = _spread(one, count)
        least = least_work(one, settings)
        floor = max(least.flops / pace[0], least.bytes / pace[1])
        yield Point(axis, number, *_timed(axis, number, one, settings, floor, size.repeats), least, floor)


def _scaled(axis: str, size: Size, factor: int) -> tuple[int, Size, int]:
    """(number on the axis, sizes, settings): the axis in question from its smallest, the others where they are."""
    few, count = replace(size, questions=2, pairs=2), 3 * size.layers
    if axis == CELLS:
        number = max(1, count // 2**size.doublings) * factor
        return number, few, number
    if axis == QUESTIONS:
        return factor, replace(few, questions=factor), count
    if axis == WIDTH:
        number = max(16, size.width // 2 ** (size.doublings - 1)) * factor
        return number, replace(few, width=number), count
    return size.tokens // 2 * factor, replace(few, tokens=size.tokens // 2 * factor), count


def _spread(one: Subject, count: int) -> list[Setting]:
    """So many of the model's layers x multipliers, spread evenly over the layers."""
    every = one.settings(MULTIPLIERS)
    return [every[(2 * i + 1) * len(every) // (2 * count)] for i in range(count)]


def _timed(
    axis: str, number: int, one: Subject, settings: list[Setting], floor: float, repeats: int
) -> tuple[Timing, Timing]:
    work = [
        Contender(f"{axis}: {number}", lambda: all_at_once(one, one.questions, settings), note=f"floor {floor:.3g} s"),
        Contender("one unsteered scoring", lambda: unsteered(one, one.questions, 16)),
    ]
    (ours, plain), _ = alternate(work, repeats)
    return ours, plain


def least_work(one: Subject, settings: Sequence[Setting]) -> Least:
    """Two FLOPs for each weight that a token meets, four times the width for each token that it looks at."""
    blocks = one.model.get_decoder().layers
    depth, inside = len(blocks), sum(p.numel() for p in blocks[0].parameters())
    width, vocab = one.model.config.hidden_size, one.model.config.vocab_size
    above = sum(depth - 1 - setting[0].layer for setting in settings)
    weights = attention = own = 0.0
    for asked in rendered(one.tokenizer, one.questions):
        length, tail = len(asked.ids), len(asked.ids) - asked.prompt_length + 1
        weights += depth * 2 * inside * length
        attention += depth * 2 * width * length**2  # causal: half of length x length
        own += above * tail * (2 * inside + 4 * width * length) + len(settings) * 2 * width * vocab
    return Least(weights, attention, own, float(sum(p.nbytes for p in one.model.parameters())))


def sentence(points: Sequence[Point]) -> str:
    """What a doubling costs at both ends of each axis, where that changes most, and what part of the work grew."""
    told = []
    for axis in AXES:
        curve = [point for point in points if point.axis == axis]
        growth = [b.ours.median / a.ours.median for a, b in pairwise(curve)]
        rise = [b - a for a, b in pairwise(growth)]
        bend = f", bending at {curve[rise.index(max(rise)) + 1].size}" if rise else ""
        small, large = curve[0], curve[-1]
        told.append(f"{axis} x{growth[0]:.2f} from {small.size} and x{growth[-1]:.2f} to {large.size}{bend}")
    reasons = [
        _grown(points, CELLS, "settings", "the settings' own tokens"),
        _grown(points, TOKENS, "attention", "attention"),
    ]
    return f"A doubling costs: {'; '.join(told)}; {' and '.join(reasons)}."


def _grown(points: Sequence[Point], axis: str, part: str, name: str) -> str:
    curve = [point.least for point in points if point.axis == axis]
    first, last = (getattr(least, part) / least.flops for least in (curve[0], curve[-1]))
    return f"the share of {name} in the FLOPs goes from {first:.0%} to {last:.0%} along {axis}"
