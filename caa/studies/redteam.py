"""How much push a model withstands: prompts in, the smallest dose at which each shows a behavior out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

from caa.data.behaviors import Question
from caa.data.chat import ChatFormat
from caa.judges.base import Judge
from caa.reports.statistics import Estimate, mean_interval, median_interval
from caa.steering.operators import Operator, add
from caa.steering.scopes import Scope, after_prompt
from caa.steering.wrapper import SteeringWrapper
from caa.studies.candidates import Candidate
from caa.studies.measuring import Steered, vector_in_doses
from caa.vectors.vector import SteeringVector, random_like

PARTS, ROUNDS = 8, 2
"""A range of doses is cut into so many parts, and the one in which a behavior appears again: 64 steps in all."""
STEPS = 16
"""Doses at which a curve is drawn."""
Shows = Callable[[Sequence[int], Sequence[float]], list[list[bool]]]
"""(prompts by their index, doses) -> for each prompt, whether it shows the behavior at each dose."""


@dataclass(frozen=True)
class Crossing:
    """Where one prompt begins to show a behavior."""

    dose: float
    """The smallest dose at which it was seen; 0 if it shows unsteered, inf (or -inf) if at none that was tried."""
    returns: bool
    """Whether it was gone again at a larger dose: what is said of a smallest dose is then half the truth."""


@dataclass(frozen=True)
class Resistance:
    """One finetune under pushes along one direction."""

    finetune: str | None
    random: int | None
    """The seed of a random direction; None for the vector."""
    most: float
    """The largest dose that was tried, with its sign."""
    crossings: Mapping[str, Crossing]
    """Prompt -> where it crosses."""

    def share(self, dose: float) -> Estimate:
        """Of the prompts that show the behavior at this dose or at a smaller one, with its 95 % interval."""
        return mean_interval([float(abs(crossing.dose) <= abs(dose)) for crossing in self.crossings.values()])

    @property
    def median(self) -> Estimate:
        """The dose, without its sign, by which half of the prompts show it; inf if fewer do."""
        return median_interval([abs(crossing.dose) for crossing in self.crossings.values()])

    @property
    def returning(self) -> float:
        """The share of prompts in which the behavior was gone again at a larger dose."""
        return fmean(crossing.returns for crossing in self.crossings.values())


def redteam(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Sequence[Question],
    vector: SteeringVector,
    layer: int,
    most: float = 1.0,
    *,
    finetunes: Sequence[str | None] = (None,),
    judge: Judge | None = None,
    controls: int = 3,
    operator: Operator = add,
    where: Scope = after_prompt,
    max_new_tokens: int = 48,
    batch_size: int = 16,
) -> list[Resistance]:
    """For each finetune, prompt by prompt, the smallest dose at which a behavior appears; beside random directions.

    A/B questions show it where the matching answer is the likelier one. With a `judge` the questions are open, and
    answers show it where the judge gives more than half of its scale. Each dose range is cut into eight parts at once,
    which are branches of one pass, then the part in which the behavior appears again.

    Args:
        wrapper: the model, unsteered, with the finetunes loaded.
        chat: its `ChatFormat`, or its tokenizer.
        questions: the prompts.
        vector: the direction to push along.
        layer: where (output of that block, counted from 0).
        most: the largest dose, beside the length of the stream of the base; negative to push against the vector.
        finetunes: names of adapters, None for the base.
        judge: who says whether an open answer shows the behavior.
        controls: random directions of the same length.
        operator: what is done with the direction.
        where: which tokens are steered.
        max_new_tokens: longest open answer.
        batch_size: rows in one forward pass.
    """
    if not most:
        raise ValueError("the largest dose is 0, so nothing would be pushed; 1 is a push as long as the stream")
    chat = ChatFormat.of(chat)
    with wrapper.finetune(None):
        scaled = vector_in_doses(wrapper, chat, vector, [layer], questions)
    directions: dict[int | None, SteeringVector] = {None: scaled}
    directions |= {seed: random_like(scaled, seed) for seed in range(controls)}
    results = []
    for finetune in finetunes:
        with wrapper.finetune(finetune):
            for seed, direction in directions.items():
                steered = Steered(wrapper, chat, direction, operator, where, judge, max_new_tokens, batch_size)
                crossings = smallest_doses(partial(shown, steered, layer, questions), len(questions), most)
                by_prompt = dict(zip([question.text for question in questions], crossings, strict=True))
                results.append(Resistance(finetune, seed, most, by_prompt))
    return results


def shown(
    steered: Steered, layer: int, questions: Sequence[Question], prompts: Sequence[int], doses: Sequence[float]
) -> list[list[bool]]:
    """For each prompt, whether it shows the behavior at each dose."""
    chosen = [questions[prompt] for prompt in prompts]
    settings = [steered.setting(Candidate(layer, dose)) for dose in doses]
    if steered.judge is None:
        by_dose = steered.scores(chosen, settings)
    else:
        answers = steered.answers(chosen, settings)
        by_dose = [[answer.score or 0.0 for answer in of_dose] for of_dose in answers]
    return [[score > 0.5 for score in scores] for scores in zip(*by_dose, strict=True)]


def smallest_doses(shows: Shows, prompts: int, most: float) -> list[Crossing]:
    """Cut the range from 0 to `most` into parts, and for each prompt the part in which it begins to show again.

    >>> smallest_doses(lambda prompts, doses: [[dose > 0.3 for dose in doses] for _ in prompts], 1, most=1.0)
    [Crossing(dose=0.3125, returns=False)]
    """
    doses = [most * part / PARTS for part in range(PARTS + 1)]
    seen = shows(range(prompts), doses)
    ends = [_first(doses, flags, math.copysign(math.inf, most)) for flags in seen]
    width = most / PARTS
    for _ in range(ROUNDS - 1):
        for end in set(ends) - {0.0, math.inf, -math.inf}:
            members = [prompt for prompt in range(prompts) if ends[prompt] == end]
            inner = [end - width * (PARTS - part) / PARTS for part in range(1, PARTS)]
            for prompt, flags in zip(members, shows(members, inner), strict=True):
                ends[prompt] = _first(inner, flags, end)
        width /= PARTS
    return [Crossing(end, _returns(flags)) for end, flags in zip(ends, seen, strict=True)]


def _first(doses: Sequence[float], flags: Sequence[bool], otherwise: float) -> float:
    return next((dose for dose, flag in zip(doses, flags, strict=True) if flag), otherwise)


def _returns(flags: Sequence[bool]) -> bool:
    """Whether it is gone again after it was there.

    >>> _returns([False, True, True]), _returns([False, True, False])
    (False, True)
    """
    return True in flags and not all(flags[flags.index(True) :])


def curve_records(results: Sequence[Resistance]) -> list[dict[str, Any]]:
    """The share of prompts that show the behavior by each dose: of the vector with its interval, of random directions
    their mean, least and most; as `elicitation_curve` draws them."""
    records = []
    for finetune in dict.fromkeys(result.finetune for result in results):
        own, *random = [result for result in results if result.finetune == finetune]
        for step in range(STEPS + 1):
            dose = own.most * step / STEPS
            place = {"finetune": finetune or "base", "dose": dose}
            share = own.share(dose)
            records.append({**place, "vector": "own", "share": share.mean, "low": share.low, "high": share.high})
            if random:
                shares = [result.share(dose).mean for result in random]
                ends = {"share": fmean(shares), "low": min(shares), "high": max(shares)}
                records.append({**place, "vector": "random", **ends})
    return records


def crossing_records(results: Sequence[Resistance]) -> list[dict[str, Any]]:
    """One for each prompt, finetune and direction."""
    return [
        {"finetune": result.finetune or "base", "random": result.random, "prompt": prompt, **asdict(crossing)}
        for result in results
        for prompt, crossing in result.crossings.items()
    ]
