"""`--json` of every command that prints a table: numbers in fields of their own, never a printed cell."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from test_headlines import PLANTED, rows_of

from caa import SteeringVector
from caa.cli import COMMANDS, main
from caa.runs.rows import append_rows

FEW = ["--limit", "3", "--max-new-tokens", "4"]
WORDS = {
    "extract": ["refusal", "{out}/v.safetensors"],
    "inspect": ["{vector}", "--model", "tiny-chat"],
    "damage": ["refusal", "{vector}", "2", "--doses", "0,0.5", *FEW],
    "robustness": ["refusal", "{vector}", "2", "{out}/robust", "--dose", "0.25", "--limit", "2"],
    "redteam": ["refusal", "{vector}", "2", "{out}/red", "--controls", "1", *FEW],
    "search": ["refusal", "{out}/search", "--vector", "{vector}", "--layers", "2", "--doses", "0.2", "--limit", "8"],
    "grid": ["refusal", "{vector}", "2", "{out}/grid", "--tasks", "ab", "--multipliers", "0,1", *FEW],
    "grid --dry-run": ["refusal", "{vector}", "2", "{out}/dry", "--dry-run", *FEW],
    "run --dry-run": ["embedded", "--out", "{out}/dry", "--dry-run"],
    "report": ["{run}"],
    "runs": ["{run}"],
}
"""Command -> words with which it prints each table that it has."""
LIKE_GRID = ("run", "demo", "compare", "lm-eval", "published")
"""Commands that print what a run's tables say, as grid and report do: the same lines, by the same function."""
NO_TABLE = ("generate", "play", "serve", "export", "finetune", "figures", "data", "import", "push", "completion")
PRINTED = re.compile(r"^[-+x]?[0-9][0-9,.]*$|[0-9] ?[±%]|[0-9] (to|of) [-+.0-9]")


def test_every_command_prints_tables_or_none():
    assert {*(name.partition(" ")[0] for name in WORDS), *LIKE_GRID, *NO_TABLE} == set(COMMANDS)


@pytest.mark.parametrize("text", ["0.42 [0.31 to 0.53]", "+0.2", "1,200", "x1.25", "7%", "3 of 20", ".42 ±.05"])
def test_a_printed_cell_is_known_by_its_looks(text):
    assert PRINTED.search(text)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("json")
    torch.manual_seed(0)
    SteeringVector({layer: torch.randn(192) for layer in range(4)}).save(folder / "vector.safetensors")
    append_rows(folder / "run" / "rows.jsonl", rows_of("patience", PLANTED))
    return {"out": folder, "vector": folder / "vector.safetensors", "run": folder / "run"}


@pytest.mark.parametrize("command", WORDS)
def test_no_number_is_printed_into_a_text(command, places, capsys):
    words = [word.format(**places) for word in WORDS[command]]
    assert main([command.partition(" ")[0], *words, "--json"]) == 0
    lines = [line for table in json.loads(capsys.readouterr().out) for line in table["lines"]]
    numbers = [value for line in lines for value in line.values() if isinstance(value, int | float)]
    assert lines
    assert numbers, "a table without a number"
    fields = [field for line in lines for field in line.items() if field[0] != "reason"]  # which is a sentence
    assert [field for field in fields if _is_printed(field[1])] == []


def _is_printed(value: Any) -> bool:
    return isinstance(value, str) and bool(PRINTED.search(value))
