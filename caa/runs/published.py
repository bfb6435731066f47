"""The result files of nrimsky/CAA in, rows out: what Rimsky et al. (2024) measured on Llama 2. No torch, no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caa.data.behaviors import letter, question_id
from caa.data.records import read_json
from caa.runs.rows import OWN, Cell, Row, VectorRef, choice_evidence

SCORED_FOLDER = "open_ended_scores"
"""Where the reference keeps open-ended answers with GPT-4's scores; those elsewhere have not been scored."""
_TASKS = {"ab": "ab", "open_ended": "open", "mmlu": "facts", "truthful_qa": "truthfulqa"}
_PROMPTS = {None: "", "pos": "positive", "neg": "negative"}
# As the reference's SteeringSettings.make_result_save_suffix writes a name: fields in this order, those unset left out.
_NAME = re.compile(
    r"results_layer=(?P<layer>\d+)"
    r"_multiplier=(?P<multiplier>-?\d+(?:\.\d+)?)"
    r"_behavior=(?P<behavior>[A-Za-z-]+)"
    rf"_type=(?P<type>{'|'.join(_TASKS)})"
    r"(?:_system_prompt=(?P<prompt>pos|neg))?"
    r"(?:_override_vector=(?P<vector_layer>\d+))?"
    r"(?:_override_vector_model=(?P<vector_model>[A-Za-z0-9.-]+?))?"
    r"_use_base_model=(?P<base>True|False)"
    r"_model_size=(?P<size>7b|13b)"
    r"(?:_override_model_weights_path=finetuned_models-(?P=behavior)_(?P<finetune>pos|neg)_finetune_(?P<trained>all|\d+)\.pt)?"
    r"\.json"
)


@dataclass(frozen=True)
class Published:
    """What a folder of published results holds."""

    rows: Mapping[str, list[Row]]
    """Model ("Llama 2 7B chat") -> its rows."""
    unknown: tuple[str, ...] = ()
    """Json files, relative to the folder, that were not read because their names say something else."""
    unscored: tuple[str, ...] = ()
    """Files of open-ended answers that hold no scores."""

    def __str__(self) -> str:
        """What was read and what was not, in a few lines."""
        read = [f"{model}: {len(rows)} answers{_outside(rows)}" for model, rows in self.rows.items()]
        unknown = [f"not read, name unknown: {name}" for name in self.unknown]
        unscored = [f"not read, without scores: {name}" for name in self.unscored]
        return "\n".join([*read, *unknown, *unscored])


def _outside(rows: list[Row]) -> str:
    count = sum(row.score is None and "matching" in row.evidence for row in rows)
    return f", {count} of them left out: their matching letter is neither A nor B (the paper counts 0)" if count else ""


def read_published(folder: str | Path) -> Published:
    """Read every result file below a folder, e.g. a clone of nrimsky/CAA or its `results`.

    FileNotFoundError if none is there; ValueError for a file whose name is right and whose content is not, and for two
    files that say the same.
    """
    rows: dict[str, dict[tuple[Cell, str], Row]] = {}
    unknown, unscored = [], []
    for path in sorted(Path(folder).rglob("results_*.json")):
        name, fields = path.relative_to(folder).as_posix(), _NAME.fullmatch(path.name)
        if fields is None:
            unknown.append(name)
        elif fields["type"] == "open_ended" and SCORED_FOLDER not in path.parts:
            unscored.append(name)
        else:
            _add(rows.setdefault(_model(fields), {}), _read(path, fields), name)
    if not rows:
        raise FileNotFoundError(
            f"{folder} holds no result files of nrimsky/CAA (results_layer=..._multiplier=....json)"
        )
    by_model = {model: list(rows[model].values()) for model in sorted(rows)}
    return Published(by_model, tuple(unknown), tuple(unscored))


def _add(known: dict[tuple[Cell, str], Row], rows: list[Row], name: str) -> None:
    twice = [row for row in rows if row.key in known]
    if twice:
        raise ValueError(
            f"{name} answers {len(twice)} questions that another file answers for the same {twice[0].cell}"
        )
    known.update({row.key: row for row in rows})


def _model(fields: re.Match[str]) -> str:
    return f"Llama 2 {fields['size'].upper()}{'' if fields['base'] == 'True' else ' chat'}"


def cell_of(name: str) -> Cell:
    """The cell that a result file's name says.

    >>> where = "results_layer=13_multiplier=-1.0_behavior=refusal"
    >>> name = f"{where}_type=ab_use_base_model=False_model_size=7b.json"
    >>> cell_of(name) == Cell("refusal", "ab", finetune=None, layer=13, multiplier=-1.0)
    True
    """
    fields = _NAME.fullmatch(name)
    if fields is None:
        raise ValueError(f"{name!r} is not how nrimsky/CAA names its results")
    return _cell(fields)


def _cell(fields: re.Match[str]) -> Cell:
    finetune = {None: None, "pos": "positive", "neg": "negative"}[fields["finetune"]]
    trained = "" if fields["trained"] in (None, "all") else f" (layer {fields['trained']})"
    return Cell(
        behavior=fields["behavior"],
        task=_TASKS[fields["type"]],
        finetune=finetune and finetune + trained,
        layer=int(fields["layer"]),
        multiplier=float(fields["multiplier"]),
        system_prompt=_PROMPTS[fields["prompt"]],
        vector=_vector(fields),
    )


def _vector(fields: re.Match[str]) -> VectorRef:
    """The model's own at that layer, or the one that was added in its place."""
    layer = f" layer {fields['vector_layer']}" if fields["vector_layer"] else ""
    model = f" of {fields['vector_model']}" if fields["vector_model"] else ""
    return VectorRef("other", f"caa{layer}{model}") if layer or model else OWN


def _read(path: Path, fields: re.Match[str]) -> list[Row]:
    cell, read = _cell(fields), _READERS[fields["type"]]
    try:
        return [read(cell, record) for record in read_json(path)]
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} does not hold what its name says: {error!r}") from error


def _open(cell: Cell, record: Mapping[str, Any]) -> Row:
    """GPT-4 gave no score to 3 of the 2,277 published answers; the reference leaves those out of its means too."""
    evidence = {"asked": record["question"], "text": record["model_output"]}
    return Row(cell, question_id(record["question"]), record.get("score"), evidence)


def _two_options(cell: Cell, record: Mapping[str, Any], matching: str) -> Row:
    """The probability of the matching letter over that of both; None where that letter is neither A nor B."""
    probabilities = {"A": float(record["a_prob"]), "B": float(record["b_prob"])}
    p_matching = probabilities.pop(letter(matching) or "", None)
    question = question_id(record["question"])
    if p_matching is None:
        return Row(cell, question, None, {"matching": letter(matching) or matching.strip(), **probabilities})
    [p_opposite] = probabilities.values()
    evidence = choice_evidence(p_matching, p_opposite, matching, record.get("category") or "")
    return Row(cell, question, p_matching / (p_matching + p_opposite), evidence)


def _ab(cell: Cell, record: Mapping[str, Any]) -> Row:
    return _two_options(cell, record, record["answer_matching_behavior"])


def _fact(cell: Cell, record: Mapping[str, Any]) -> Row:
    return _two_options(cell, record, record["correct"])


_READERS: dict[str, Callable[[Cell, Mapping[str, Any]], Row]] = {
    "ab": _ab,
    "open_ended": _open,
    "mmlu": _fact,
    "truthful_qa": _fact,
}
