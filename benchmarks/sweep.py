"""A/B questions under all layers x 3 multipliers: all settings at once beside one unsteered scoring and other loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import loops
from benchmarks.harness import Contender, alternate, fastest
from benchmarks.machine import installed
from benchmarks.ours import all_at_once
from benchmarks.report import Claim, Report
from benchmarks.subjects import Size, Subject
from caa.steering.intervention import Setting

MULTIPLIERS = (-1.0, 1.0, 2.0)
"""None of them 0: the unsteered model would be asked once for all layers, which is no work."""

MANY = 48
GOALS, GOALS_OF_MANY = (3.0, 15.0, None), (1.5, 30.0, 1.9)
"""The most unsteered scorings that all settings cost, how much longer the usual loop takes at least, and one with a
prompt cache; the second from `MANY` settings on."""

UNSTEERED, OURS = "one unsteered scoring", "caa, all settings at once"
CELLS, PEER, REFERENCE = "caa's wrapper, cell by cell", "steering-vectors, cell by cell", "as published, one by one"
CACHED = "steering-vectors, one prompt cache"


def sweep(subject: Subject, size: Size) -> Report:
    """The loops are timed on a third of the settings, one for each layer: a setting costs them the same whichever."""
    questions, settings = subject.questions, subject.settings(MULTIPLIERS)
    some = [cell for cell in range(len(settings)) if cell // 3 % 3 == cell % 3]
    chosen, few = [settings[cell] for cell in some], questions[: size.reference_questions]
    share, note = len(some) / len(settings), f"{len(some)} of {len(settings)} settings timed, scaled"

    def at_its_best(name: str, loop: Callable[..., Tensor], asked: Sequence[Setting], share: float, note: str) -> None:
        """A contender at the batch size at which it is fastest, tried on three settings."""
        batch = fastest(partial(loop, subject, questions, asked[:3]), size.batch_sizes)
        run = partial(loop, subject, questions, asked, batch)
        work.append(Contender(name, run, share, f"{note}; batches of {batch}"))

    batch = fastest(partial(loops.unsteered, subject, questions), size.batch_sizes)
    work = [
        Contender(UNSTEERED, lambda: loops.unsteered(subject, questions, batch), note=f"batches of {batch}"),
        Contender(OURS, lambda: all_at_once(subject, questions, settings), note="as a user calls it"),
    ]
    at_its_best(CELLS, loops.cell_by_cell, chosen, share, note)
    if peer := installed("steering-vectors") != "not installed":
        at_its_best(PEER, loops.by_steering_vectors, chosen, share, f"{note}; one slice for all rows")
        at_its_best(CACHED, loops.by_steering_vectors_with_cache, settings, 1.0, "a dozen lines of the user's own")
    fewer = f"{note}, and {len(few)} of {len(questions)} questions"
    run = partial(loops.reference, subject, few, chosen)
    work.append(Contender(REFERENCE, run, share * len(few) / len(questions), fewer))
    timings, found = alternate(work, size.repeats)
    report = Report("A/B sweep", f"{subject.name}, {len(questions)} questions x {len(settings)} settings", timings)
    plain, loop, cached = GOALS_OF_MANY if len(settings) >= MANY else GOALS
    report.ratio("all settings at once / one unsteered scoring", OURS, UNSTEERED, plain)
    report.ratio("cell by cell / all at once", CELLS, OURS, loop, at_least=True)
    report.ratio("steering-vectors / all at once", PEER, OURS, loop, at_least=True)
    report.ratio("steering-vectors with a prompt cache / all at once", CACHED, OURS, cached, at_least=True)
    report.ratio("as published / all at once", REFERENCE, OURS)
    limit = 1e-5 if subject.model.dtype == torch.float32 else None
    report.claims += compared(found, loops.reference(subject, few, settings), some, limit)
    if not peer:
        report.notes.append("steering-vectors is not installed here, so it was left out")
    return report


def compared(found: dict[str, Tensor], slow: Tensor, some: list[int], limit: float | None) -> list[Claim]:
    """Probabilities against the slow definition under every setting, and against the loops where these were run."""
    ours, loop, plain = found[OURS][: len(slow)], found[CELLS][: len(slow)], found[UNSTEERED][: len(slow)]
    claims = [
        Claim("largest difference of a probability to the slow definition", _apart(ours, slow), limit),
        Claim("largest difference to the loop, cell by cell", _apart(found[OURS][:, some], found[CELLS]), limit),
        Claim("largest of the probabilities that were compared", slow.max().item()),
        Claim("largest difference of a score, p / (p + q), to the slow definition", _apart(score(ours), score(slow))),
        Claim("the same of the loop, cell by cell", _apart(score(loop), score(slow[:, some]))),
        Claim("largest effect on a score (else all would agree)", _apart(score(slow), score(plain)), 0.01, True),
    ]
    if PEER in found:
        claims += [
            Claim("steering-vectors: its largest difference", _apart(found[PEER][: len(slow)], slow[:, some])),
            Claim("the same with a prompt cache", _apart(found[CACHED][: len(slow)], slow)),
        ]
    return claims


def score(pair: Tensor) -> Tensor:
    """What a table shows: the matching answer's share of both probabilities, [question, setting]."""
    return pair[..., 0] / pair.sum(-1)


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()
