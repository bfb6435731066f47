"""The import rule: who may know whom, and no circle anywhere. One line for each room; a test, not a wish."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CAA = Path(__file__).parents[1] / "caa"

GROUND = {"lazy", "suggestions", "files", "hashing", "callables", "comparing", "untrusted", "hub"}
"""Single files that every room may use; they know no room."""
MAY_IMPORT = {
    "data": set(),
    "vectors": set(),
    "models": set(),
    "steering": {"data", "vectors", "models"},
    "runs": {"data"},
    "extraction": {"data", "vectors", "models", "steering"},
    "judges": {"data", "vectors", "models", "steering", "runs"},
    "exports": {"data", "vectors", "models", "steering"},
    "training": {"data", "vectors", "models", "steering"},
    "serve": {"data", "vectors", "models", "steering", "extraction"},
    "reports": {"data", "runs"},
    "evals": {"data", "vectors", "models", "steering", "runs", "extraction", "judges"},
}
# They may know everybody; below them nobody may know them.
TOP = {"lightning", "playground", "cli", "experiment", "run_damage", "gallery", "inspection", "preflight"}
TOP |= {"studies", "__init__", "_moved"}
FILES = sorted(CAA.rglob("*.py"))


def module(path: Path) -> str:
    """The dotted name of a file, without its leading "caa.": "steering.wrapper"; "steering" for its __init__."""
    parts = path.relative_to(CAA).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module(path) for path in FILES}


def imported(path: Path) -> set[str]:
    """The modules of caa that a file imports, anywhere in it, without their leading "caa."."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from caa.data import sources` imports the module sources; `from caa.files import X` the module files.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name.removeprefix("caa.") in MODULES else node.module or "" for name in inner}
    return {name.removeprefix("caa.") for name in names if name.startswith("caa.")}


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_room_knows_only_the_rooms_below_it(path):
    own = room(module(path))
    if own in TOP:
        return
    allowed = GROUND | ({own} | MAY_IMPORT[own] if own not in GROUND else set())
    strangers = {name for name in imported(path) if room(name) not in allowed}
    assert not strangers, f"{module(path)} imports {sorted(strangers)}"


def test_no_two_files_know_each_other():
    """No circle of imports between files, whichever way around and inside a room neither."""
    graph = {module(path): imported(path) for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_nothing_imports_recipes_or_tests():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"recipes", "tests", "benchmarks"}, path


WITHOUT_TORCH = ["caa", "caa.runs.rows", "caa.runs.manifest", "caa.runs.folder"]
WITHOUT_TORCH += ["caa.reports.tables", "caa.cli", "caa.data.behaviors"]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_torch_stays_out(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", script], check=False).returncode, f"{module} imports torch"


def test_the_grid_costs_no_more_than_the_wrapper():
    """torchmetrics brings its parts for texts, audio and plots along; it is for what processes share."""
    script = "import sys; from caa import EvalGrid; sys.exit('torchmetrics' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", script], check=False).returncode


def test_every_public_name_is_there():
    import caa

    for name in caa.__all__:
        assert getattr(caa, name).__doc__, f"caa.{name} has no docstring"
