"""The folder of a run in, the appendix of a paper out, in Markdown. What a model wrote stands in fences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from caa.files import own_files
from caa.reports.naming import steering_name
from caa.reports.pages.captions import caption, in_reading_order
from caa.reports.summaries import rerun_program, run_facts, texts_facts, warnings_of
from caa.reports.tables.formats import in_markdown, to_markdown
from caa.reports.tables.layout import Table
from caa.reports.tables.report import write_tables
from caa.runs.folder import Run, read_run
from caa.runs.rows import OWN, TEXT, Cell, Row
from caa.untrusted import plain

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
    """What happened, warnings, tables, figures, the first answers, what was run and how to run it again.

    Sections without content go.
    """
    warnings, drawn = warnings_of(run), [path.stem for path in own_files(run.figures, "*.png")]
    sections = {
        "What happened": list(_story(tables)),
        "Warnings": [f"- {in_markdown(warning)}" for warning in warnings] or ["None."],
        "Tables": [
            to_markdown(replace(table, warnings=(), headlines=())) for table in tables
        ],  # they stand above, all together
        "Figures": [_picture(run.figures / f"{name}.png") for name in in_reading_order(drawn)],
        "Answers": list(_answers(run.rows, texts_facts(run))),
        "What was run": [f"- **{name}**: {in_markdown(value)}" for name, value in run_facts(run).items()],
        "Run it again": [fenced(rerun_program(run), "python")],
    }
    title = f"# {in_markdown(run.folder.resolve().name)}: {in_markdown(run.model)}\n"
    return "\n".join([title, *(_section(name, lines) for name, lines in sections.items() if lines)])


def _section(name: str, lines: Iterable[str]) -> str:
    content = "\n".join(lines).rstrip()
    return f"## {name}\n\n{content}\n"


def _story(tables: Iterable[Table]) -> Iterator[str]:
    """Under the name of each table what it says, a sentence for each behavior."""
    for table in tables:
        if table.headlines:
            yield f"**{in_markdown(table.title)}**\n"
            yield from (f"- {in_markdown(headline.text)}" for headline in table.headlines)
            yield ""


def _picture(path: Path) -> str:
    return f"![{in_markdown(caption(path.stem))}](figures/{quote(path.name)})\n"


def fenced(text: str, language: str = "text") -> str:
    r"""A code block whose fence is longer than any in the text, so that no text can end it.

    >>> fenced("a ``` b")
    '````text\na ``` b\n````'
    """
    text = plain(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _answers(rows: Iterable[Row], texts: str) -> Iterator[str]:
    """The first questions of each behavior, answered without a finetune: unsteered, then steered farthest each way."""
    answers = _plain_answers(rows)
    if answers:
        yield (
            f"The first {SHOWN} questions of each behavior, without a finetune: at multiplier 0, and at the largest "
            f"and the smallest; {texts}. Answers longer than {LONGEST:,} characters are cut.\n"
        )
    for behavior, by_question in answers.items():
        for by_cell in islice(by_question.values(), SHOWN):
            yield from _question(behavior, by_cell)


def _plain_answers(rows: Iterable[Row]) -> dict[str, dict[str, dict[Cell, Row]]]:
    """Behavior -> question -> cell -> its answer, of the cells with nothing but the behavior's own vector."""
    answers: dict[str, dict[str, dict[Cell, Row]]] = {}
    for row in rows:
        cell = row.cell
        if TEXT in row.evidence and (cell.finetune, cell.vector, cell.system_prompt) == (None, OWN, ""):
            answers.setdefault(cell.behavior, {}).setdefault(row.question, {})[cell] = row
    return answers


def _question(behavior: str, answers: dict[Cell, Row]) -> Iterator[str]:
    first = next(iter(answers.values()))
    yield f"### {in_markdown(behavior)}: {in_markdown(str(first.evidence.get('asked', first.question)))}\n"
    layer = min((cell.layer for cell in answers if cell.layer is not None), default=None)
    at_layer = {cell.multiplier: row for cell, row in answers.items() if cell.layer == layer and not cell.setting}
    for multiplier in dict.fromkeys([0.0, max(at_layer, default=0.0), min(at_layer, default=0.0)]):
        if multiplier in at_layer:
            yield _answer(at_layer[multiplier])
    yield from (_answer(row) for cell, row in answers.items() if cell.setting)


def _answer(row: Row) -> str:
    score = "no score" if row.score is None else f"score {row.score:.2f}"
    text = str(row.evidence[TEXT])
    cut = f" (the first {LONGEST:,} of {len(text):,} characters)" if len(text) > LONGEST else ""
    steering = steering_name(row.cell)
    return f"{steering[0].upper()}{steering[1:]}, {score}{cut}:\n\n{fenced(text[:LONGEST])}\n"
