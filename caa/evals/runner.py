"""One run of a grid: the rows that are there and the questions left in; their answers, as rows on the disk, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from caa.data.behaviors import Question
from caa.evals.metrics import ChoiceMetric, JudgedMetric
from caa.evals.tasks import ChoiceScore, answer_open, score_choices
from caa.judges.base import Verdict, judge_all
from caa.models.batching import by_length
from caa.runs.rows import Cell, Row, append_rows, choice_evidence, read_rows
from caa.steering.settings import Setting
from caa.steering.wrapper import SteeringWrapper

if TYPE_CHECKING:
    from caa.evals.grid import EvalGrid

MOST_SHOWN = 4
"""Scores behind a progress bar."""
Answer = tuple[float | None, dict[str, Any]]
"""Score and evidence, as a row keeps them."""


@dataclass(frozen=True)
class Case:
    """One setting, and the cells that its answers belong to: one, but for the unsteered model, which has no layer."""

    setting: Setting
    cells: tuple[Cell, ...]


class Session:
    """One run of a grid: the rows that are there, and the asking for those that are not."""

    bar: tqdm

    def __init__(self, grid: EvalGrid, wrapper: SteeringWrapper, tokenizer: Any, path: Path) -> None:
        self.grid, self.wrapper, self.tokenizer, self.path = grid, wrapper, tokenizer, path
        self.rows = {row.key: row for row in read_rows(path)}
        self.added = 0

    def missing(self) -> list[tuple[Cell, str]]:
        """The keys of the rows that are not there."""
        asked = ((cell, question.id) for cell in self.grid.cells() for question in self.grid.questions(cell.task))
        return [key for key in asked if key not in self.rows]

    def _lacking(self, case: Case, question: Question) -> list[Cell]:
        return [cell for cell in case.cells if (cell, question.id) not in self.rows]

    def ask(self, finetune: str | None, prompt: str, task: str) -> None:
        """Ask for what is missing, batch by batch; those questions together that lack the same cases."""
        about = f"{prompt} prompt, {task}" if prompt else task
        self.bar.set_description(f"{self.grid.behavior.name}: {finetune or 'base'}, {about}")
        cases, questions = self.grid.cases(finetune, prompt, task), self.grid.questions(task)
        self._copy_known(cases, questions)
        live = [JudgedMetric() if task == "open" else ChoiceMetric() for _ in cases]
        for lacking, alike in self._to_ask(cases, questions).items():
            for batch in by_length([question.text for question in alike], self._questions_at_a_time(task, lacking)):
                self._ask_batch(task, prompt, [alike[i] for i in batch], [(cases[i], live[i]) for i in lacking])

    def _to_ask(self, cases: Sequence[Case], questions: Sequence[Question]) -> dict[tuple[int, ...], list[Question]]:
        """places of cases -> the questions that lack an answer in just these"""
        groups: dict[tuple[int, ...], list[Question]] = {}
        for question in questions:
            if lacking := tuple(i for i, case in enumerate(cases) if self._lacking(case, question)):
                groups.setdefault(lacking, []).append(question)
        return groups

    def _questions_at_a_time(self, task: str, lacking: Sequence[int]) -> int:
        """So that rows reach the disk often: an open answer is a row of a batch under each setting, a choice is not."""
        size = self.grid.batch_size
        return max(1, size // len(lacking)) if task == "open" else size

    def _copy_known(self, cases: Sequence[Case], questions: Sequence[Question]) -> None:
        """What some cells of an answer hold and others lack, because layers were added since, need not be asked."""
        copies: list[Row] = []
        for question, case in product(questions, cases):
            known = next((self.rows[c, question.id] for c in case.cells if (c, question.id) in self.rows), None)
            if known is not None:
                copies += [replace(known, cell=cell) for cell in self._lacking(case, question)]
        self._keep(copies)

    def _ask_batch(self, task: str, prompt: str, questions: list[Question], cases: list[tuple[Case, Any]]) -> None:
        answers = self._answers(task, prompt, questions, [case.setting for case, _ in cases])
        rows: list[Row] = []
        for (question, (case, live)), (score, evidence) in zip(product(questions, cases), answers, strict=True):
            rows += [Row(cell, question.id, score, evidence) for cell in self._lacking(case, question)]
            _count(live, score, evidence)
        self._keep(rows)
        if len(cases) <= MOST_SHOWN:
            self.bar.set_postfix({f"{c.cells[0].multiplier:+g}": f"{live.compute()['score']:.2f}" for c, live in cases})

    def _keep(self, rows: list[Row]) -> None:
        append_rows(self.path, rows)
        self.rows |= {row.key: row for row in rows}
        self.added += len(rows)
        self.bar.update(len(rows))

    def _answers(self, task: str, prompt: str, questions: list[Question], settings: list[Setting]) -> list[Answer]:
        """In the order of `product(questions, settings)`."""
        grid = self.grid
        asked = self.wrapper, grid.chat(self.tokenizer, prompt), questions, settings
        how: dict[str, Any] = {"batch_size": grid.batch_size}
        each = [question for question, _ in product(questions, settings)]
        if task == "open":
            texts = answer_open(*asked, max_new_tokens=grid.max_new_tokens, **how)
            verdicts = judge_all(grid.judge, each, texts)  # type: ignore[arg-type]
            return [_judged(*judged) for judged in zip(each, texts, verdicts, strict=True)]
        return [_scored(*pair) for pair in zip(each, score_choices(*asked, **how), strict=True)]


def _scored(question: Question, found: ChoiceScore) -> Answer:
    return found.score, choice_evidence(found.p_matching, found.p_opposite, question.matching, question.category)


def _judged(question: Question, text: str, verdict: Verdict) -> Answer:
    return verdict.score, {"asked": question.text, "text": text, "reason": verdict.reason}


def _count(metric: Any, score: float | None, evidence: Mapping[str, Any]) -> None:
    if isinstance(metric, JudgedMetric):
        metric.update([score])
    else:
        p_matching, p_opposite = torch.tensor([[evidence["p_matching"]], [evidence["p_opposite"]]], dtype=torch.float64)
        metric.update(p_matching, p_opposite)
