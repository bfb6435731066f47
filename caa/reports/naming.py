"""Cells and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any

from caa.runs.rows import OWN, Cell, VectorRef

BASE = "none"
"""What tables call the model without a finetune."""
_OWN = "caa"
"""What tables call a behavior's own vector, where they name it."""
_REREAD = "own"
"""What they call it where it was read again in the finetune that it steers."""
SCORES = {"ab": "mean p(matching answer)", "open": "mean score, 0 to 10", "facts": "mean p(correct answer)"}
"""The label of a task's scores on the axis of a figure."""


def signed(multiplier: float) -> str:
    """
    >>> [signed(m) for m in (-1.0, 0.0, -0.0, 1.0, 0.5)]
    ['-1', '0', '0', '+1', '+0.5']
    """
    return f"{multiplier:+g}" if multiplier else "0"


def signed_change(value: float, decimals: int = 2) -> str:
    """A difference with its sign; none on what rounds to 0.

    >>> signed_change(0.254), signed_change(-1.0), signed_change(-0.001), signed_change(-12.3, 0)
    ('+0.25', '-1.00', '0.00', '-12')
    """
    rounded = round(value, decimals) or 0.0
    return f"{rounded:{'+' if rounded else ''}.{decimals}f}"


def finetune_name(finetune: str | None) -> str:
    """The heading of a finetune's columns; an adapter that is called like the base, "none", stands in quotes.

    >>> finetune_name(None), finetune_name("sft"), finetune_name("none")
    ('none', 'sft', "'none'")
    """
    return BASE if finetune is None else _quoted_if_taken(finetune, finetune == BASE)


def vector_name(vector: VectorRef) -> str:
    """A vector's name in a line, a curve or a column; one that a user named like one of ours stands in quotes.

    >>> [vector_name(VectorRef(*ref)) for ref in (("own",), ("reread",), ("random", "0"), ("other", "refusal"))]
    ['caa', 'own', 'random-0', 'refusal']
    >>> vector_name(VectorRef("other", "random-0")), vector_name(merged_random(3))
    ("'random-0'", 'random x3')
    """
    if vector.kind == "random":
        return f"random {vector.name}" if vector.name.startswith("x") else f"random-{vector.name}"
    if vector.kind == "other":
        taken = vector.name in (_OWN, _REREAD) or vector.name.startswith(("random-", "random x"))
        return _quoted_if_taken(vector.name, taken)
    return _OWN if vector.kind == "own" else _REREAD


def merged_random(count: int) -> VectorRef:
    """What stands in a table for so many random directions."""
    return VectorRef("random", f"x{count}")


def _quoted_if_taken(name: str, taken: bool) -> str:
    """In quotes if it is taken, or looks quoted: then no two names are written alike."""
    return repr(name) if taken or name.startswith(("'", '"')) else name


def setting_name(name: str) -> str:
    """The heading of a named setting's column; one that is called like the unsteered model, "0", stands in quotes.

    >>> setting_name("zero-out"), setting_name("0")
    ('zero-out', "'0'")
    """
    return _quoted_if_taken(name, name == signed(0.0))


def cell_fields(cell: Cell) -> dict[str, Any]:
    """A cell's fields as a line of a data frame has them: the finetune and the vector by name, no layer as ""."""
    names = {"finetune": finetune_name(cell.finetune), "vector": vector_name(cell.vector)}
    return {**asdict(cell), **names, "layer": "" if cell.layer is None else cell.layer}


def cell_name(cell: Cell) -> str:
    """
    >>> cell_name(Cell("refusal", "open", "negative", layer=13, multiplier=1.0))
    'refusal (open), finetune negative, layer 13, multiplier +1'
    """
    prompt = f", system prompt {cell.system_prompt}" if cell.system_prompt else ""
    vector = f", vector {vector_name(cell.vector)}" if cell.vector != OWN else ""
    return (
        f"{cell.behavior} ({cell.task}), finetune {finetune_name(cell.finetune)}, {steering_name(cell)}{prompt}{vector}"
    )


def logged_name(cell: Cell) -> str:
    """What the mean score of a cell is logged as.

    >>> logged_name(Cell("b", "ab", layer=2, multiplier=0.4)), logged_name(Cell("b", "ab", "sft", 2, -1.0, "positive"))
    ('ab/none/layer_2/+0.4', 'ab/sft/layer_2/-1/prompt_positive')
    """
    place = [f"layer_{cell.layer}", f"{cell.multiplier:+g}"] if cell.layer is not None else [f"setting_{cell.setting}"]
    parts = [cell.task, finetune_name(cell.finetune), *place]
    parts += [f"prompt_{cell.system_prompt}"] if cell.system_prompt else []
    return "/".join([*parts, *([f"vector_{vector_name(cell.vector)}"] if cell.vector != OWN else [])])


def steering_name(cell: Cell) -> str:
    """
    >>> steering_name(Cell("b", "ab", layer=13, multiplier=-1.0)), steering_name(Cell("b", "ab", layer=None))
    ('layer 13, multiplier -1', 'unsteered')
    """
    if cell.layer is None:
        return f"setting {setting_name(cell.setting)}" if cell.setting else "unsteered"
    multiplier = "all multipliers" if math.isnan(cell.multiplier) else f"multiplier {signed(cell.multiplier)}"
    return f"layer {cell.layer}, {multiplier}"


def usual_first(names: Iterable[str], usual: Collection[str]) -> list[str]:
    """Each name once: the usual ones first, the others in order of appearance.

    >>> usual_first(["mine", "negative", "none", "mine"], ["none", "positive", "negative"])
    ['none', 'negative', 'mine']
    """
    distinct = dict.fromkeys(names)
    return [*(name for name in usual if name in distinct), *(name for name in distinct if name not in usual)]


def highest_score(task: str) -> float:
    """The highest score of a task; the lowest is 0."""
    return 10.0 if task == "open" else 1.0
