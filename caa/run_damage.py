"""The open answers of a run in, `damage.csv` beside them out: what each cell's texts lost, and what they gained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caa.data.chat import ChatFormat
from caa.evals.damage import perplexities
from caa.files import replacing
from caa.reports.tables.text_damage import text_damage
from caa.runs.folder import DAMAGE
from caa.runs.rows import TEXT, Cell, Row, read_rows
from caa.steering.wrapper import SteeringWrapper


def write_damage(folder: Path, model: Any, chat: ChatFormat | Any, count: int, *, batch_size: int = 16) -> Path:
    """Measure the first `count` open answers of each cell; `damage.csv` in the run's folder, one line per cell.

    Perplexities are the model's, as it is. ValueError if the run holds no open answers.
    """
    rows = first_answers(folder / "rows.jsonl", count)
    frame = text_damage(rows, row_perplexities(rows, model, chat, batch_size))
    with replacing(folder / DAMAGE) as scratch:
        frame.to_csv(scratch, index=False)
    return folder / DAMAGE


def first_answers(rows: Path, count: int) -> list[Row]:
    """`count` open answers of each cell, to the same questions in all cells of a behavior: the first by their ids."""
    answered: dict[Cell, list[Row]] = {}
    for row in sorted(read_rows(rows), key=lambda row: row.question):
        if row.cell.task == "open" and len(answered.setdefault(row.cell, [])) < count:
            answered[row.cell].append(row)
    return [row for cell_rows in answered.values() for row in cell_rows]


def row_perplexities(
    rows: list[Row], model: Any, chat: ChatFormat | Any, batch_size: int = 16
) -> dict[tuple[Cell, str], float]:
    """The key of each row -> how much its answer surprises the model; the same answer is read once."""
    texts = list(dict.fromkeys((row.evidence["asked"], row.evidence[TEXT]) for row in rows))
    asked, answers = [question for question, _ in texts], [answer for _, answer in texts]
    measured = perplexities(SteeringWrapper(model), chat, asked, answers, batch_size=batch_size)
    known = dict(zip(texts, measured, strict=True))
    return {row.key: known[row.evidence["asked"], row.evidence[TEXT]] for row in rows}
