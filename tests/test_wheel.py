"""The embedded models and data are found from an installed wheel as from a clone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_installed_wheel_brings_the_models_and_the_data(tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 30e6
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.relative_to(ROOT / "caa") for path in (ROOT / "caa").rglob("*.py")} <= {
        path.relative_to(site / "caa") for path in (site / "caa").rglob("*.py")
    }, "a file that .gitignore names stays out of wheels"
    for typed in ("py.typed", "__init__.pyi"):
        assert (site / "caa" / typed).exists(), "type checkers see nothing of an installed package without it"
    script = (
        "import caa\n"
        "from caa.models.names import model_name\n"
        "behavior = caa.load_behavior('refusal')\n"
        "for name in ('tiny-chat', 'tiny-base'):\n"
        "    model, tokenizer = caa.load_model(name)\n"
        "    assert model_name(model) == name\n"
        "    caa.extract(model, tokenizer, behavior.pairs[:2])\n"
        "print(caa.__file__)"
    )
    environment = {"PYTHONPATH": str(site), "PATH": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()).is_relative_to(site), "the clone was used, not the wheel"
    listed = [sys.executable, "-m", "caa.cli", "run", "--list"]
    shown = subprocess.run(listed, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    names = [line.split()[0] for line in shown.splitlines()]
    assert names == [path.stem for path in sorted((ROOT / "caa" / "configs").glob("*.yaml"))]
    config = [sys.executable, "-m", "caa.cli", "run", "embedded", "--out", "x", "--print_config"]
    printed = subprocess.run(config, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert "random_controls: 3" in printed
    assert "out: x" in printed
