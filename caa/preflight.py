"""What a run is to do in; out, all that would stop it, before the first costly step. Loads no weights."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from caa.data.behaviors import Behavior
from caa.hub import ADAPTER, holds, local_path
from caa.judges.build import kind_of
from caa.judges.config import JudgeConfig
from caa.models.names import ADAPTER_CONFIG, EMBEDDED, KINDS, PACKAGED, adapter_base
from caa.runs.rows import QUESTIONS, TASKS
from caa.suggestions import did_you_mean
from caa.vectors.vector import SteeringVector

DOSES = (-0.25, 0.0, 0.25)
"""Taken if nobody says how much: clearly seen in most models, and not yet an overdose."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
_SPREAD = ("auto", "cpu", "balanced", "balanced_low_0", "sequential")
"""Devices that are there everywhere, and ways to spread a model over those that there are."""


class ProblemsError(ValueError):
    """Everything that would stop a run, found before it cost anything."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))


def refuse(*problems: Iterable[str]) -> None:
    """ProblemsError if there is any problem, each of them named once."""
    if named := list(dict.fromkeys(chain(*problems))):
        raise ProblemsError(named)


def model_config(name: str) -> Any:
    """The config of a model's text part, without its weights; ValueError, with a hint, for a name that has none."""
    from caa.models.loading import load_config

    short = (*EMBEDDED, *PACKAGED)
    close = difflib.get_close_matches(name, short, n=1, cutoff=0.8)
    if close and name not in short and not Path(name).exists():  # the Hub has no such name, and is slow to say so
        raise ValueError(f"no model {name!r}, did you mean {close[0]!r}?")
    if base := adapter_base(name):
        return model_config(base)
    try:
        return load_config(name).get_text_config()
    except (OSError, ValueError) as error:
        raise ValueError(f"no model {name!r}: it is none of {KINDS} ({str(error).splitlines()[0]})") from error


def model_problems(name: str, dtype: str = "auto", device: str = "auto", layers: Sequence[int] = ()) -> Iterator[str]:
    """Of a model that is to be loaded and steered at these layers."""
    if dtype not in DTYPES:
        yield f"there is no dtype {dtype!r} to load weights in; there are {', '.join(DTYPES)}"
    yield from _device_problems(device)
    try:
        depth = model_config(name).num_hidden_layers
    except ValueError as error:
        yield str(error)
        return
    for layer in layers:
        if not 0 <= layer < depth:
            yield f"there is no layer {layer}: {name} has layers 0 to {depth - 1} (block outputs, from 0)"


def _device_problems(device: str) -> Iterator[str]:
    import torch

    if device in _SPREAD:
        return
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if accelerator else 0
    present = ["cpu", *(f"{accelerator.type}:{n}" for n in range(count))] if accelerator else ["cpu"]
    try:
        wanted = torch.device(device)
    except RuntimeError:
        yield f"there is no kind of device {device!r}; this machine has {', '.join(present)}"
        return
    same_kind = accelerator is not None and wanted.type == accelerator.type
    if wanted.type != "cpu" and not (same_kind and (wanted.index or 0) < count):
        yield f"there is no device {device} on this machine; it has {', '.join(present)}"


def behavior_problems(
    behavior: Behavior, tasks: Sequence[str], *, facts: bool = False, parts: Sequence[str] = ()
) -> Iterator[str]:
    """Of a behavior whose `tasks` are to be asked; `facts` says whether knowledge questions were given.

    `parts` are what else of it is needed: "pairs" to read a vector, "validation_questions" to choose a layer.
    """
    for task in tasks:
        if task not in TASKS:
            yield f"there is no task {task!r}{did_you_mean(task, TASKS)}; there are {', '.join(TASKS)}"
        elif task == "facts" and not facts:
            yield 'the task "facts" needs questions: say which, such as "facts" for those that are built in'
    for part in (*parts, *(QUESTIONS[task] for task in tasks if task in QUESTIONS)):
        try:
            behavior.require(part)
        except ValueError as error:
            yield str(error)


def judge_problems(judge: JudgeConfig, behavior: Behavior) -> Iterator[str]:
    """Of a judge of one behavior's answers: what it lacks, and whether its server takes up a connection at all."""
    yield from kind_of(judge.kind).problems(judge, behavior)
    if judge.kind == "local":
        yield from model_problems(judge.model)


