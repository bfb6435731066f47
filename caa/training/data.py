"""Data of one's own in, examples to learn out: jsonl, a folder of `datasets`, or a name on the Hub. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caa.data.behaviors import as_question
from caa.files import text_of
from caa.training.examples import Example
from caa.untrusted import check_fields, parse_json


def load_examples(source: str | Path) -> list[Example]:
    """The examples of a jsonl file, of a folder that `datasets` saved, or of the training split of a set on the Hub.

    A row has `messages`, a `prompt` with its `completion`, or a `prompt` with a `chosen` and a `rejected` answer; each
    a text or a list of messages. Of messages every answer of the assistant is one example, behind all that was said
    before. Prompts are shown as they are when they are asked, and only answers count. FileNotFoundError if there is no
    such data, ValueError, naming the row, for any other content.
    """
    examples: list[Example] = []
    for number, row in enumerate(_rows(str(source)), start=1):
        try:
            examples += examples_of(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{source}, row {number}: {error} ({json.dumps(row, default=str)[:80]})") from error
    if not examples:
        raise ValueError(f"{source} is empty, so there is nothing to learn from it")
    return examples


_FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".yaml")
"""What ends like this is no name on the Hub, which would be asked for half a minute where there is no network."""


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(source)
    if path.is_file():
        yield from _lines(path)
    elif path.is_dir():
        saved = load_from_disk(source)
        if isinstance(saved, DatasetDict) and "train" not in saved:
            raise ValueError(
                f"{source} has no split 'train'; it has {', '.join(saved)}: give the folder of one of them"
            )
        yield from saved["train"] if isinstance(saved, DatasetDict) else saved
    elif path.suffix in _FILES:
        raise FileNotFoundError(f"no data at {source}: there is no such file")
    else:
        try:
            online = load_dataset(source, split="train")
        except Exception as error:  # whatever the Hub and datasets say of a name that they do not have
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(f"no data at {source}: no file, no folder, and on the Hub: {reason}") from error
        yield from online


def _lines(path: Path) -> Iterator[Any]:
    # Not splitlines(): a line separator of Unicode is no end of a line in jsonl.
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            try:
                yield check_fields(parse_json(line, "it"), {}, "it")
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no JSON ({error}); one example stands on a line") from error


def examples_of(row: Mapping[str, Any]) -> list[Example]:
    """What one row teaches.

    >>> said = [("user", "Hi"), ("assistant", "Hello."), ("user", "Well?"), ("assistant", "Yes.")]
    >>> first, second = examples_of({"messages": [{"role": role, "content": text} for role, text in said]})
    >>> first, second.answer
    (Example(question='Hi', answer='Hello.', rejected=None), 'Yes.')
    >>> examples_of({"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"})
    [Example(question='Hi', answer='Hello.', rejected='What?')]
    """
    if row.get("messages"):
        return _answers(row["messages"])
    for answer, rejected in (("completion", None), ("chosen", "rejected")):
        if row.get(answer) is not None and row.get("prompt"):
            other = _text(row[rejected]) if rejected else None
            return [Example(as_question(row["prompt"]), _text(row[answer]), other)]
    raise ValueError(
        f"a row has messages, prompt and completion, or prompt, chosen and rejected; this one has {', '.join(row)}"
    )


def _answers(messages: list[Mapping[str, Any]]) -> list[Example]:
    answers = [place for place, message in enumerate(messages) if place and message["role"] == "assistant"]
    said = {place: _words(messages[place]) for place in answers}
    if not any(said.values()):
        raise ValueError("no message of the assistant answers another one in words, so there is nothing to learn")
    return [Example(as_question(messages[:place]), words) for place, words in said.items() if words]


def _text(answer: str | list[Mapping[str, Any]]) -> str:
    """An answer as a text, or as the one message that it is."""
    if isinstance(answer, str):
        return answer.strip()
    if len(answer) != 1:
        raise ValueError(f"an answer is a text or one message, this one is {len(answer)} messages")
    if words := _words(answer[0]):
        return words
    raise ValueError("an answer is learnt from its words, and this message has none: leave the row out")


def _words(message: Mapping[str, Any]) -> str:
    """What a message says, "" where it only calls tools; ValueError for parts that are no text, such as pictures.

    >>> _words({"content": [{"type": "text", "text": "Yes. "}, {"type": "text", "text": "Why?"}]}), _words({})
    ('Yes. Why?', '')
    """
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else [part.get("text") for part in content]
    if None in parts:
        raise ValueError("an answer is learnt from its words, and a part of this one is no text")
    return "".join(parts).strip()
