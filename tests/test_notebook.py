"""The notebook in docs runs, and what it shows is what running it shows."""

from __future__ import annotations

import re
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def shown(notebook: Any) -> list[list[str]]:
    """For each cell the kinds of its outputs, the richest of each; what libraries warn of is left out.

    A text that is printed in pieces is one output: how it is cut depends on when the kernel sends it.
    """
    kinds = []
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        richest = [max(output.get("data", {output.output_type: ""})) for output in outputs]
        kinds.append([kind for kind, _ in groupby(richest)])
    return kinds


def test_the_notebook_keeps_its_outputs_and_no_path_of_a_machine():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert sum(map(bool, shown(notebook))) >= 6
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search("/(home|root|tmp|Users)/", text)
    for folder in (tempfile.gettempdir(), str(NOTEBOOK.parents[1])):
        assert folder not in text


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_kept(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    kept, notebook = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": tmp_path}}).execute()
    assert shown(notebook) == shown(kept)
    steered = [text for text in map(printed, notebook.cells) if "+0.3:" in text]
    assert len(steered) == 1
    assert len({line.split(":", 1)[1] for line in steered[0].splitlines()[-3:]}) == 3, "steering changes nothing"


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []) if output.get("name") == "stdout")
