"""The `caa` command as a user meets it: quick help, readable errors, and the way from a vector to a table."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest

from caa import SteeringVector
from caa.cli import COMMANDS, main

CAA = [sys.executable, "-m", "caa.cli"]


def test_help_is_quick_and_names_every_command():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([*CAA, "--help"], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(name in shown for name in COMMANDS)
    # Processor time, not the clock's: other work on the machine must not fail this.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    explained = {found.arg_name for found in docstring_parser.parse(COMMANDS[command].__doc__).params}
    assert explained == set(inspect.signature(COMMANDS[command]).parameters)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "sycofancy"], "there is no behavior 'sycofancy', did you mean 'sycophancy'?"),
        (["report", "nowhere"], "holds no rows"),
        (["generate", "hello"], "say how to steer"),
        (["generate", "hello", "--steered", "nowhere"], "no steered adapter"),
        (["extract", "sycophancy", "v.safetensors", "--model", "tiny-chta"], "no model 'tiny-chta'"),
        (["extract", "sycophancy", "v.safetensors", "--layers", "[99]"], "there is no layer 99"),
        (["grid", "sycophancy", "none.safetensors", "[1]", "out"], "there is no steering vector at none.safetensors"),
    ],
)
def test_an_error_is_one_readable_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("caa: ")
    assert says in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_a_typo_in_an_option_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["extract", "sycophancy", "out", "--modle", "tiny-chat"])
    assert stop.value.code == 2
    assert "--modle" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="no behavior 'nothing'"):
        main(["data", "nothing", "--debug"])


def test_extract_generate_grid_report(tmp_path, capsys):
    """From a behavior to its tables; what is there already is neither written over nor asked again."""
    vector, run = tmp_path / "vector.safetensors", tmp_path / "run"
    assert main(["extract", "myopic_reward", str(vector), "--layers", "[1, 2]"]) == 0
    assert SteeringVector.load(vector).source.behavior == "myopic_reward"
    assert main(["extract", "myopic_reward", str(vector)]) == 1, "a vector was overwritten"
    assert main(["generate", "Would you wait?", "--vector", str(vector), "--layer", "2", "--multiplier", "2"]) == 0
    assert "myopic_reward x +2, layer 2" in capsys.readouterr().out
    arguments = [
        "grid",
        "myopic_reward",
        str(vector),
        "[2]",
        str(run),
        "--tasks",
        "[ab, facts]",
        "--random_controls",
        "1",
    ]
    assert main(arguments) == 0
    rows = (run / "rows.jsonl").read_text()
    assert main(arguments) == 0
    assert (run / "rows.jsonl").read_text() == rows, "a finished grid asked something again"
    capsys.readouterr()
    assert main(["report", str(run), "--format", "terminal"]) == 0
    shown = capsys.readouterr().out
    assert "myopic_reward" in shown
    assert "random x1" in shown


def test_a_config_file_is_the_signature(tmp_path, capsys):
    config = tmp_path / "extract.yaml"
    config.write_text(f"behavior: refusal\nout: {tmp_path / 'v.safetensors'}\nlayers: [1]\n")
    assert main(["extract", "--config", str(config)]) == 0
    assert SteeringVector.load(tmp_path / "v.safetensors").layers == [1]
    config.write_text(config.read_text() + "behaviour: refusal\n")
    with pytest.raises(SystemExit):
        main(["extract", "--config", str(config)])
    assert "behaviour" in capsys.readouterr().err


def test_data_lists_and_describes(capsys):
    assert main(["data", "list"]) == 0
    assert "survival_instinct" in capsys.readouterr().out
    assert main(["data", "refusal"]) == 0
    assert "positive letters in pairs" in capsys.readouterr().out


def test_the_module_and_the_script_are_the_same_command():
    script = Path(sys.executable).with_name("caa")
    shown = [subprocess.run([*c, "data", "list"], check=True, capture_output=True).stdout for c in ([str(script)], CAA)]
    assert shown[0] == shown[1]
