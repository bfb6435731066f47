"""The `caa` command as a user meets it: quick help, readable errors, and the way from a vector to a table."""

from __future__ import annotations

import inspect
import json
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import docstring_parser
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from tiny import tiny_lora, tiny_model

import caa
from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.cli import COMMANDS, command_parser, main
from caa.cli.parsing import parse
from caa.data.sources import load_facts
from caa.judges.clients.protocol import Reply
from caa.judges.config import JudgeConfig
from caa.runs.rows import Cell, Row, append_rows, read_rows
from caa.vectors.vector import Provenance

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
        (["finetune", "refusal", "positiv", "out"], "direction is one of positive, negative, data, not 'positiv', did"),
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


def test_settings_are_printed_as_a_file_that_is_read_again(tmp_path, capsys):
    arguments = ["grid", "refusal", "v.safetensors", "2", "out", "--tasks", "ab", "--print-config"]
    assert main(arguments) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["behavior"], printed["layers"], printed["tasks"]) == ("refusal", [2], ["ab"])
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(printed))
    assert parse(command_parser("grid"), ["--config", str(tmp_path / "grid.yaml")])["layers"] == [2]


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
    assert str(vector) in capsys.readouterr().out, "a path is shown as it is, not as markup"
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


@pytest.fixture
def vector(tmp_path) -> Path:
    """A file with a direction of tiny-chat's width at two layers; that at layer 1 is a hundred times as long."""
    path = tmp_path / "vector.safetensors"
    direction = torch.randn(192, generator=torch.Generator().manual_seed(0))
    SteeringVector({1: 100 * direction, 2: direction}, Provenance(behavior="refusal")).save(path)
    return path


def test_a_grid_on_the_folder_of_an_adapter_asks_its_base_and_the_adapter(tmp_path, vector):
    model, _ = load_model("tiny-chat")
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    lora = get_peft_model(model, config)
    lora.peft_config["default"].base_model_name_or_path = "tiny-chat"
    lora.save_pretrained(tmp_path / "mine", save_embedding_layers=False)
    options = ["--tasks", "ab", "--limit", "2", "--multipliers", "0"]
    arguments = [
        "grid",
        "refusal",
        str(vector),
        "2",
        str(tmp_path / "run"),
        "--model",
        str(tmp_path / "mine"),
        *options,
    ]
    assert main(arguments) == 0
    scores = {row.cell.finetune: row.score for row in read_rows(tmp_path / "run" / "rows.jsonl")}
    assert scores.keys() == {None, "mine"}
    assert scores[None] != scores["mine"]


