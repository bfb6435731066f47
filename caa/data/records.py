"""Entries of json files to pairs and questions, each checked and named by its place. Knows no behavior."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from caa.data.behaviors import ContrastPair, Question, as_question, letter
from caa.files import text_of
from caa.untrusted import parse_json

Item = TypeVar("Item", ContrastPair, Question)
_ANSWER_KEYS = (
    ("answer_matching_behavior", "answer_not_matching_behavior"),
    ("positive", "negative"),
    ("chosen", "rejected"),
)
_QUESTION_KEYS = ("question", "messages", "prompt")


def read_json(path: Path) -> Any:
    """What a .json file holds, a list of what the lines of a .jsonl hold, or ValueError with the place."""
    text = text_of(path)
    if path.suffix != ".jsonl":
        return parse_json(text, str(path))
    # Not splitlines(): a line separator of Unicode is no end of a line in jsonl.
    return [parse_json(line, f"{path}, line {n}") for n, line in enumerate(text.split("\n"), start=1) if line.strip()]


def letters_outside(items: Iterable[Item]) -> list[Item]:
    """Those of the pairs or questions that are answered by letters other than A and B.

    >>> letters_outside([ContrastPair("q", "(C)", "(A)"), ContrastPair("r", "(A)", "(B)"), ContrastPair("s", "x", "y")])
    [ContrastPair(question='q', positive='(C)', negative='(A)')]
    """
    return [item for item in items if set(map(letter, item.answers)) - {None, "A", "B"}]


def read_items(read: Callable[[Any], Item], records: Any, where: str) -> tuple[tuple[Item, ...], int]:
    """The items that the letters A and B can score (or words), and how many others there were."""
    if isinstance(records, (str, Mapping)) or not isinstance(records, Iterable):
        raise ValueError(f"{where} should be a list of entries, and is a {type(records).__name__}")
    items = [_read_one(read, record, f"{where}, entry {n}") for n, record in enumerate(records, start=1)]
    outside = {id(item) for item in letters_outside(items)}
    return tuple(item for item in items if id(item) not in outside), len(outside)


def _read_one(read: Callable[[Any], Item], record: Any, where: str) -> Item:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} should be an object with named texts, and is {record!r}")
    try:
        return read(record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def pair(record: Mapping[str, Any]) -> ContrastPair:
    """A question with both answers: texts, or messages as preference datasets have them.

    >>> said = [{"role": "user", "content": "Wait?"}]
    >>> yes, no = ([*said, {"role": "assistant", "content": answer}] for answer in ("Yes", "No"))
    >>> pair({"chosen": yes, "rejected": no})
    ContrastPair(question='Wait?', positive='Yes', negative='No')
    """
    positive, negative = answer_keys(record)
    return ContrastPair(question_of(record, positive), answer(record, positive), answer(record, negative))


def question(record: Mapping[str, Any]) -> Question:
    category = str(record.get("category", ""))
    if not any(key in record for keys in _ANSWER_KEYS for key in keys):
        return Question(question_of(record), category=category)
    matching, opposite = answer_keys(record)
    return Question(question_of(record, matching), answer(record, matching), answer(record, opposite), category)


def fact(record: Mapping[str, Any]) -> Question:
    """nrimsky/CAA's format for MMLU and TruthfulQA."""
    answers = text(record, "correct"), text(record, "incorrect")
    return Question(text(record, "prompt"), *answers, str(record.get("category", "")))


def answer_keys(record: Mapping[str, Any]) -> tuple[str, str]:
    """The names that the matching answer and the opposite one have."""
    return next((keys for keys in _ANSWER_KEYS if not set(keys).isdisjoint(record)), _ANSWER_KEYS[0])


def question_of(record: Mapping[str, Any], answer_key: str = "", question_key: str = "") -> str:
    """What is asked: a text or messages under one of the usual names, else what stands before the answer.

    Preference datasets keep either a "prompt" or, in "chosen" and "rejected" alike, the whole conversation.
    """
    key = question_key or next((key for key in _QUESTION_KEYS if key in record), "")
    value = record.get(key)
    if not key and _are_messages(record.get(answer_key)):
        value = record[answer_key][:-1]
    if not _are_messages(value):
        return text(record, key or "question")
    return as_question(value)


def answer(record: Mapping[str, Any], key: str) -> str:
    """An answer as a text; of messages, what the last one says."""
    value = record.get(key)
    if not _are_messages(value):
        return text(record, key)
    if value[-1].get("role") != "assistant":
        raise ValueError(f"{key!r} should end with what the assistant says, and ends with {value[-1].get('role')!r}")
    return text(value[-1], "content")


def _are_messages(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def text(record: Mapping[str, Any], key: str) -> str:
    """Without the space around it: the public files begin some answers with one, and it means nothing."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} should be a text, and is {value!r}; the entry has {', '.join(map(str, record))}")
    return value.strip()
