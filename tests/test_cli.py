"""The `caa` command as a user meets it: quick help, readable errors, and the way from a vector to a table."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest

import caa
from caa import SteeringVector
from caa.cli import COMMANDS, command_parser, main
from caa.cli.parsing import parse
from caa.judges.config import JudgeConfig

CAA = [sys.executable, "-m", "caa.cli"]


def test_help_is_quick_and_names_every_command():
    """Half a second of CPU in all, the interpreter included: no torch, and no parser before a command is chosen."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([*CAA, "--help"], check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(name in shown for name in COMMANDS)
    # Processor time, not the clock's: other work on the machine must not fail this.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    explained = {parameter.arg_name for parameter in docstring_parser.parse(COMMANDS[command].__doc__).params}
    parameters = inspect.signature(COMMANDS[command]).parameters.values()
    assert explained == {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "sycofancy"], "there is no behavior 'sycofancy', did you mean 'sycophancy'?"),
        (["report", "nowhere"], "holds no rows"),
        (["generate", "hello"], "say how to steer"),
        (["generate", "hello", "--steered", "nowhere"], "no steered adapter"),
        (["extract", "sycophancy", "v.safetensors", "--model", "tiny-chta"], "no model 'tiny-chta'"),
        (["extract", "sycophancy", "v.safetensors", "--layers", "99"], "there is no layer 99"),
        (["grid", "sycophancy", "none.safetensors", "1", "out"], "there is no steering vector at none.safetensors"),
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


def wrong_use(arguments, capsys) -> str:
    """What is said of a command line that is none."""
    assert main(arguments) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith("caa: ")
    return shown.removeprefix("caa: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gird"], "there is no command 'gird', did you mean 'grid'?"),
        (["extract", "sycophancy", "out", "--modle", "x"], "there is no option --modle, did you mean '--model'?"),
        (["finetune", "refusal", "positiv", "out"], "direction is one of positive, negative, not 'positiv', did you"),
        (["finetune", "refusal", "positive", "o", "--training.rnk", "4"], "did you mean '--training.rank'?"),
        (["grid", "refusal", "v", "x", "out"], "--layers should be int, not 'x'"),
        (["grid", "refusal", "v", "1", "out", "--tasks"], "--tasks needs a value"),
        (["grid", "refusal", "v", "1", "out", "--tasks", "ab,opne"], "not 'opne', did you mean 'open'?"),
        (["extract", "refusal"], "the following arguments are required: out"),
        (["extract", "refusal", "out", "--dtype", "fp16"], "--dtype is one of auto, float32, bfloat16, float16, not"),
        (["run", "embeded"], "there is no config 'embeded', did you mean 'embedded'?"),
        (["run", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["extract", "--config", "."], ". cannot be read as yaml"),
    ],
)
def test_wrong_use_is_one_line_with_the_cure(arguments, says, capsys):
    assert says in wrong_use(arguments, capsys)


def test_everything_that_is_wrong_in_a_line_is_said_at_once(tmp_path, capsys):
    config = tmp_path / "wrong.yaml"
    config.write_text("behaviour: refusal\nlayres: [1]\n")
    shown = wrong_use(["extract", "--modle", "x", "--tokn", "y", "--config", str(config)], capsys)
    hints = ("--model", "--token", "behavior", "layers")
    assert all(f"did you mean {name!r}?" in shown for name in hints)


def test_a_torn_file_of_settings_is_one_line(tmp_path, capsys):
    config = tmp_path / "torn.yaml"
    config.write_text("out: [1, 2\nx: y")
    assert f"{config} cannot be read as yaml" in wrong_use(["extract", "--config", str(config)], capsys)
    config.write_text("judge: {kind: endpoint, modle: x}\nfacts: facts\n")
    assert "judge: unknown key 'modle', did you mean 'model'?" in wrong_use(["grid", "--config", str(config)], capsys)