def complaints(arguments, capsys) -> list[str]:
    """The lines that a command complains in, before it has loaded any weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caa.models.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
        assert main(arguments) == 1
    return [line.removeprefix("caa: ") for line in capsys.readouterr().err.splitlines()]


def test_a_grid_of_settings_alone(tmp_path, vector, capsys):
    (tmp_path / "settings.yaml").write_text("zero-out: {layer: 2, operator: ablate}\n")
    words = ["grid", "myopic_reward", str(vector), "[]", str(tmp_path / "run"), "--tasks", "ab", "--limit", "3"]
    assert main([*words, "--settings", str(tmp_path / "settings.yaml")]) == 0
    assert {row.cell.setting for row in read_rows(tmp_path / "run" / "rows.jsonl")} == {"", "zero-out"}
    assert "zero-out" in capsys.readouterr().out
    (tmp_path / "settings.yaml").write_text("zero-out: {layer: 77, source_layer: 2}\n")
    [complaint] = complaints([*words, "--settings", str(tmp_path / "settings.yaml")], capsys)
    assert "there is no layer 77" in complaint


def test_a_grid_names_everything_that_would_stop_it_at_once(tmp_path, vector, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "file").write_text("")
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"pairs": [{"question": "q", "positive": "x", "negative": "y"}]}))
    arguments = ["grid", str(bare), str(vector), "2,77", str(tmp_path / "file"), "--adapters.mine", "nowhere"]
    arguments += ["--device", "cuda:7", "--judge.kind", "endpoint", "--judge.model", "m", "--multipliers", "1,1"]
    wrong = complaints(arguments, capsys)
    expected = [
        "file is a file, so no run can be kept",
        "there is no device cuda:7 on this machine",
        "there is no layer 77: tiny-chat has layers 0 to 5",
        "no direction for layer 77",
        "nowhere is neither an adapter nor a checkpoint",
        "has no ab_questions",
        "has no open_questions",
        'has no "rubric"',
        "the judge has no key",
        "multipliers, each once",
    ]
    assert [line for line, part in zip(wrong, expected, strict=True) if part not in line] == []


def test_a_vector_and_an_adapter_of_another_model_are_refused_before_it_is_loaded(tmp_path, capsys):
    narrow = tmp_path / "narrow.safetensors"
    SteeringVector({2: torch.ones(32)}, Provenance()).save(narrow)
    tiny_lora(tiny_model()).save_pretrained(tmp_path / "lora", selected_adapters=["sft"])
    arguments = ["grid", "refusal", str(narrow), "2", str(tmp_path / "run"), "--tasks", "ab"]
    wide, lora = complaints([*arguments, "--adapters.mine", str(tmp_path / "lora" / "sft")], capsys)
    assert "the vector is 32 wide, and the residual stream of tiny-chat 192" in wide
    assert "does not fit tiny-chat: LoRA on" in lora
    assert "did you mean 'tiny-chat'" in complaints([*arguments, "--model", "tiny-caht"], capsys)[0]


def test_a_judge_whose_server_is_not_there_is_refused_at_once(tmp_path, vector, capsys):
    words = ["--judge.kind", "endpoint", "--judge.model", "m", "--judge.base_url", "http://127.0.0.1:9/v1"]
    (line,) = complaints(["grid", "refusal", str(vector), "2", str(tmp_path / "run"), *words], capsys)
    assert "http://127.0.0.1:9/v1 takes up no connection" in line


@pytest.mark.parametrize("command", ["run", "demo"])
def test_an_experiment_names_everything_that_would_stop_it_at_once(command, tmp_path, capsys):
    few = tmp_path / "few.json"
    few.write_text(json.dumps({"pairs": [{"question": "q?", "positive": "yes", "negative": "no"}]}))
    name = ["--behaviors", str(few), "--layer", "9"] if command == "run" else ["--behavior", str(few), "--layer", "9"]
    wrong = complaints([command, *name, "--out", str(tmp_path / "run"), "--multipliers", "1,1"], capsys)
    parts = ["no layer 9", "each once", "no ab_questions", "no open_questions", "1 examples", "exemplar judge"]
    assert [line for line, part in zip(wrong, parts, strict=True) if part not in line] == []
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_rows_that_the_run_then_adds(tmp_path, vector, capsys):
    arguments = ["grid", "refusal", str(vector), "1,2", str(tmp_path / "run"), "--tasks", "ab", "--limit", "3"]
    arguments += ["--multipliers", "-.01,0,.01", "--random-controls", "1"]
    for expected in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("caa.models.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
            assert main([*arguments, "--dry-run"]) == 0
        planned = int(capsys.readouterr().out.split(" rows would be added")[0].split()[-1])
        assert bool(planned) == expected
        if expected:
            assert main(arguments) == 0
            assert len(read_rows(tmp_path / "run" / "rows.jsonl")) == planned == 3 * (2 + 2 * 2 * 2)
            capsys.readouterr()


def test_a_dry_run_of_a_config_counts_layer_choice_and_questions(tmp_path, capsys):
    assert main(["run", "embedded", "--dry-run", "--limit", "2", "--out", str(tmp_path / "x")]) == 0
    shown = capsys.readouterr().out
    choice = 7 * 2 * (6 + 6 * 2 * 7)  # behaviors x questions x (layers unsteered + layers x signs x vectors)
    asked = 3 * 7 * 2 * 3 * (3 + 2 * 3)  # tasks x behaviors x questions x finetunes x (multipliers + signs of controls)
    assert f"{choice + asked:,} rows would be added" in shown
    assert "14 finetunes would be trained" in shown
    assert not (tmp_path / "x").exists()


def test_a_dose_is_the_same_share_of_the_stream_at_every_layer(tmp_path, vector, capsys):
    """Of a vector that is a hundred times as long at layer 1 as at layer 2; a quarter if nobody says."""
    for words, doses in (([], {-0.25, 0, 0.25}), (["--doses", "-0.1,0"], {-0.1, 0})):
        out = tmp_path / f"run{len(words)}"
        arguments = ["grid", "refusal", str(vector), "1,2", str(out), "--tasks", "ab", "--limit", "2", *words]
        assert main(arguments) == 0
        assert {row.cell.multiplier for row in read_rows(out / "rows.jsonl")} == doses
        notes = json.loads((out / "run.json").read_text())["notes"]
        assert notes["doses"]["refusal"] == pytest.approx({"1": 1, "2": 1}, rel=1e-3)
        checks = notes["vectors"]["refusal"]["checks"]
        shown = capsys.readouterr().out
        for layer in (1, 2):
            factor = checks[f"layer {layer}: multiplier of dose 1"]
            assert f"{layer}: {factor:.4g}" in shown
    plain = tmp_path / "plain"
    amount = str(-0.1 * factor)
    arguments = ["grid", "refusal", str(vector), "2", str(plain), "--tasks", "ab", "--limit", "2"]
    assert main([*arguments, f"--multipliers={amount}"]) == 0
    by_dose = {
        row.question: row.score for row in read_rows(out / "rows.jsonl") if row.cell.layer == 2 and row.cell.multiplier
    }
    by_multiplier = {row.question: row.score for row in read_rows(plain / "rows.jsonl")}
    assert by_dose == pytest.approx(by_multiplier, abs=1e-4)
    assert main([*arguments, "--multipliers", "1", "--doses", "1"]) == 1
    assert "two units of one thing" in capsys.readouterr().err


def test_a_share_that_is_taken_out_is_no_dose(vector, capsys):
    words = ["generate", "Hi", "--vector", str(vector), "--layer", "2", "--operator", "ablate"]
    assert main([*words, "--dose", "0.3"]) == 1
    assert "ablate takes a share of the direction out and knows no dose" in capsys.readouterr().err


def test_generate_takes_a_dose(vector, capsys):
    words = ["generate", "Hi?", "--vector", str(vector), "--layer", "2", "--max-new-tokens", "1"]
    assert main([*words, "--dose", "-0.5"]) == 0
    shown = capsys.readouterr().out
    amount = float(shown.partition("multiplier ")[2].partition(":")[0])
    assert "a dose of -0.5, the push beside the residual stream at layer 2" in shown
    assert f"refusal x {amount:+g}, layer 2" in shown
    assert main(words) == 0
    half = float(capsys.readouterr().out.partition("multiplier ")[2].partition(":")[0])
    assert half == pytest.approx(-amount / 2, rel=0.01)


def test_extract_says_what_a_vector_is_made_of(tmp_path, capsys):
    assert main(["extract", "refusal", str(tmp_path / "v.safetensors"), "--layers", "1,2"]) == 0
    shown = capsys.readouterr().out
    assert "mean difference of 300 pairs: 150 (A), 150 (B)" in shown
    assert "letter norm" in shown
    assert "dose of" in shown


# What steering does besides.


def open_row(multiplier: float, number: int, text: str) -> Row:
    evidence = {"asked": f"Question {number}?", "text": text, "reason": ""}
    return Row(Cell("refusal", "open", None, 2, multiplier), str(number), 5.0, evidence)


def test_steered_answers_are_compared_with_unsteered_ones(tmp_path, capsys, monkeypatch):
    """A judge that likes one of two answers says 10 of it, whichever comes first."""
    rows = [open_row(m, n, "no, I will not do that" if m else "yes, I will") for m in (0.0, 1.0) for n in range(3)]
    append_rows(tmp_path / "rows.jsonl", rows)

    class Refuser:
        settings: ClassVar[dict[str, str]] = {}

        def __call__(self, prompts):
            second = [prompt.rindex("I will not") > prompt.rindex("yes, I will") for prompt in prompts]
            return [Reply("2" if last else "1", {"2" if last else "1": 1.0}) for last in second]

    monkeypatch.setattr("caa.judges.build.make_asker", lambda config, folder: Refuser())
    assert main(["compare", str(tmp_path), "--judge.kind", "local", "--judge.model", "tiny-chat"]) == 0
    compared = read_rows(tmp_path / "pairwise" / "rows.jsonl")
    assert [(row.cell.task, row.cell.multiplier, row.score) for row in compared] == [("pairwise", 1.0, 10.0)] * 3
    assert "5 for a tie" in capsys.readouterr().out.replace("\n", " ")
    assert main(["compare", str(tmp_path)]) == 1
    assert "--judge.kind endpoint or local" in capsys.readouterr().err


def test_damage_grows_with_the_dose(vector, capsys):
    words = ["--doses", "0,1,8", "--limit", "3", "--max-new-tokens", "8"]
    assert main(["damage", "refusal", str(vector), "2", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("+")]
    assert [float(line[0]) for line in lines] == [0, 1, 8]
    none, some, much = (float(line[-1]) for line in lines)
    assert none == 0 < some < much


@pytest.mark.slow
def test_a_task_of_the_harness_on_the_live_model(tmp_path, vector, capsys):
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    docs = [{"question": f"{n}?", "choices": ["owl", "bat"], "answer": n % 2} for n in range(4)]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)), encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    words = ["--vector", str(vector), "--layer", "2", "--multipliers", "0,1", "--limit", "3"]
    arguments = ["lm-eval", "tiny_choice", str(tmp_path / "run"), "--task-folder", str(tmp_path / "tasks"), *words]
    assert main(arguments) == 0
    rows = read_rows(tmp_path / "run" / "rows.jsonl")
    assert sorted(row.cell.multiplier for row in rows) == [0.0] * 3 + [1.0] * 3
    assert "tiny_choice" in capsys.readouterr().out
    assert main(arguments) == 1, "rows were written over"
    assert main(["lm-eval", "tiny_choice", str(tmp_path / "other"), "--vector", str(vector), "--layer", "2"]) == 1
    assert "say how to steer" in capsys.readouterr().err, "nobody chose a multiplier"


def test_public_benchmarks_are_knowledge_questions(tmp_path):
    mmlu = [{"question": "Which flies?", "choices": ["owl", "cow", "cat", "dog"], "answer": 0, "subject": "birds"}]
    truth = [{"question": "Do pigs fly?", "best_answer": "No", "incorrect_answers": ["Yes"], "category": "pigs"}]
    for name, records, right in (("mmlu", mmlu, "owl"), ("truthfulqa", truth, "No")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        (question,) = load_facts(path)
        assert f"{question.matching} {right}" in question.text
        assert question.category in ("birds", "pigs")
    path.write_text(json.dumps({"question": "q", "incorrect_answers": ["Yes"]}), encoding="utf-8")
    with pytest.raises(ValueError, match="one of its records is broken"):
        load_facts(path)


def test_a_shell_is_told_commands_and_options(capsys):
    pytest.importorskip("shtab", reason="needs the extra completion")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*COMMANDS, "--dry-run", "--judge.base-url", "--random-controls"))
    assert not subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode
    assert main(["completion", "bsh"]) == 1


def test_a_config_file_is_the_signature(tmp_path, capsys):
    config = tmp_path / "extract.yaml"
    config.write_text(f"behavior: refusal\nout: {tmp_path / 'v.safetensors'}\nlayers: [1]\n")
    assert main(["extract", "--config", str(config)]) == 0
    assert SteeringVector.load(tmp_path / "v.safetensors").layers == [1]
    config.write_text(config.read_text() + "behaviour: refusal\n")
    capsys.readouterr()
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


# What the chat template is told


class Shown(BaseException):
    """Stops a command where it first shows a prompt to a model."""


SHOWS = {
    "demo": ["--out", "{out}"],
    "run": ["embedded", "--out", "{out}"],
    "extract": ["refusal", "{out}"],
    "search": ["refusal", "{out}"],
    "robustness": ["refusal", "{vector}", "2", "{out}", "--multiplier", "1"],
    "redteam": ["refusal", "{vector}", "2", "{out}"],
    "finetune": ["refusal", "positive", "{out}"],
    "grid": ["refusal", "{vector}", "2", "{out}", "--limit", "1", "--multipliers", "0,1", "--tasks", "ab"],
    "generate": ["Hi?", "--vector", "{vector}", "--layer", "2", "--multiplier", "1"],
    "play": ["--out", "{out}"],
    "serve": ["--port", "0"],
    "damage": ["refusal", "{vector}", "2", "--limit", "1"],
    "lm-eval": ["tiny_choice", "{out}", "--chat", "true"],
    "export": ["{steered}", "--to", "peft-alora", "--out", "{out}"],
    "compare": ["{run}", "--judge.kind", "local", "--judge.model", "tiny-chat"],
}
"""Command -> the words with which it shows a model a prompt."""
SHOWS_NONE = ("report", "figures", "runs", "published", "data", "import", "push", "inspect", "completion")
DOSES = {
    "grid": ["refusal", "{vector}", "2", "{out}", "--limit", "1"],
    "generate": SHOWS["generate"][:5],
    "robustness": SHOWS["robustness"][:4],
}
"""Words with which the residual stream of the prompts is measured first."""


def test_every_command_shows_a_model_prompts_or_does_not():
    assert {*SHOWS, *SHOWS_NONE} == set(COMMANDS)


def first_arguments(command: str, words: list[str], places: dict, monkeypatch) -> dict:
    """What the chat template is told when the command first renders a prompt."""

    def stop(self, conversation, *arguments, **told):
        raise Shown(told)

    @contextmanager
    def opened(session, port, longest):
        session._prompt([{"role": "user", "content": "Hello?"}], "")
        yield "http://127.0.0.1"

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.apply_chat_template", stop)
    monkeypatch.setattr("caa.playground.server.serving", opened)
    monkeypatch.setattr("caa.evals.lm_eval.harness_rows", lambda *given, **more: given[1].encode("Hello?"))
    told = ["--template-arguments.mood", "calm"]
    if command == "compare":
        told = ["--judge.template-arguments", '{"mood": "calm"}']
    with pytest.raises(Shown) as shown:
        main([command, *(word.format(**places) for word in words), *told])
    return shown.value.args[0]


@pytest.fixture
def places(tmp_path, vector, request) -> dict:
    places = {"out": tmp_path / "out", "vector": vector, "steered": tmp_path / "steered", "run": tmp_path / "run"}
    if request.node.callspec.params.get("command") == "export":
        model, _ = load_model("tiny-chat")
        SteeringWrapper(model, Intervention(SteeringVector.load(vector), 2)).save_pretrained(places["steered"])
    append_rows(places["run"] / "rows.jsonl", [open_row(m, 1, "no" if m else "yes") for m in (0.0, 1.0)])
    return places


@pytest.mark.parametrize("command", SHOWS)
def test_template_arguments_reach_every_prompt_that_a_command_shows(command, places, monkeypatch):
    if command == "lm-eval":
        pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    assert first_arguments(command, SHOWS[command], places, monkeypatch)["mood"] == "calm"


@pytest.mark.parametrize("command", DOSES)
def test_template_arguments_reach_the_prompts_by_which_a_push_is_measured(command, places, monkeypatch):
    assert first_arguments(command, DOSES[command], places, monkeypatch)["mood"] == "calm"
