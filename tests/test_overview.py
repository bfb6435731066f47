"""Runs beside each other, and results as json: what is in them is what the runs' own tables say."""

from __future__ import annotations

import json

import pytest
from test_headlines import PLANTED, RANDOM, rows_of

from caa.cli import main
from caa.reports.overview import run_folders, summary
from caa.runs.rows import append_rows


@pytest.fixture
def folder(tmp_path):
    append_rows(tmp_path / "first" / "rows.jsonl", rows_of("patience", PLANTED))
    append_rows(tmp_path / "first" / "validation" / "rows.jsonl", rows_of("patience", PLANTED))
    append_rows(tmp_path / "deep" / "second" / "rows.jsonl", rows_of("x|y", PLANTED | {(None, 0.3, RANDOM): -0.4}))
    record = {"settings": {"behaviors": {}}, "notes": {"model": "tiny-chat"}}
    (tmp_path / "first" / "run.json").write_text(json.dumps(record))
    return tmp_path


def test_runs_are_found_at_any_depth_and_their_layer_choice_is_no_run(folder):
    assert run_folders(folder) == [folder / "deep" / "second", folder / "first"]
    with pytest.raises(FileNotFoundError, match="there are no runs"):
        run_folders(folder / "first" / "nowhere")


def test_a_summary_says_where_steering_does_most_and_whether_chance_does(folder):
    best = summary(folder / "first").best["patience", "ab"]
    assert (best.cell.multiplier, best.by_chance) == (0.3, False)
    assert str(best).startswith("+0.2")
    assert summary(folder / "deep" / "second").best["x|y", "ab"].by_chance


def test_the_command_lists_writes_and_gives_json(folder, capsys):
    out = folder / "runs.md"
    assert main(["runs", str(folder), "--out", str(out)]) == 0
    assert "patience" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    assert text.count("Steering moves") == 2
    assert "x\\|y" in text
    assert "a random direction of the same length moves the score as much" in text
    assert main(["runs", str(folder), "--out", str(out)]) == 1, "nothing is overwritten"
    capsys.readouterr()
    assert main(["runs", str(folder), "--json"]) == 0
    [table] = json.loads(capsys.readouterr().out)
    assert [(line["model"], line["rows"]) for line in table["lines"]] == [
        ("unknown model", 280.0),
        ("tiny-chat", 280.0),
    ]


def test_a_report_as_json_has_the_numbers_of_its_csv(folder, capsys):
    assert main(["report", str(folder / "first"), "--json"]) == 0
    table, *below = json.loads(capsys.readouterr().out)
    assert table["headlines"][0].startswith("Steering moves patience from 0.")
    [first] = [line for line in table["lines"] if (line["finetune"], line["multiplier"]) == ("none", 0.0)]
    assert (first["behavior"], first["n"]) == ("patience", 40)
    assert first["mean"] == pytest.approx(0.5, abs=0.02)
    assert {line["quantity"] for line in below[0]["lines"]} == {"effect", "slope", "wrong way"}
    assert main(["--json"]) == 2, "there is no command"
