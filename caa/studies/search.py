"""Layers and doses in, the setting that does most within a damage budget out, confirmed on held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from caa.data.behaviors import Behavior, Question, letter, split_by_hash, stem
from caa.data.chat import ChatFormat
from caa.data.sources import FACTS, load_facts
from caa.extraction.norms import OF_DOSE_1
from caa.judges.base import Judge
from caa.models.names import model_name
from caa.reports.statistics import Estimate, prediction_bound
from caa.steering.intervention import Setting
from caa.steering.operators import Operator, add
from caa.steering.scopes import Scope, after_prompt
from caa.steering.wrapper import SteeringWrapper
from caa.studies.candidates import DOSES, USUAL, Budget, Candidate, Damage, schedule
from caa.studies.findings import Confirmation, Cost, Search, Trial
from caa.studies.measuring import (
    Answer,
    Steered,
    TokenCount,
    balanced_gain,
    counted,
    gains_by_letter,
    judged_gain,
    text_damage,
    vector_in_doses,
)
from caa.vectors.vector import SteeringVector, random_like

KNOWLEDGE = 60
"""Two-option questions that show whether knowledge suffers."""
NEUTRAL = 24
"""Neutral prompts, half of them for the choice and half for its confirmation."""


@dataclass(frozen=True)
class Questions:
    """What is asked, for the choice or for its confirmation."""

    choices: Sequence[Question]
    open: Sequence[Question]
    neutral: Sequence[str]
    """Prompts that have nothing to do with the behavior."""


def halves(behavior: Behavior, facts: Sequence[Question]) -> tuple[Questions, Questions]:
    """What a setting is chosen on, and what it is confirmed on: no question is in both.

    A/B questions are the behavior's validation questions and its held-out ones; where it has no validation questions, a
    hash splits the others. Where the validation questions are answered in words, they are asked openly too, and all
    open questions are left for the confirmation; else a hash splits these, as it does the neutral prompts.
    """
    choices = list(behavior.validation_questions), list(behavior.require("ab_questions"))
    if not choices[0]:
        choices = split_by_hash(choices[1], 0.5, salt="search")
    openly = _asked_openly(behavior)
    neutral = split_by_hash(facts[:NEUTRAL], 0.5, salt="search")
    for name, sides in (("A/B questions", choices), ("open questions", openly), ("neutral prompts", neutral)):
        if not all(sides):
            raise ValueError(
                f"{behavior.name} has too few {name} to choose on some and to confirm on others: give more"
            )
    prompts = [[stem(question.text) for question in side] for side in neutral]  # with options, all begin with "("
    first, second = (Questions(*parts) for parts in zip(choices, openly, prompts, strict=True))
    return first, second


def _asked_openly(behavior: Behavior) -> tuple[list[Question], list[Question]]:
    """Open questions to choose on, and to confirm on."""
    openly, choices = behavior.require("open_questions"), behavior.validation_questions
    in_words = [Question(choice.text) for choice in choices if letter(choice.matching or "") is None]
    known = {question.id for question in in_words}
    held_out = [question for question in openly if question.id not in known]
    return (in_words, held_out) if in_words else split_by_hash(openly, 0.5, salt="search")


def search(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    behavior: Behavior,
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    doses: Sequence[float] = DOSES,
    *,
    budget: Budget = USUAL,
    judge: Judge | None = None,
    others: Sequence[Behavior] = (),
    facts: Sequence[Question] | None = None,
    operator: Operator = add,
    where: Scope = after_prompt,
    controls: int = 3,
    keep: float = 1 / 3,
    max_new_tokens: int = 48,
    batch_size: int = 16,
) -> Search:
    """Find the layer and the dose at which a vector does most of the behavior within a damage budget.

    1. The screen: all layers x doses on A/B questions, branches of one pass, and on neutral prompts. It ends
       here where A/B questions decide and no candidate can pass the confirmation (`settled`).
    2. Open answers, for the damage in them and for the `judge` if there is one: a few from the candidates that do most
       in the screen, until enough keep the budget; then more from fewer, by successive halving. Of about the `keep`
       share of candidates, that is; of all where too many break too much. `keep=1` asks all of them everything.
    3. The choice: most effect within the budget. The effect is the judge's where there is one, else that of A/B.
    4. Its confirmation on questions that nothing was chosen on, beside `controls` random directions, each both ways and
       at the layer that suits it best, and its side effects on `others` and on knowledge.

    Args:
        wrapper: the model, unsteered, wearing what it is to wear.
        chat: its `ChatFormat`, or its tokenizer.
        behavior: what is asked.
        vector: what is added.
        layers: those to try; all that the vector has if not given.
        doses: pushes beside the length of the residual stream, all positive, or all negative for less of the behavior.
        budget: the damage that may be done.
        judge: who scores open answers.
        others: behaviors whose A/B questions are asked under the choice.
        facts: two-option questions that have nothing to do with the behavior; the built-in ones if not given.
        operator: what is done with the vector; its multiplier must be a push (`add`, `add_keeping_norm`).
        where: which tokens are steered.
        controls: random directions.
        keep: the share of candidates that are asked open questions, unless too many of them break the budget.
        max_new_tokens: longest open answer.
        batch_size: rows in one forward pass.
    """
    chat, facts = ChatFormat.of(chat), load_facts(FACTS) if facts is None else facts
    candidates = candidates_of(vector.layers if layers is None else layers, doses)
    choosing, held_out = halves(behavior, facts)
    scaled = vector_in_doses(wrapper, chat, vector, {c.layer for c in candidates}, choosing.choices)
    steered = Steered(wrapper, chat, scaled, operator, where, judge, max_new_tokens, batch_size)
    with counted(wrapper) as screening:
        screened = screen(steered, candidates, choosing)
    random = Controls(steered, choosing.choices, controls)
    with counted(wrapper) as settling:
        confirmation = settled(screened, budget, random, held_out) if judge is None and keep < 1 else None
    trials, writing = screened, TokenCount()
    if confirmation is None:
        with counted(wrapper) as writing:
            trials = halving(steered, screened, choosing.open, budget, keep)
    chosen = confirmation.trial.candidate if confirmation else choice(trials, budget)
    with counted(wrapper) as confirming:
        if chosen and confirmation is None:
            confirmation = confirm(chosen, random, held_out, others, facts)
    prompts = sum(len(chat.encode(question.text)) - 1 for question in choosing.open)
    texts = sum(trial.answers for trial in trials)
    written = texts + len(choosing.open) if texts else 0
    confirmed = settling.tokens + confirming.tokens
    return Search(
        behavior.name,
        model_name(wrapper.model),
        operator.__name__,
        where.__name__,
        budget,
        tuple(trials),
        chosen,
        chosen.dose * scaled.source.checks[f"layer {chosen.layer}: {OF_DOSE_1}"] if chosen else None,
        confirmation,
        Cost(screening.tokens, prompts, writing.tokens, confirmed, written, len(choosing.open) * (1 + len(trials))),
    )


def candidates_of(layers: Sequence[int], doses: Sequence[float]) -> list[Candidate]:
    """All layers x doses; ValueError for none, for a dose of 0, and for doses of both signs."""
    if not layers or not doses or not (min(doses) > 0 or max(doses) < 0):
        raise ValueError(
            f"a search goes one way, over one or more layers: give positive doses for more of the behavior or negative "
            f"ones for less, not layers {list(layers)} and doses {list(doses)}"
        )
    return [Candidate(layer, float(dose)) for layer, dose in product(layers, sorted(doses, key=abs))]


def screen(steered: Steered, candidates: Sequence[Candidate], questions: Questions) -> list[Trial]:
    """Every candidate on the A/B questions, in one branched sweep, and on the neutral prompts."""
    settings = [steered.setting(candidate) for candidate in candidates]
    effects = choice_effects(steered, questions.choices, settings, candidates[0].dose)
    moved = steered.divergences(questions.neutral, settings)
    results = zip(candidates, effects, moved, strict=True)
    return [Trial(candidate, effect, Damage(divergence)) for candidate, effect, divergence in results]


class OpenPart:
    """The open answers so far, of the unsteered model (None) and of candidates."""

    def __init__(self, steered: Steered, questions: Sequence[Question]) -> None:
        self.steered, self.questions = steered, questions
        self.answers: dict[Candidate | None, list[Answer]] = {None: []}

    def ask(self, trials: Sequence[Trial], until: int) -> list[Trial]:
        """The trials, all asked as many questions before, when each has answered the first `until`."""
        lacking: list[Candidate | None] = [None] if len(self.answers[None]) < until else []
        lacking += [trial.candidate for trial in trials]
        settings = [() if candidate is None else self.steered.setting(candidate) for candidate in lacking]
        before = len(self.answers.setdefault(lacking[-1], []))
        for candidate, new in zip(lacking, self.steered.answers(self.questions[before:until], settings), strict=True):
            self.answers.setdefault(candidate, []).extend(new)
        unsteered, judged = self.answers[None][:until], self.steered.judge is not None
        return [answered(trial, self.answers[trial.candidate], unsteered, judged) for trial in trials]


def halving(
    steered: Steered, screened: Sequence[Trial], questions: Sequence[Question], budget: Budget, keep: float
) -> list[Trial]:
    """Ask open questions of the trials that do most in the screen, until enough of them keep the budget, and more
    questions of fewer and fewer of those; all trials, those asked most first."""
    (count, until), *later = schedule(len(screened), len(questions), keep)
    wanted, count = (later[0][0], later[0][0]) if later else (1, count)
    part, trials = OpenPart(steered, questions), {trial.candidate: trial for trial in screened}
    waiting = sorted(screened, key=lambda trial: rank(trial, budget), reverse=True)
    alive: list[Trial] = []
    while waiting and sum(budget.spent(trial.damage) <= 1 for trial in alive) < wanted:
        alive += part.ask(waiting[:count], until)
        waiting = waiting[count:]
    trials |= {trial.candidate: trial for trial in alive}
    for count, until in later:
        alive = sorted(alive, key=lambda trial: rank(trial, budget), reverse=True)[:count]
        alive = part.ask(alive, until)
        trials |= {trial.candidate: trial for trial in alive}
    return sorted(trials.values(), key=lambda trial: (-trial.answers, trial.candidate))


def answered(trial: Trial, steered: Sequence[Answer], unsteered: Sequence[Answer], judged: bool) -> Trial:
    """The trial with what its open answers say."""
    damage = text_damage(trial.damage.divergence, steered, unsteered)
    judgment = judged_gain(steered, unsteered, trial.candidate.dose) if judged else None
    return Trial(trial.candidate, trial.effect, damage, len(steered), judgment)


def rank(trial: Trial, budget: Budget) -> tuple[bool, float]:
    """What is better sorts higher: first all that keep the budget, by effect; then the others, by what they spend."""
    spent = budget.spent(trial.damage)
    return (True, trial.gain) if spent <= 1 else (False, -spent)


def choice(trials: Sequence[Trial], budget: Budget) -> Candidate | None:
    """The one with most effect within the budget, of those that were asked all; None if all break too much."""
    most = max(trial.answers for trial in trials)
    kept = [trial for trial in trials if trial.answers == most and budget.spent(trial.damage) <= 1]
    return max(kept, key=lambda trial: trial.gain).candidate if kept else None


class Controls:
    """Random directions, each both ways and each at the layer that suits it best.

    The vector's layer was chosen too: a control that had no choice would be beaten by chance.
    """

    def __init__(self, steered: Steered, questions: Sequence[Question], count: int) -> None:
        self.steered, self.questions = steered, questions
        random = [random_like(steered.vector, seed) for seed in range(count)]
        self.pushes = [push for vector in random for push in (vector, -vector)]
        self._settings: dict[float, list[Setting]] = {}

    def at(self, dose: float) -> list[Setting]:
        """Each push where it does most to the A/B questions that layers are chosen on."""
        if dose not in self._settings:
            self._settings[dose] = self._chosen(dose)
        return self._settings[dose]

    def _chosen(self, dose: float) -> list[Setting]:
        layers = self.steered.vector.layers
        places = product(self.pushes, layers)
        settings = [self.steered.setting(Candidate(layer, dose), push) for push, layer in places]
        unsteered, *scores = self.steered.scores(self.questions, [(), *settings])
        groups = [gains_by_letter(self.questions, score, unsteered, dose) for score in scores]
        gains = [fmean(map(fmean, by_letter)) for by_letter in groups]
        by_push = (range(first, first + len(layers)) for first in range(0, len(settings), len(layers)))
        return [settings[max(places, key=gains.__getitem__)] for places in by_push]


def settled(screened: Sequence[Trial], budget: Budget, controls: Controls, held_out: Questions) -> Confirmation | None:
    """The confirmation of what did most in the screen, if A/B questions say that no candidate would pass its own.

    Every candidate that the screen leaves in the budget is asked the held-out A/B questions, and random directions are
    at each dose at which an interval is above 0. Nothing is chosen by that: whatever open answers chose, the verdict
    would be the same. None where some candidate would pass, and where all break too much.
    """
    steered, kept = controls.steered, [trial for trial in screened if budget.spent(trial.damage) <= 1]
    if not kept:
        return None
    candidates = [trial.candidate for trial in sorted(kept, key=lambda trial: trial.gain, reverse=True)]
    best, settings = candidates[0], list(map(steered.setting, candidates))
    effects = choice_effects(steered, held_out.choices, settings, best.dose)
    gains: dict[float, tuple[float, ...]] = {}
    for candidate, effect in zip(candidates, effects, strict=True):
        dose = candidate.dose
        if dose not in gains and (candidate == best or effect.low > 0):
            beside = choice_effects(steered, held_out.choices, controls.at(dose), dose)
            gains[dose] = tuple(control.mean for control in beside)
        if effect.low > 0 and effect.mean > prediction_bound(gains[dose]):
            return None
    [divergence] = steered.divergences(held_out.neutral, settings[:1])
    trial = Trial(best, effects[0], Damage(divergence))
    return Confirmation(trial, gains[best.dose], prediction_bound(gains[best.dose]))


def choice_effects(
    steered: Steered, questions: Sequence[Question], settings: Sequence[Setting], dose: float
) -> list[Estimate]:
    """How far each setting moves the A/B questions the way of the dose."""
    unsteered, *scores = steered.scores(questions, [(), *settings])
    return [balanced_gain(questions, score, unsteered, dose) for score in scores]


def confirm(
    chosen: Candidate, controls: Controls, held_out: Questions, others: Sequence[Behavior], facts: Sequence[Question]
) -> Confirmation:
    """The choice on held-out questions, beside random directions that were searched for the best layer likewise."""
    steered = controls.steered
    own, random, judged = steered.setting(chosen), controls.at(chosen.dose), steered.judge is not None
    effects = choice_effects(steered, held_out.choices, [own, *random], chosen.dose)
    [divergence] = steered.divergences(held_out.neutral, [own])
    plain, *written = steered.answers(held_out.open, [(), own, *(random if judged else [])])
    trial = answered(Trial(chosen, effects[0], Damage(divergence)), written[0], plain, judged)
    gains = [effect.mean for effect in effects[1:]]
    if judged:
        gains = [judged_gain(answers, plain, chosen.dose).mean for answers in written[1:]]
    side_effects = {other.name: side_effect(steered, own, other.require("ab_questions")) for other in others}
    side_effects[FACTS] = side_effect(steered, own, facts[:KNOWLEDGE])
    return Confirmation(trial, tuple(gains), prediction_bound(gains), side_effects)


def side_effect(steered: Steered, setting: Setting, questions: Sequence[Question]) -> Estimate:
    """How much more probable the matching answers of other questions become."""
    [effect] = choice_effects(steered, questions, [setting], 1.0)
    return effect
