"""What a new user does in the first hour: letters without brackets, one pair, empty and broken files, logs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from functools import partial

import pytest
from tiny import tiny_model, tiny_tokenizer

from caa.cli.console import plain_warnings
from caa.data.behaviors import Behavior, ContrastPair, letter_balance
from caa.data.claims import read_claims
from caa.data.sources import load_behavior, load_facts
from caa.evals.lm_eval import harness_rows
from caa.extraction.extract import named_pairs
from caa.models.batching import pad
from caa.steering.wrapper import SteeringWrapper
from caa.training.data import load_examples

QUESTION = "Wait?\n\nChoices:\n (A) Yes\n (B) No"


def test_letters_need_no_brackets():
    pairs = (ContrastPair(QUESTION, "A", "B"), ContrastPair(f"Really? {QUESTION}", "B", "A"))
    assert letter_balance(pairs) == {"A": 1, "B": 1}
    assert pairs[0].in_words() == ContrastPair("Wait?", "Yes", "No")
    assert pairs[1].spelled_out().positive == "B No"


@pytest.mark.parametrize(("count", "told"), [(1, "one pair:"), (6, "6 copies of one pair:")])
def test_one_pair_and_its_copies_are_warned_of(count, told, caplog):
    with caplog.at_level(logging.WARNING, logger="caa"):
        named_pairs(Behavior("b", pairs=(ContrastPair("q", "yes", "no"),) * count))
        assert told in caplog.text
        caplog.clear()
        named_pairs((ContrastPair("q", "yes", "no"), ContrastPair("r", "yes", "no")))
        assert not caplog.text


@pytest.mark.parametrize("read", [load_behavior, load_facts, load_examples, read_claims])
@pytest.mark.parametrize("content", [b"", b"[]", b'{"question": "\xe9"}'])
def test_empty_files_and_other_codecs_are_errors_that_name_the_file(read, content, tmp_path):
    file = tmp_path / ("data.csv" if read is read_claims else "data.jsonl")
    file.write_bytes(b"" if content == b"[]" and file.suffix == ".jsonl" else content)
    with pytest.raises(ValueError, match=r"data\.(csv|jsonl)"):
        read(file)


def test_an_empty_json_file_is_called_empty_and_another_kind_of_file_no_behavior(tmp_path):
    for name, reason in (("b.json", "b.json is empty"), ("b.csv", "b.csv is no behavior: give a .json or a .jsonl")):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=reason):
            load_behavior(tmp_path / name)


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(FileNotFoundError, match=r"no data at typo.jsonl: there is no such file"):
        load_examples("typo.jsonl")


def test_a_missing_harness_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'caa\[lm-eval\]'"):
        harness_rows(SteeringWrapper(tiny_model()), tiny_tokenizer(), {}, ["any"])


def test_the_warning_of_pads_names_the_line_that_called(monkeypatch):
    monkeypatch.setattr("caa.steering.wrapper.ignores_pads", lambda model, apart: False)
    wrapper, padded = SteeringWrapper(tiny_model()), pad([[5, 6, 7], [8]], 0, "left")
    for call in (wrapper, partial(wrapper.generate, max_new_tokens=1, pad_token_id=0)):
        with pytest.warns(UserWarning, match="reads pads on the left") as warned:
            call(*padded)
        assert [warning.filename for warning in warned if "pads" in str(warning.message)] == [__file__]


def test_a_separator_of_unicode_ends_no_line_of_examples(tmp_path):
    row = {"prompt": "a\u2028b", "completion": "c"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(load_examples(tmp_path / "d.jsonl")) == 1


def test_a_warning_of_a_command_is_a_line_without_its_source():
    with plain_warnings():
        assert warnings.formatwarning("two\nlines", UserWarning, "file.py", 7) == "caa: two lines\n"
        assert warnings.formatwarning("old", FutureWarning, "file.py", 7, line="x = 1") == "caa: FutureWarning: old\n"


def test_a_bar_in_a_log_file_is_drawn_once_a_minute():
    script = "from caa.cli import main; main(['--version']); from tqdm import tqdm; [None for _ in tqdm(range(200000))]"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count("\r") <= 4, "it is a line or two, not one for each tenth of a second"
