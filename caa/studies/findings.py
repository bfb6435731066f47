"""What a search has found, as data and as a file. No torch: commands read it before they load a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from caa.files import replacing
from caa.reports.statistics import Estimate
from caa.studies.candidates import Budget, Candidate, Damage, pareto_front
from caa.untrusted import as_dataclass, read_object

FORMAT = "caa.search.v1"


@dataclass(frozen=True)
class Trial:
    """What one candidate did."""

    candidate: Candidate
    effect: Estimate
    """How far the probability of the matching answer moves the way of the dose, letters weighing alike."""
    damage: Damage
    answers: int = 0
    """Open questions that it was asked; 0 for one that the screen has dropped."""
    judged: Estimate | None = None
    """How far the judge's score moves the way of the dose, in shares of its scale; None without a judge."""

    @property
    def gain(self) -> float:
        """What counts: the judge's word where there is one."""
        return (self.judged or self.effect).mean


@dataclass(frozen=True)
class Confirmation:
    """The chosen setting on questions that nothing was chosen on."""

    trial: Trial
    controls: tuple[float, ...]
    """The gains of random directions."""
    bound: float
    """What one random direction in twenty would gain, as far as these can tell."""
    side_effects: Mapping[str, Estimate] = field(default_factory=dict)
    """Other behavior, or "facts" -> how much more probable its matching answer becomes."""


@dataclass(frozen=True)
class Cost:
    """Tokens that went into the model, and answers that were written."""

    screen: int
    """Tokens of the screen, which all candidates share."""
    prompts: int
    """Tokens of the open questions, which all answers to one share."""
    texts: int
    """Tokens of the open part: prompts, answers, and measuring the answers."""
    confirmation: int
    answers: int
    """Open answers written for the choice, the unsteered ones among them."""
    of: int
    """Open answers of the full grid: all candidates, all questions."""

    @property
    def share(self) -> float:
        """Tokens of the search beside those of the full grid, if an answer there takes as many as one did here; nan
        where no answer was written.

        >>> Cost(screen=100, prompts=20, texts=220, confirmation=50, answers=10, of=40).share
        0.34782608695652173
        """
        if not self.answers:
            return math.nan
        full = self.screen + self.prompts + (self.texts - self.prompts) * self.of / self.answers
        return (self.screen + self.texts) / full


@dataclass(frozen=True)
class Search:
    """Which layer and dose do most within a damage budget, and whether that is more than chance."""

    behavior: str
    model: str
    operator: str
    where: str
    budget: Budget
    trials: tuple[Trial, ...]
    """All candidates, those asked most first."""
    chosen: Candidate | None
    """What did most in the screen, where A/B questions settle that nothing works; None if all that were asked break
    more than the budget allows."""
    multiplier: float | None
    """Of the vector as it was given, at the chosen layer: what makes the chosen dose."""
    confirmation: Confirmation | None
    cost: Cost
    loaded_as: str = ""
    """By what `load_behavior` finds the behavior; empty for its name."""
    adapter: str = ""
    """The LoRA adapter that the model wore."""

    def vector_file(self, path: str | Path) -> Path:
        """Where the command keeps the vector of the search that is kept in `path`."""
        return Path(path).parent / f"{self.behavior}.safetensors"

    @property
    def works(self) -> bool:
        """Whether the held-out effect is above 0 and above what random directions reach."""
        if self.confirmation is None:
            return False
        estimate = self.confirmation.trial.judged or self.confirmation.trial.effect
        return estimate.low > 0 and estimate.mean > self.confirmation.bound

    @property
    def spent(self) -> float:
        """The share of the damage budget that held-out prompts say is gone; nan without a choice."""
        return math.nan if self.confirmation is None else self.budget.spent(self.confirmation.trial.damage)

    @property
    def front(self) -> tuple[Trial, ...]:
        """Of the trials that were asked open questions, those that no other beats in effect and in damage."""
        asked_openly = [trial for trial in self.trials if trial.answers]
        return tuple(pareto_front(asked_openly, lambda t: t.gain, lambda t: self.budget.spent(t.damage)))

    @property
    def verdict(self) -> str:
        """One sentence: what to use, or that nothing works."""
        if self.chosen is None or self.confirmation is None:
            return f"nothing works here: no setting that was asked open questions keeps the damage budget {self.budget}"
        estimate = self.confirmation.trial.judged or self.confirmation.trial.effect
        moved = f"{estimate.mean:+.2f} ({estimate.low:+.2f} to {estimate.high:+.2f})"
        chance = f"one random direction in twenty would reach {self.confirmation.bound:+.2f}"
        if not self.works:
            return f"nothing works here: the best, {self.chosen}, moves held-out questions by {moved}, and {chance}"
        over = "" if self.spent <= 1 else ", which is MORE than allowed"
        return (
            f"{self.chosen} (multiplier {self.multiplier:+.3g}) moves held-out questions by {moved}, where {chance}; "
            f"it spends {self.spent:.0%} of the damage budget there{over}"
        )

    def records(self) -> list[dict[str, Any]]:
        """One for each candidate and one for the confirmation, as `effect_against_damage` draws them."""
        judged = any(trial.judged for trial in self.trials)
        records = [self._record(trial, self._part(trial)) for trial in self.trials if trial.answers or not judged]
        if self.confirmation is None:
            return records
        held_out = self.confirmation.trial
        estimate = held_out.judged or held_out.effect
        return [*records, {**self._record(held_out, "held out"), "low": estimate.low, "high": estimate.high}]

    def _part(self, trial: Trial) -> str:
        if trial.candidate == self.chosen:
            return "chosen"
        return "front" if trial in self.front else "asked" if trial.answers else "screened"

    def _record(self, trial: Trial, part: str) -> dict[str, Any]:
        damage, spent = asdict(trial.damage), self.budget.spent(trial.damage)
        gains = {"gain": trial.gain, "effect": trial.effect.mean, "spent": spent}
        return {"part": part, **asdict(trial.candidate), **gains, **damage, "answers": trial.answers}

    def save(self, path: str | Path) -> Path:
        """Write it as json, atomically."""
        with replacing(path) as scratch:
            content = {"format": FORMAT, "verdict": self.verdict, "works": self.works, **asdict(self)}
            scratch.write_text(json.dumps(content, indent=1), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Search:
        """Read a file that `save` wrote; ValueError for anything else."""
        try:
            content = read_object(path, "it")
            if content.pop("format", None) != FORMAT:
                raise ValueError("its format is another one")
            if (content.get("chosen") is None) != (content.get("multiplier") is None):
                raise ValueError("what was chosen and its multiplier stand together")
            said = {"verdict", "works"}  # what its numbers say again, for people
            search: Search = as_dataclass(cls, {key: content[key] for key in content.keys() - said}, "it")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no search at {path}; `caa search` writes one") from error
        except ValueError as error:
            raise ValueError(f"{path} is no {FORMAT} file, or a damaged one ({error})") from error
        return search