GRID = ["grid", "refusal", "v.safetensors"]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["2", "out", "--multipliers", "-1,0,1"], "multipliers", (-1.0, 0.0, 1.0)),
        (["2", "out", "--multipliers", "-1", "0", "1e-1"], "multipliers", (-1.0, 0.0, 0.1)),
        (["2", "out", "--multipliers=[-1, 0, 1]"], "multipliers", (-1.0, 0.0, 1.0)),
        (["--multipliers", "-.5", "--batch-size", "3", "2", "out"], "multipliers", (-0.5,)),
        (["2", "out"], "layers", [2]),
        (["1,2", "out"], "layers", [1, 2]),
        (["[1, 2]", "out"], "layers", [1, 2]),
        (["2", "out", "--tasks", "ab"], "tasks", ("ab",)),
        (["2", "--tasks", "ab,facts", "out"], "tasks", ("ab", "facts")),
        (["2", "out", "--adapters.a-b", "x/y"], "adapters", {"a-b": Path("x/y")}),
        (["2", "out", "--judge.kind", "local", "--judge.model", "m"], "judge", JudgeConfig("local", "m")),
    ],
)
def test_lists_are_read_as_people_type_them(words, field, value):
    arguments = parse(command_parser("grid"), [*GRID[1:], *words])
    assert arguments[field] == value
    assert arguments["out"] == Path("out")


def test_a_negative_number_is_no_option():
    words = ["hello", "--multiplier", "-1e-3", "--system", "- be brief", "--layer", "2"]
    arguments = parse(command_parser("generate"), words)
    assert (arguments["multiplier"], arguments["system"], arguments["layer"]) == (-0.001, "- be brief", 2)


def test_a_path_with_a_colon_is_a_text_in_a_list():
    arguments = parse(command_parser("run"), ["--behaviors", "caa:refusal,my.json", "--out", "x", "--others"])
    assert arguments["behaviors"] == ["caa:refusal", "my.json"]
    assert arguments["others"] is True


def test_version_and_help_stop_there(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"caa {caa.__version__}"
    assert main(["grid", "--help"]) == 0
    assert "--multipliers" in capsys.readouterr().out
    assert main([]) == 2


def test_what_nobody_foresaw_is_one_line_too(monkeypatch, capsys):
    def burst(name: str) -> None:
        """Burst.

        Args:
            name: anything.
        """
        raise ZeroDivisionError("all\nis lost")

    monkeypatch.setitem(COMMANDS, "data", burst)
    assert main(["data", "x"]) == 1
    shown = capsys.readouterr().err
    assert "caa: ZeroDivisionError: all is lost" in shown
    assert "--debug" in shown
    assert "Traceback" not in shown
    with pytest.raises(ZeroDivisionError):
        main(["data", "x", "--debug"])


def test_debug_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="no behavior 'nothing'"):
        main(["data", "nothing", "--debug"])


def test_extract_generate_grid_report(tmp_path, capsys):
    """From a behavior to its tables; what is there already is neither written over nor asked again."""
    vector, run = tmp_path / "vector.safetensors", tmp_path / "run"
    assert main(["extract", "myopic_reward", str(vector), "--layers", "1,2"]) == 0
    assert SteeringVector.load(vector).source.behavior == "myopic_reward"
    assert main(["extract", "myopic_reward", str(vector)]) == 1, "a vector was overwritten"
    assert main(["generate", "Would you wait?", "--vector", str(vector), "--layer", "2", "--multiplier", "2"]) == 0
    assert "myopic_reward x +2, layer 2" in capsys.readouterr().out
    arguments = [
        "grid",
        "myopic_reward",
        str(vector),
        "2",
        str(run),
        "--tasks",
        "ab,facts",
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
    assert "behaviour" in wrong_use(["extract", "--config", str(config)], capsys)


def test_data_lists_and_describes(capsys):
    assert main(["data", "list"]) == 0
    assert "survival_instinct" in capsys.readouterr().out
    assert main(["data", "refusal"]) == 0
    assert "positive letters in pairs" in capsys.readouterr().out


def test_the_module_and_the_script_are_the_same_command():
    script = Path(sys.executable).with_name("caa")
    shown = [subprocess.run([*c, "data", "list"], check=True, capture_output=True).stdout for c in ([str(script)], CAA)]
    assert shown[0] == shown[1]
