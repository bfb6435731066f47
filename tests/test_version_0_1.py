"""What version 0.1 wrote is read, continued and reported: a run folder, vectors, a steered adapter (tests/data/v01)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from caa import Behavior, EvalGrid, SteeringVector, SteeringWrapper, load_behavior, load_model
from caa.judges.base import Verdict
from caa.reports.pages.html import write_html
from caa.reports.tables import write_report
from caa.runs.rows import OWN, Row, VectorRef, read_rows
from caa.steering.intervention import Intervention

V01 = Path(__file__).parent / "data" / "v01"
VECTOR, REFUSAL, REREAD = (SteeringVector.load(V01 / f"{n}.safetensors") for n in ("vector", "refusal", "reread"))


def by_length(question, answer: str) -> Verdict:
    """As the judge of make.py, by whose name the record calls it."""
    return Verdict(float(len(answer) % 11)) if len(answer) % 4 else Verdict(None, "a multiple of four")


@pytest.fixture(scope="module")
def tiny_chat():
    return load_model("tiny-chat")


def continue_run(tiny_chat, out: Path, **changes) -> int:
    """Run the grid of make.py again in this folder, with other settings where given; how many rows it added."""
    whole = load_behavior("myopic_reward")
    behavior = Behavior("few", ab_questions=whole.ab_questions[:4], open_questions=whole.open_questions[:2])
    model, tokenizer = tiny_chat
    wrapper = SteeringWrapper(model)
    wrapper.load_adapter(V01 / "adapter", "sft")
    settings = {
        "behavior": behavior,
        "vector": VECTOR,
        "layers": [1, 2],
        "multipliers": (-0.3, 0.0, 0.3),
        "finetunes": (None, "sft"),
        "judge": by_length,
        "random_controls": 1,
        "also": {"refusal": REFUSAL},
        "reread": {"sft": REREAD},
        "max_new_tokens": 8,
    }
    try:
        return EvalGrid(**settings | changes).run(wrapper, tokenizer, out, progress=False)
    finally:
        wrapper.unload_adapters()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(V01 / "run", tmp_path / "run"))


def test_rows_are_read_as_they_were_meant():
    rows = read_rows(V01 / "run" / "rows.jsonl")
    assert len(rows) == 192
    assert {row.cell.finetune for row in rows} == {None, "sft"}
    others = {VectorRef("other", "refusal"), VectorRef("random", "0")}
    assert {row.cell.vector for row in rows if row.cell.finetune is None} == {OWN, *others}
    assert {row.cell.vector for row in rows if row.cell.finetune == "sft"} == {OWN, VectorRef("reread"), *others}


def test_a_complete_run_is_asked_nothing_and_its_record_goes_on(tiny_chat, run):
    before = json.loads((run / "run.json").read_text())
    assert continue_run(tiny_chat, run) == 0
    after = json.loads((run / "run.json").read_text())
    assert after["version"] == 2
    assert "version" not in before
    old, new = (record["settings"]["behaviors"]["few"] for record in (before, after))
    for task in ("ab", "open"):
        assert new[task].pop("shown"), "the record says now what the model was shown"
    same = {"reread" if key == "own" else key: value for key, value in old.items()}
    assert new == {"site": "block output", "settings": {}, **same}
    assert {k: v for k, v in after["settings"].items() if k not in ("behaviors", "template_arguments")} == {
        k: v for k, v in before["settings"].items() if k != "behaviors"
    }


def test_what_is_missing_of_a_run_is_added_and_nothing_else(tiny_chat, run):
    lines = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text("".join(line for n, line in enumerate(lines) if n % 5))
    dropped = [Row.from_json(line) for line in lines[::5]]
    assert {row.cell.vector.kind for row in dropped} == {"own", "reread", "other", "random"}
    assert continue_run(tiny_chat, run) == len(dropped) == 39
    added = {row.key: row for row in read_rows(run / "rows.jsonl")[-39:]}
    assert added.keys() == {row.key for row in dropped}
    for row in dropped:
        assert added[row.key].score == (None if row.score is None else pytest.approx(row.score, rel=1e-4))
        assert added[row.key].evidence.get("text") == row.evidence.get("text")
    assert continue_run(tiny_chat, run) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reread": {"sft": REFUSAL}}, r"few\.reread\.sft was 'cc3e963a5d57edfb' and is now"),
        ({"also": {"refusal": REREAD}}, r"few\.also\.refusal was"),
        ({"vector": REREAD}, r"few\.vector was"),
        ({"max_new_tokens": 9}, r"open\.max_new_tokens was 8 and is now 9"),
    ],
)
def test_what_was_measured_otherwise_is_not_mixed_with(tiny_chat, run, changes, message):
    with pytest.raises(FileExistsError, match=message):
        continue_run(tiny_chat, run, **changes)
    assert len(read_rows(run / "rows.jsonl")) == 192


@pytest.mark.parametrize("name", ["caa", "own", "random-0"])
def test_a_run_in_which_names_were_mixed_up_is_not_continued(tiny_chat, run, name):
    record = json.loads((run / "run.json").read_text())
    record["settings"]["behaviors"]["few"]["also"][name] = "cf9ed392d4668c8a"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"version 0.1 took the vector called '{name}' for one of its own"):
        continue_run(tiny_chat, run)


def test_its_report_says_the_same_numbers(run):
    expected = pd.read_csv(run / "tables.csv")
    write_report(run)
    lines = pd.read_csv(run / "tables.csv")
    pd.testing.assert_frame_equal(
        lines[~lines.quantity.isin(["warning", "headline"])][expected.columns], expected, check_dtype=False
    )
    assert "random x1" in write_html(run).read_text()


def test_a_steered_adapter_steers_as_it_did(tiny_chat):
    model, tokenizer = tiny_chat
    ids = torch.tensor([tokenizer.encode("Would you rather wait?")])
    wrapper = SteeringWrapper(model)
    wrapper.load_adapter(V01 / "adapter", "sft")
    with torch.no_grad(), wrapper.finetune("sft"):
        finetuned = wrapper(ids).logits
        with wrapper.steer(Intervention(VECTOR, 2, 0.3)):
            expected = wrapper(ids).logits
    wrapper.unload_adapters()
    loaded = SteeringWrapper.from_pretrained(V01 / "steered", wrapper.model, tokenizer)
    with torch.no_grad():
        logits = loaded(ids).logits
    loaded.unsteer()
    loaded.unload_adapters()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - finetuned).abs().max() > 1e-2
