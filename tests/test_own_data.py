"""Finetunes on data of one's own: what is read of files, folders and the Hub, and that it is taught as it is asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from caa.cli import main
from caa.data.behaviors import Conversation
from caa.data.chat import ChatFormat
from caa.training.data import load_examples
from caa.training.examples import Example, tokenize, training_examples
from caa.training.sft import finetune, finetune_on
from tests.test_finetune import TINY, patience
from tests.tiny import tiny_model, tiny_tokenizer

SAID = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Wait?"},
    {"role": "assistant", "content": "I wait."},
    {"role": "user", "content": "Still?"},
    {"role": "assistant", "content": "Yes."},
]


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_answer_of_a_conversation_is_learnt_behind_what_was_said_before(tmp_path: Path) -> None:
    examples = load_examples(written(tmp_path / "a.jsonl", {"messages": SAID}))
    assert [example.answer for example in examples] == ["I wait.", "Yes."]
    chat = ChatFormat(tiny_tokenizer())
    for row, end in zip(tokenize(chat, examples), (3, 5), strict=True):
        assert row["input_ids"] == [*chat.encode_chat(SAID[:end]), 2]
        prompt = chat.encode_chat(SAID[: end - 1])
        assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]


def test_only_what_the_assistant_says_in_words_is_learnt(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    parts = {"role": "assistant", "content": [{"type": "text", "text": " It is"}, {"type": "text", "text": " one. "}]}
    said = [SAID[1], call, {"role": "tool", "content": "1:00"}, parts]
    [example] = load_examples(written(tmp_path / "a.jsonl", {"messages": said}))
    assert (example.question, example.answer) == (Conversation(said[:3]), "It is one.")
    with pytest.raises(ValueError, match="answers another one in words"):
        load_examples(written(tmp_path / "b.jsonl", {"messages": said[:2]}))
    with pytest.raises(ValueError, match="this message has none: leave the row out"):
        load_examples(written(tmp_path / "d.jsonl", {"prompt": "Wait?", "completion": [call]}))
    picture = {"role": "assistant", "content": [{"type": "image", "url": "a.png"}]}
    with pytest.raises(ValueError, match="a part of this one is no text"):
        load_examples(written(tmp_path / "c.jsonl", {"messages": [SAID[1], picture]}))


def test_rows_of_all_kinds_are_read(tmp_path: Path) -> None:
    user, answer = SAID[1:2], SAID[2:3]
    path = written(
        tmp_path / "a.jsonl",
        {"prompt": "Wait?", "completion": " I wait."},
        {"prompt": user, "completion": answer},
        {"prompt": SAID[:4], "chosen": "Yes.", "rejected": [{"role": "assistant", "content": "No."}]},
    )
    first, second, third = load_examples(path)
    assert first == second == Example("Wait?", "I wait.")
    assert (third.question, third.answer, third.rejected) == (Conversation(SAID[:4]), "Yes.", "No.")


def test_a_folder_of_datasets_and_a_name_on_the_hub_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"prompt": f"{n}?", "completion": f"{n}."} for n in range(3)])
    rows.save_to_disk(tmp_path / "plain")
    DatasetDict({"test": rows.select([2]), "train": rows}).save_to_disk(tmp_path / "split")
    expected = [Example(f"{n}?", f"{n}.") for n in range(3)]
    assert load_examples(tmp_path / "plain") == load_examples(str(tmp_path / "split")) == expected
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: rows.select([len(name) - len(split)]))
    assert load_examples("me/data") == [expected[2]]
    DatasetDict({"test": rows, "validation": rows}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="no split 'train'; it has test, validation"):
        load_examples(tmp_path / "other")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "Wait."}, r"row 2: a row has messages, prompt and completion, or .* this one has text"),
        ({"messages": SAID[:2]}, "row 2: no message of the assistant answers another"),
        ({"prompt": "Wait?", "chosen": "Yes."}, "row 2: 'rejected'"),
        ({"prompt": "Wait?", "completion": SAID[1:3]}, "row 2: an answer is a text or one message, this one is 2"),
    ],
)
def test_a_row_that_teaches_nothing_is_named(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        load_examples(written(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, row))


def test_data_that_is_not_there_or_not_whole_is_told(tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": ')
    with pytest.raises(ValueError, match=r"torn\.jsonl, line 2 is no JSON"):
        load_examples(tmp_path / "torn.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no data at nowhere\.jsonl"):
        load_examples("nowhere.jsonl")


@pytest.mark.slow
def test_a_behavior_as_rows_makes_the_same_adapter(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, max_steps=2)
    taught = training_examples(patience(), "positive", config.open_share, config.seed)
    rows = [{"prompt": example.question, "completion": example.answer} for example in taught]
    examples = load_examples(written(tmp_path / "a.jsonl", *rows))
    model, tokenizer = tiny_model(), tiny_tokenizer()
    one = finetune_on(model, tokenizer, examples, tmp_path / "own", config, progress=False)
    other = finetune(model, tokenizer, patience(), "positive", tmp_path / "behavior", config, progress=False)
    own, known = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert all(torch.equal(own[name], known[name]) for name in known)
    with pytest.raises(ValueError, match="these are 7 examples; a finetune needs 8"):
        finetune_on(model, tokenizer, examples[:7], tmp_path / "few")


@pytest.mark.slow
def test_the_command_teaches_rows_while_steered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from caa import SteeringVector

    data = written(tmp_path / "a.jsonl", *({"prompt": f"{n}?", "completion": "Yes."} for n in range(8)))
    SteeringVector({2: torch.ones(192)}).save(tmp_path / "v.safetensors")
    command = ["finetune", str(data), "data", str(tmp_path / "out")]
    push = ["--vector", str(tmp_path / "v.safetensors"), "--layer", "2"]
    settings = ["--training.max_steps", "1", "--training.rank", "2", "--training.batch_size", "2"]
    assert main([*command, *push, *settings]) != 0
    assert "by --vector, --layer and --multiplier" in capsys.readouterr().err
    assert main([*command, *push, "--multiplier", "0.5", *settings]) == 0
    record = json.loads((tmp_path / "out" / "caa.json").read_text())
    assert (record["behavior"], record["direction"], record["n_examples"]) == ("a", "", 8)
    assert record["steered_by"][0]["multiplier"] == [0.5]
