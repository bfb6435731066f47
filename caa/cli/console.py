"""What the commands share: saying things on a terminal, where what a model or a file says is never markup."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def console() -> Any:
    from rich.console import Console

    return Console()


def print_answer(
    title: str, wrapper: Any, tokenizer: Any, prompt: str, system: str | None, max_new_tokens: int
) -> None:
    import torch
    from rich.panel import Panel
    from rich.text import Text

    from caa.data.rendering import render

    ids = torch.tensor([render(tokenizer, prompt, system=system)], device=wrapper.model.device)
    written = wrapper.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
    answer = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
    console().print(Panel(Text(answer), title=Text(title)))  # Text: what a model writes is data, not markup


def print_tables(tables: list) -> None:
    from caa.reports.tables import to_terminal

    for table in tables:
        console().print(to_terminal(table))


def print_as(made: list, format: str) -> None:
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
