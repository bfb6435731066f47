"""What the commands share: a model to work on; saying things, where what a model or a file says is never markup."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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


def console() -> Any:
    from rich.console import Console

    return Console()


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

    for table in tables:
        console().print(to_terminal(table))


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
