"""The import rule: who may know whom. One line for each room; a test, not a wish."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CAA = Path(__file__).parents[1] / "caa"

MAY_IMPORT = {
    "data": {"data", "files"},
    "vectors": {"vectors", "files"},
    "steering": {"steering", "data", "vectors", "files"},
    "finetune": {"finetune", "data", "vectors", "steering", "files"},
    "evals": {"evals", "data", "vectors", "steering", "files"},
    "reports": {"reports", "evals.rows", "evals.texts", "files"},
    "exports": {"exports", "data", "vectors", "steering", "files"},
    "lightning": {"lightning", "data", "vectors", "steering", "evals", "files"},
    "playground": {"playground", "data", "vectors", "steering", "files"},
    "files": set(),
}
# They may know everybody, and nobody may know them.
TOP = {"cli", "experiment", "gallery", "inspection", "matching", "__init__"}


def imported(path: Path) -> set[str]:
    """The caa modules that a file imports, anywhere in it, without their leading "caa."."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
    return {name.removeprefix("caa.") for name in found if name.startswith("caa.")}


def room(path: Path) -> str:
    return path.relative_to(CAA).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(CAA.rglob("*.py")), ids=lambda path: str(path.relative_to(CAA)))
def test_a_room_knows_only_the_rooms_below_it(path):
    if room(path) in TOP:
        return
    allowed = MAY_IMPORT[room(path)]
    for name in imported(path):
        assert any(name == room or name.startswith(f"{room}.") for room in allowed), f"{path.name} imports caa.{name}"


def test_nothing_imports_recipes_or_tests():
    for path in CAA.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"recipes", "tests", "benchmarks"}, path


@pytest.mark.parametrize("module", ["caa", "caa.evals.rows", "caa.reports.tables", "caa.cli", "caa.data.behaviors"])
def test_torch_stays_out(module):
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", script], check=False).returncode, f"{module} imports torch"


def test_every_public_name_is_there():
    import caa

    for name in caa.__all__:
        assert getattr(caa, name).__doc__, f"caa.{name} has no docstring"
