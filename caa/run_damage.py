"""The open answers of a run in, `damage.csv` beside them out: what each cell's texts lost, and how far words moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from caa.data.behaviors import stem
from caa.data.chat import ChatFormat
from caa.data.sources import load_facts
from caa.evals.damage import divergences, perplexities
from caa.files import replacing
from caa.reports.tables.text_damage import text_damage
from caa.runs.folder import DAMAGE
from caa.runs.rows import TEXT, Cell, Row, read_rows
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.untrusted import plain_frame
from caa.vectors.vector import SteeringVector, random_like

PROMPTS = 8
"""Questions of fact, which have nothing to do with a behavior, behind which the next token is looked at."""


def write_damage(
    folder: Path,
    model: Any,
    chat: ChatFormat | Any,
    count: int,
    vectors: Mapping[str, SteeringVector],
    *,
    batch_size: int = 16,
) -> Path:
    """Measure the first `count` open answers of each cell; `damage.csv` in the run's folder, one line per cell.

    Perplexities are the model's, as it is. "divergence" is how far a cell's steering moves what this model would say
    first to `PROMPTS` questions of fact (KL in nats); it is left out where a finetune or a system prompt moves it too.
    `vectors` are the run's, by behavior. ValueError if the run holds no open answers.
    """
    rows = first_answers(folder / "rows.jsonl", count)
    frame = text_damage(rows, row_perplexities(rows, model, chat, batch_size))
    cells = list(dict.fromkeys(row.cell for row in rows))  # the order of the lines
    moved = cell_divergences(cells, vectors, model, chat, batch_size)
    frame["divergence"], frame["prompts"] = [moved.get(cell) for cell in cells], PROMPTS
    with replacing(folder / DAMAGE) as scratch:
        plain_frame(frame).to_csv(scratch, index=False)
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


def cell_divergences(
    cells: Iterable[Cell],
    vectors: Mapping[str, SteeringVector],
    model: Any,
    chat: ChatFormat | Any,
    batch_size: int = 16,
) -> dict[Cell, float]:
    """Cell of the plain model -> the mean divergence of its steering; cells of vectors that are not given are left out.
    So are named settings.

    The steering is the plain one: added from the last token of the prompt on.
    """
    plain = [cell for cell in cells if cell.finetune is None and not cell.system_prompt]
    steered = {cell: vector for cell in plain if (vector := _vector_of(cell, vectors)) is not None}
    settings = [(Intervention(vector, cell.layer or 0, cell.multiplier),) for cell, vector in steered.items()]
    prompts = [stem(question.text) for question in load_facts()[:PROMPTS]]
    moved = divergences(SteeringWrapper(model), chat, prompts, settings, batch_size=batch_size) if settings else []
    by_cell = {cell: fmean(moved[place :: len(settings)]) for place, cell in enumerate(steered)}
    return by_cell | {cell: 0.0 for cell in plain if not cell.multiplier}


def _vector_of(cell: Cell, vectors: Mapping[str, SteeringVector]) -> SteeringVector | None:
    """What the cell is steered by; None for nothing, and for a vector that is not among these."""
    vector = vectors.get(cell.vector.name if cell.vector.kind == "other" else cell.behavior)
    if vector is None or not cell.multiplier or cell.vector.kind == "reread" or cell.layer is None:
        return None
    return random_like(vector, int(cell.vector.name)) if cell.vector.kind == "random" else vector