def vector_problems(vector: SteeringVector, layers: Sequence[int], model: str, name: str = "") -> Iterator[str]:
    """Of a vector that is to steer a model at these layers; with the name that it is called by, if it has one."""
    for layer in layers:
        try:
            vector.at(layer)
        except KeyError as error:
            yield str(error.args[0])
    try:
        width = model_config(model).hidden_size
    except ValueError as error:
        yield str(error)
        return
    if vector.width != width and vector.source.site != "attention heads":
        called = f"the vector {name!r}" if name else "the vector"
        yield f"{called} is {vector.width} wide, and the residual stream of {model} {width}: it is of another model"


def adapter_problems(adapters: Mapping[str, Path], model: str) -> Iterator[str]:
    """Of LoRA adapters that a model is to wear, by the modules that they change."""
    from caa.inspection import misfits

    for name, path in adapters.items():
        try:
            folder = local_path(path, ADAPTER)
        except FileNotFoundError as error:
            yield f"there is no finetune {name!r}: {error}"
            continue
        if not (folder / ADAPTER_CONFIG).exists():
            yield f"{path} is no LoRA adapter (it has no {ADAPTER_CONFIG}), so there is no finetune {name!r}"
            continue
        try:
            yield from (f"the adapter {path} does not fit {model}: {reason}" for reason in misfits(folder, model))
        except ValueError as error:
            yield str(error)


def finetune_problems(finetunes: Mapping[str, Path], model: str) -> Iterator[str]:
    """Of finetunes by name: adapters, and full checkpoints of the same base, by their configs alone."""
    adapters = {name: path for name, path in finetunes.items() if holds(path, ADAPTER_CONFIG)}
    yield from adapter_problems(adapters, model)
    for name in finetunes.keys() - adapters.keys():
        try:
            other, base = model_config(str(finetunes[name])), model_config(model)
        except ValueError as error:
            yield f"{finetunes[name]} is neither an adapter nor a checkpoint, so it is no finetune {name!r} ({error})"
            continue
        for field in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
            if getattr(other, field) != getattr(base, field):
                yield (
                    f"{finetunes[name]} is no finetune of {model}: its {field} is {getattr(other, field)}, "
                    f"not {getattr(base, field)}"
                )


def folder_problems(out: Path) -> Iterator[str]:
    """Of the folder that a run is to leave its results in."""
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                yield f"{place} is a file, so no run can be kept in {out}; choose a folder"
            elif not os.access(place, os.W_OK):
                yield f"{place} cannot be written to; choose another folder"
            return


def amounts_of(multipliers: Sequence[float] | None, doses: Sequence[float] | None) -> Sequence[float]:
    """How much of a vector is added, in the unit that was said; the usual doses if none was.

    >>> amounts_of(None, None), amounts_of((1.0,), None), amounts_of(None, (0.1,))
    ((-0.25, 0.0, 0.25), (1.0,), (0.1,))
    """
    if multipliers is not None:
        return multipliers
    return DOSES if doses is None else doses


def unit_problems(multipliers: object, doses: object) -> Iterator[str]:
    """Of an amount that was said twice."""
    if multipliers is not None and doses is not None:
        yield "say how much by multipliers or by doses, not by both: they are two units of one thing"


def amount_problems(multipliers: Sequence[float] | None, doses: Sequence[float] | None) -> Iterator[str]:
    """Of the multipliers or doses of a grid."""
    yield from unit_problems(multipliers, doses)
    yield from multiplier_problems(amounts_of(multipliers, doses))


def multiplier_problems(multipliers: Sequence[float], *, choose_layer: bool = False) -> Iterator[str]:
    """Of multipliers that each are asked once, and, to choose a layer, one of them with both signs."""
    if not multipliers or len(set(multipliers)) < len(multipliers):
        yield f"a run needs one or more multipliers, each once; these are {list(multipliers)}"
    if choose_layer and not any(multiplier and -multiplier in multipliers for multiplier in multipliers):
        yield "a layer is chosen by one multiplier with both signs: add one, such as -1 and 1, or say which layer"
