"""What the README and docs/*.md tell a reader to type: commands and blocks out, each run as a reader would run it."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caa.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHELL = ("", "bash")


@dataclass(frozen=True)
class Step:
    """A command, a block of Python, or a file to be saved under a name."""

    kind: str
    text: str
    file: str = ""

    def run(self, names: dict[str, Any]) -> None:
        """Do it in the working folder; `names` are those of the page's Python so far."""
        if self.file:
            Path(self.file).write_text(self.text, encoding="utf-8")
        elif self.kind == "python":
            exec(compile(self.text, "page", "exec"), names)
        else:
            _type(shlex.split(self.text, comments=True))


def steps(page: Path) -> Iterator[Step]:
    """What a page has a reader do, in order."""
    for kind, file, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind in SHELL:
            lines = text.replace("\\\n", " ").splitlines()
            yield from (Step("shell", line) for line in lines if shlex.split(line, comments=True))
        else:
            yield Step(kind, text, file)


def _type(words: list[str]) -> None:
    program, *arguments = words
    if program == "caa":
        assert main(arguments) == 0, f"{shlex.join(words)} failed"
    elif program == "python":
        before, sys.argv = sys.argv, arguments
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        finally:
            sys.argv = before
    else:
        raise AssertionError(
            f"{shlex.join(words)}: neither a command that is run here nor on the list of those that are not"
        )
