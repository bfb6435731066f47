"""One run of a plan: the rows that are there and the questions left in; their answers, as rows on the disk, out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from caa.data.behaviors import Question
from caa.evals.plan import Case, GridPlan, Round
from caa.evals.tasks import ChoiceScore, score_choices, stream_open
from caa.judges.base import Judge, Verdict, judge_all
from caa.models.batching import by_length
from caa.runs.rows import Cell, Row, append_rows, choice_evidence, read_rows
from caa.steering.intervention import Setting
from caa.steering.wrapper import SteeringWrapper
from caa.untrusted import plain

MOST_SHOWN = 4
"""Scores behind a progress bar."""


class Answer(NamedTuple):
    """To one question in one case of a round; score and evidence as a row keeps them."""

    question: Question
    case: int
    """Its place among the cases."""
    score: float | None
    evidence: dict[str, Any]


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
        answers_at_once: int | None = None,
    ) -> None:
        self.plan, self.wrapper, self.tokenizer, self.path = plan, wrapper, tokenizer, path
        self.judge, self.batch_size, self.answers_at_once = judge, batch_size, answers_at_once
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
        self.bar.set_description(plain(f"{self.plan.behavior.name}: {asked_together.finetune or 'base'}, {about}"))
        cases, questions = asked_together.cases, self.plan.questions(asked_together.task)
        self._copy_known(cases, questions)
        means = [MeanScore() for _ in cases]
        for lacking, alike in self._groups(cases, questions).items():
            some = replace(asked_together, cases=tuple(cases[place] for place in lacking))
            for answers in self._answers(some, alike):
                self._keep_answers(some, answers, [means[place] for place in lacking])

    def _groups(self, cases: Sequence[Case], questions: Sequence[Question]) -> dict[tuple[int, ...], list[Question]]:
        """places of cases -> the questions that lack an answer in just these"""
        groups: dict[tuple[int, ...], list[Question]] = {}
        for question in questions:
            if lacking := tuple(place for place, case in enumerate(cases) if self._lacking(case, question)):
                groups.setdefault(lacking, []).append(question)
        return groups

    def _lacking(self, case: Case, question: Question) -> list[Cell]:
        return [cell for cell in case.cells if (cell, question.id) not in self.rows]

    def _copy_known(self, cases: Sequence[Case], questions: Sequence[Question]) -> None:
        """What some cells of an answer hold and others lack, because layers were added since, need not be asked."""
        copies: list[Row] = []
        for question, case in product(questions, cases):
            known = next((self.rows[c, question.id] for c in case.cells if (c, question.id) in self.rows), None)
            if known is not None:
                copies += [replace(known, cell=cell) for cell in self._lacking(case, question)]
        self._keep(copies)

    def _keep_answers(self, some: Round, answers: list[Answer], means: list[MeanScore]) -> None:
        rows: list[Row] = []
        for answer in answers:
            cells = self._lacking(some.cases[answer.case], answer.question)
            rows += [Row(cell, answer.question.id, answer.score, answer.evidence) for cell in cells]
            means[answer.case].add(answer.score)
        self._keep(rows)
        if len(means) <= MOST_SHOWN:
            names = [case.cells[0].setting or f"{case.cells[0].multiplier:+g}" for case in some.cases]
            self.bar.set_postfix({name: f"{mean.value:.2f}" for name, mean in zip(names, means, strict=True)})

    def _keep(self, rows: list[Row]) -> None:
        append_rows(self.path, rows)
        self.rows |= {row.key: row for row in rows}
        self.added += len(rows)
        self.bar.update(len(rows))

    def _answers(self, some: Round, questions: list[Question]) -> Iterator[list[Answer]]:
        """A few at a time, so that rows reach the disk often."""
        settings = [case.setting for case in some.cases]
        chat = self.plan.chat(self.tokenizer, some.system_prompt)
        if some.task == "open":
            yield from self._open_answers(chat, questions, settings)
            return
        for batch in by_length([question.text for question in questions], self.batch_size):
            asked = [questions[i] for i in batch]
            scores = score_choices(self.wrapper, chat, asked, settings, batch_size=self.batch_size)
            places = product(asked, range(len(settings)))
            yield [_scored(*place, score) for place, score in zip(places, scores, strict=True)]

    def _open_answers(self, chat: Any, questions: list[Question], settings: list[Setting]) -> Iterator[list[Answer]]:
        """Of all questions in one pool, in the order in which they are done."""
        if self.judge is None:
            raise ValueError("the open task needs a judge")
        length, at_once = self.plan.max_new_tokens, self.answers_at_once
        answers = stream_open(self.wrapper, chat, questions, settings, max_new_tokens=length, batch_size=at_once)
        while some := list(islice(answers, self.batch_size)):
            asked, texts = [questions[place] for (place, _), _ in some], [text for _, text in some]
            verdicts = judge_all(self.judge, asked, texts)
            cases = [case for (_, case), _ in some]
            yield [_judged(*judged) for judged in zip(asked, cases, texts, verdicts, strict=True)]


def _scored(question: Question, case: int, choice: ChoiceScore) -> Answer:
    evidence = choice_evidence(choice.p_matching, choice.p_opposite, question.matching, question.category)
    return Answer(question, case, choice.score, evidence)


def _judged(question: Question, case: int, text: str, verdict: Verdict) -> Answer:
    return Answer(question, case, verdict.score, {"asked": question.text, "text": text, "reason": verdict.reason})
