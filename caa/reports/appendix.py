"""The folder of a run in, the appendix of a paper out, in Markdown. What a model wrote stands in fences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from caa.reports.collapse import TEXT
from caa.reports.facts import again, facts
from caa.reports.formats import in_markdown, to_markdown
from caa.reports.layout import Table
from caa.reports.naming import signed
from caa.reports.tables import write_tables
from caa.reports.warnings import warnings
from caa.runs.folder import Run, read_run
from caa.runs.rows import OWN, Cell, Row

APPENDIX = "report.md"
SHOWN = 3
"""Questions of each behavior whose answers are printed: the first ones that were asked, so that nobody chose them."""
LONGEST = 1200
"""Characters of an answer that are printed, about 200 words; rows.jsonl has the rest."""


def write_appendix(run_folder: str | Path) -> Path:
    """Write report.md beside a run's rows.jsonl, whole or not at all, and the tables as `write_report` does.

    Returns its path. Pictures in the folder `figures` are named by relative paths. Errors as those of `write_report`.
    """
    run = read_run(run_folder)
    return run.write(APPENDIX, to_appendix(run, write_tables(run)))


def to_appendix(run: Run, tables: Sequence[Table]) -> str:
    """What was run, warnings, tables, figures, the first answers, how to run it again. Sections without content go."""
    told = warnings(run.rows, run.captions.get("judge_accuracy", {}))
    sections = {
        "What was run": [f"- **{name}**: {in_markdown(value)}" for name, value in facts(run).items()],
        "Warnings": [f"- {in_markdown(warning)}" for warning in told] or ["None."],
        "Tables": [to_markdown(table) for table in tables],
        "Figures": [f"![{in_markdown(p.stem)}](figures/{quote(p.name)})\n" for p in sorted(run.figures.glob("*.png"))],
        "Answers": list(_answers(run.rows)),
        "Run it again": [fenced(again(run), "python")],
    }
    written = [f"## {name}\n\n{_lines(lines)}\n" for name, lines in sections.items() if lines]
    return "\n".join([f"# {in_markdown(run.folder.resolve().name)}: {in_markdown(run.model)}\n", *written])


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip()


def fenced(text: str, language: str = "text") -> str:
    r"""A code block whose fence is longer than any in the text, so that no text can end it.

    >>> fenced("a ``` b")
    '````text\na ``` b\n````'
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _answers(rows: Iterable[Row]) -> Iterator[str]:
    """The first questions of each behavior, answered without a finetune: unsteered, then steered farthest each way."""
    shown: dict[tuple[str, str], dict[Cell, Row]] = {}
    for row in rows:
        cell = row.cell
        if TEXT in row.evidence and (cell.finetune, cell.vector, cell.system_prompt) == (None, OWN, ""):
            shown.setdefault((cell.behavior, row.question), {})[cell] = row
    if shown:
        yield (
            f"The first {SHOWN} questions of each behavior, without a finetune: at multiplier 0, and at the largest "
            f"and the smallest. Answers longer than {LONGEST:,} characters are cut.\n"
        )
    counts: dict[str, int] = {}
    for (behavior, _), answers in shown.items():
        counts[behavior] = counts.get(behavior, 0) + 1
        if counts[behavior] <= SHOWN:
            yield from _question(behavior, answers)


def _question(behavior: str, answers: dict[Cell, Row]) -> Iterator[str]:
    first = next(iter(answers.values()))
    yield f"### {in_markdown(behavior)}: {in_markdown(str(first.evidence.get('asked', first.question)))}\n"
    layer = min(cell.layer for cell in answers)
    there = {cell.multiplier: row for cell, row in answers.items() if cell.layer == layer}
    for multiplier in dict.fromkeys([0.0, max(there), min(there)]):
        if multiplier in there:
            yield _answer(there[multiplier])


def _answer(row: Row) -> str:
    score = "no score" if row.score is None else f"score {row.score:.2f}"
    text = str(row.evidence[TEXT])
    cut = f" (the first {LONGEST:,} of {len(text):,} characters)" if len(text) > LONGEST else ""
    where = f"Layer {row.cell.layer}, multiplier {signed(row.cell.multiplier)}"
    return f"{where}, {score}{cut}:\n\n{fenced(text[:LONGEST])}\n"
