"""What the commands share: a model to work on; saying things, where what a model or a file says is never markup."""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caa.untrusted import plain

if TYPE_CHECKING:
    from caa.reports.tables.layout import Table

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of a model's weights."""


def load_wrapper(model: str, finetunes: Mapping[str, Path], dtype: str, device: str) -> tuple[Any, Any]:
    """The model in a wrapper that holds these finetunes, of the adapters the last one active, and its tokenizer."""
    from caa import SteeringWrapper, load_model
    from caa.preflight import finetune_problems, model_problems, refuse

    refuse(model_problems(model, dtype, device), finetune_problems(finetunes, model))
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    wrapper = SteeringWrapper(loaded)
    for name, path in finetunes.items():
        wrapper.load_finetune(path, name)
    return wrapper, tokenizer


def finetunes_of(model: str, finetunes: Mapping[str, Path], together: Sequence[str] = ()) -> tuple[str | None, ...]:
    """What `load_wrapper` can run: the base, the adapter whose folder was named as the model, the other finetunes, and
    several adapters `together` ("helpful+positive")."""
    from caa.models.names import adapter_base, adapter_name

    own = [adapter_name(model)] if adapter_base(model) else []
    return None, *own, *finetunes, *together


LONGEST_LINE = 2000
"""Characters of an error that are shown; a library may put a whole file into one."""


def console() -> Any:
    """Where the commands print: no text that a model or a file brings commands the terminal (`plain`)."""
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterator[Any]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

    return PlainConsole(stderr=is_json())


def plain_line(text: str) -> str:
    """Text of anybody's as one line for a terminal."""
    line = plain(" ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def log_plainly() -> None:
    """Log messages as lines of their own, without those that say nothing to a user."""

    class PlainFormatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return plain(super().format(record))

    logging.basicConfig()
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(PlainFormatter("%(message)s"))
    logging.getLogger("caa").setLevel(logging.INFO)
    for name in ("torchao", "torch.utils._pytree"):  # PEFT imports torchao where it is, which says what it cannot load
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each: what files and models say is plain, and where in the code it was, nobody asked."""
    before = warnings.formatwarning
    warnings.formatwarning = _warning_line
    try:
        yield
    finally:
        warnings.formatwarning = before


def _warning_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    kind = "" if issubclass(category, UserWarning) else f"{category.__name__}: "
    return plain(f"caa: {kind}{' '.join(str(message).split())}") + "\n"


_results: ContextVar[list[dict[str, Any]] | None] = ContextVar("results", default=None)


@contextmanager
def as_json() -> Iterator[None]:
    """Tables as one json list on standard output, at the end; what else is said goes to standard error."""
    results: list[dict[str, Any]] = []
    token = _results.set(results)
    try:
        yield
        sys.stdout.write(json.dumps(_without_nan(results), indent=2, ensure_ascii=False) + "\n")
    finally:
        _results.reset(token)


def is_json() -> bool:
    """Whether results are wanted as json."""
    return _results.get() is not None


def _without_nan(value: Any) -> Any:
    """The same for json, which knows no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(table: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of rich; as json its title and these lines, the numbers behind what it prints."""
    results = _results.get()
    if results is None:
        console().print(table)
    else:
        results.append({"title": str(table.title or ""), "lines": [dict(line) for line in lines]})


def interval(name: str, estimate: Any) -> dict[str, float]:
    """The fields of an estimate in json: its mean under a name, and its 95 % interval.

    >>> from caa.reports.statistics import Estimate
    >>> interval("effect", Estimate(0.42, 0.31, 0.53, 20))
    {'effect': 0.42, 'effect low': 0.31, 'effect high': 0.53}
    """
    return {name: estimate.mean, f"{name} low": estimate.low, f"{name} high": estimate.high}


def say(text: str) -> None:
    """Print text as it is: names and paths are data, not markup, and a terminal breaks its lines."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def print_answer(title: str, wrapper: Any, chat: Any, prompt: str, max_new_tokens: int) -> None:
    import torch
    from rich.panel import Panel
    from rich.text import Text

    ids = torch.tensor([chat.encode(prompt)], device=wrapper.model.device)
    written = wrapper.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
    answer = chat.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
    console().print(Panel(Text(answer), title=Text(title)))  # Text: what a model writes is data, not markup


def print_tables(tables: Sequence[Table]) -> None:
    from caa.reports.tables import to_terminal
    from caa.reports.tables.formats.csv import entry_record

    results = _results.get()
    for table in tables:
        if results is None:
            console().print(to_terminal(table))
            continue
        for part in (table, *table.below):
            remarks = {name: list(getattr(part, name)) for name in ("notes", "warnings")}
            headlines, lines = [headline.text for headline in part.headlines], list(map(entry_record, part.entries))
            results.append({"title": part.title, "headlines": headlines, **remarks, "lines": lines})


def print_summary(run: Path) -> None:
    """What the judge of a run was asked, what that took, and what has no score and why; nothing if there is nothing."""
    from caa.judges.summary import judge_summary

    if summary := judge_summary(run):
        say(f"\njudge: {summary}")


def print_as(made: Sequence[Table], format: str) -> None:
    from caa.reports import tables

    if format == "terminal":
        print_tables(made)
    elif format == "csv":
        sys.stdout.write(tables.to_csv(*made))
    else:
        write = {"md": tables.to_markdown, "latex": tables.to_latex}[format]
        sys.stdout.write("\n".join(map(write, made)) + "\n")


def refuse_to_overwrite(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it first")
