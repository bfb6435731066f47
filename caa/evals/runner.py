"""One run of a plan: the rows that are there and the questions left in; their answers, as rows on the disk, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from caa.data.behaviors import Question
from caa.evals.plan import Case, GridPlan, Round
from caa.evals.tasks import ChoiceScore, answer_open, score_choices
from caa.judges.base import Judge, Verdict, judge_all
from caa.models.batching import by_length
from caa.runs.rows import Cell, Row, append_rows, choice_evidence, read_rows
from caa.steering.intervention import Setting
from caa.steering.wrapper import SteeringWrapper

MOST_SHOWN = 4
"""Scores behind a progress bar."""
Answer = tuple[float | None, dict[str, Any]]
"""Score and evidence, as a row keeps them."""


@dataclass
class MeanScore:
    """Of the scores so far, without those that no judge could give; nan before the first.

    >>> mean = MeanScore()
    >>> for score in (10.0, None, 5.0):
    ...     mean.add(score)
    >>> mean.value
    7.5
    """

    total: float = 0.0
    count: int = 0

    def add(self, score: float | None) -> None:
        if score is not None:
            self.total += score
            self.count += 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


class Runner:
    """The rows of a plan that are on the disk, and the asking for those that are not."""

    bar: tqdm

    def __init__(
        self,
        plan: GridPlan,
        wrapper: SteeringWrapper,
        tokenizer: Any,
        path: Path,
        judge: Judge | None = None,
        batch_size: int = 16,
    ) -> None:
        self.plan, self.wrapper, self.tokenizer, self.path = plan, wrapper, tokenizer, path
        self.judge, self.batch_size = judge, batch_size
        self.rows = {row.key: row for row in read_rows(path)}
        self.added = 0

    def missing(self) -> list[tuple[Cell, str]]:
        """The keys of the rows that are not there."""
        keys: list[tuple[Cell, str]] = []
        for cell in self.plan.cells():
            keys += [(cell, question.id) for question in self.plan.questions(cell.task)]
        return [key for key in keys if key not in self.rows]

    def lacks(self, finetune: str | None) -> bool:
        """Whether any row of a finetune is missing: one that is complete need not be loaded."""
        return any(cell.finetune == finetune for cell, _ in self.missing())

    def ask(self, asked_together: Round) -> None:
        """Ask the model as it is for what is missing, batch by batch; those questions together that lack the same
        cases. Its finetune is put on by whoever calls, once for all rounds."""
        about = f"{asked_together.system_prompt} prompt, {asked_together.task}".removeprefix(" prompt, ")
        self.bar.set_description(f"{self.plan.behavior.name}: {asked_together.finetune or 'base'}, {about}")
        cases, questions = asked_together.cases, self.plan.questions(asked_together.task)
        self._copy_known(cases, questions)
        means = [MeanScore() for _ in cases]
        for lacking, alike in self._groups(cases, questions).items():
            some = replace(asked_together, cases=tuple(cases[place] for place in lacking))
            size = self._questions_at_a_time(some)
            for batch in by_length([question.text for question in alike], size):
                self._ask_batch(some, [alike[i] for i in batch], [means[place] for place in lacking])

    def _groups(self, cases: Sequence[Case], questions: Sequence[Question]) -> dict[tuple[int, ...], list[Question]]:
        """places of cases -> the questions that lack an answer in just these"""
        groups: dict[tuple[int, ...], list[Question]] = {}
        for question in questions:
            if lacking := tuple(place for place, case in enumerate(cases) if self._lacking(case, question)):
                groups.setdefault(lacking, []).append(question)
        return groups

    def _lacking(self, case: Case, question: Question) -> list[Cell]:
        return [cell for cell in case.cells if (cell, question.id) not in self.rows]

    def _questions_at_a_time(self, some: Round) -> int:
        """So that rows reach the disk often: an open answer is a row of a batch under each setting, a choice is not."""
        return max(1, self.batch_size // len(some.cases)) if some.task == "open" else self.batch_size

    def _copy_known(self, cases: Sequence[Case], questions: Sequence[Question]) -> None:
        """What some cells of an answer hold and others lack, because layers were added since, need not be asked."""
        copies: list[Row] = []
        for question, case in product(questions, cases):
            known = next((self.rows[c, question.id] for c in case.cells if (c, question.id) in self.rows), None)
            if known is not None:
                copies += [replace(known, cell=cell) for cell in self._lacking(case, question)]
        self._keep(copies)

    def _ask_batch(self, some: Round, questions: list[Question], means: list[MeanScore]) -> None:
        answers = self._answers(some, questions)
        rows: list[Row] = []
        places = product(questions, zip(some.cases, means, strict=True))
        for (question, (case, mean)), (score, evidence) in zip(places, answers, strict=True):
            rows += [Row(cell, question.id, score, evidence) for cell in self._lacking(case, question)]
            mean.add(score)
        self._keep(rows)
        if len(means) <= MOST_SHOWN:
            names = [case.cells[0].setting or f"{case.cells[0].multiplier:+g}" for case in some.cases]
            self.bar.set_postfix({name: f"{mean.value:.2f}" for name, mean in zip(names, means, strict=True)})

    def _keep(self, rows: list[Row]) -> None:
        append_rows(self.path, rows)
        self.rows |= {row.key: row for row in rows}
        self.added += len(rows)
        self.bar.update(len(rows))

    def _answers(self, some: Round, questions: list[Question]) -> list[Answer]:
        """In the order of `product(questions, cases)`."""
        settings = [case.setting for case in some.cases]
        chat = self.plan.chat(self.tokenizer, some.system_prompt)
        repeated = [question for question, _ in product(questions, settings)]
        if some.task == "open":
            return self._open_answers(chat, questions, settings, repeated)
        scores = score_choices(self.wrapper, chat, questions, settings, batch_size=self.batch_size)
        return [_scored(question, score) for question, score in zip(repeated, scores, strict=True)]

    def _open_answers(
        self, chat: Any, questions: list[Question], settings: list[Setting], repeated: list[Question]
    ) -> list[Answer]:
        if self.judge is None:
            raise ValueError("the open task needs a judge")
        length, batch_size = self.plan.max_new_tokens, self.batch_size
        texts = answer_open(self.wrapper, chat, questions, settings, max_new_tokens=length, batch_size=batch_size)
        verdicts = judge_all(self.judge, repeated, texts)
        return [_judged(*judged) for judged in zip(repeated, texts, verdicts, strict=True)]


def _scored(question: Question, choice: ChoiceScore) -> Answer:
    evidence = choice_evidence(choice.p_matching, choice.p_opposite, question.matching, question.category)
    return choice.score, evidence


def _judged(question: Question, text: str, verdict: Verdict) -> Answer:
    return verdict.score, {"asked": question.text, "text": text, "reason": verdict.reason}
