"""The nouns of the data room: what is contrasted and what is asked. Nothing here knows a file or a model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from reprlib import Repr
from typing import Any, Protocol, TypeVar, runtime_checkable

from caa.hashing import text_digest

# How nrimsky/CAA ends a question: "Choices:" on a line of its own, then each option on a new one, as " (A) Yes".
_HEADING = re.compile(r"^[ \t]*Choices:[ \t]*$", re.MULTILINE)
_OPTION = re.compile(r"^[ \t]*\(([A-Z])\)", re.MULTILINE)
_ASKED_FOR = re.compile(r"\n[ \t]*Answer:\s*\Z")
_FILE_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")
_LETTER = re.compile(r"\s*(?:\(([A-Z])\)|([AB]))\s*\Z")

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80  # characters of a text that a repr shows: its beginning and its end
LONGEST_NAME = 200
"""Of a behavior, in bytes: file systems allow 255, and the names of its files say more than its own."""


def question_id(*parts: str) -> str:
    """A name for a question that survives reordering and renaming of files: 12 hex digits of the hash of its words.

    >>> question_id("Would you wait?") == question_id("Would you wait?"), len(question_id("Would you wait?"))
    (True, 12)
    """
    return text_digest("\x1f".join(parts), digits=12)


def options(text: str) -> dict[str, str]:
    r"""The options of a question in CAA's format, letter -> text; a last line "Answer:" is no part of them.

    >>> options("Wait?\n\nChoices:\n (A) Yes, gladly\n (B) No")
    {'A': 'Yes, gladly', 'B': 'No'}
    """
    choices = _ASKED_FOR.sub("", _halves(text)[1])
    _, *parts = _OPTION.split(choices)  # "", "A", " Yes, gladly\n", "B", " No"; an option may have many lines
    return {name: option.strip() for name, option in zip(parts[::2], parts[1::2], strict=True)}


def stem(text: str) -> str:
    r"""A question without its options, as it would be asked with no letters to choose from.

    >>> stem("Would you wait?\n\nChoices:\n (A) Yes\n (B) No")
    'Would you wait?'
    """
    return _halves(text)[0].strip()


def _halves(text: str) -> tuple[str, str]:
    """What is asked, and what there is to choose from."""
    begin = _HEADING.search(text) or _OPTION.search(text)
    return (text[: begin.start()], text[begin.start() :]) if begin else (text, "")


def _last(question: Conversation) -> str:
    return str(question.messages[-1].get("content") or "")


def letter(answer: str) -> str | None:
    """The letter of an answer that is nothing but a letter, else None. A and B need no brackets; "I" is a word.

    >>> letter(" (B)"), letter("B"), letter("(B) No"), letter("No"), letter("I")
    ('B', 'B', None, None, None)
    """
    match = _LETTER.match(answer)
    return match.group(1) or match.group(2) if match else None


def _fields(item: ContrastPair | Question) -> str:
    """A dataclass's fields as its repr has them, long texts cut; empty ones are left out."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return ", ".join(f"{name}={_SHORT.repr(value)}" for name, value in values.items() if value not in (None, ""))


Message = Mapping[str, Any]
"""What one side says: "role" (system, user, assistant, tool) and "content", or "tool_calls" and other fields of chat
templates."""


class Conversation(str):
    """Several messages of which the last is to be answered: a question that is more than one text.

    As a text it is what each side said, behind its role, so that it is counted, shown and told from others as every
    question is. A chat template gets the `messages`.

    >>> print(Conversation([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Wait?"}]))
    system: Be kind.
    <BLANKLINE>
    user: Wait?
    """

    messages: tuple[Message, ...]

    def __new__(cls, messages: Iterable[Message]) -> Conversation:
        """ValueError for no messages, for one without a role, and for a last one that is an answer already."""
        messages = tuple(dict(message) for message in messages)
        if not messages or not all(isinstance(message.get("role"), str) for message in messages):
            raise ValueError('a conversation is one message or more, each with its "role" and its "content"')
        if messages[-1]["role"] == "assistant":
            raise ValueError("a conversation that is to be answered ends with another message than the assistant's")
        self = super().__new__(cls, "\n\n".join(map(_said_by, messages)))
        self.messages = messages
        return self

    def __reduce__(self) -> tuple[type[Conversation], tuple[tuple[Message, ...]]]:
        return Conversation, (self.messages,)

    def asking(self, content: str) -> Conversation:
        """The same conversation with other words in its last message."""
        return Conversation([*self.messages[:-1], {**self.messages[-1], "content": content}])


def _said_by(message: Message) -> str:
    content = message.get("content")
    calls = json.dumps(message["tool_calls"], sort_keys=True) if message.get("tool_calls") else ""
    text = content if isinstance(content, str) else json.dumps(content) if content else ""
    return f"{message['role']}: {' '.join(filter(None, (text, calls)))}"


def as_question(question: str | Sequence[Message]) -> str:
    """A text as it is, messages as a `Conversation`; one message of the user is but a text."""
    if isinstance(question, str):
        return question
    messages = list(question)
    alone = len(messages) == 1 and messages[0].get("role") == "user" and isinstance(messages[0].get("content"), str)
    return str(messages[0]["content"]) if alone else Conversation(messages)


@dataclass(frozen=True, repr=False)
class ContrastPair:
    """One question and two answers to it that differ only in the behavior."""

    question: str | Sequence[Message]
    """A text, or messages (a list of "role" and "content"), which become a `Conversation`."""
    positive: str
    """The answer that shows the behavior, e.g. "(A)"."""
    negative: str
    """The answer that does not, e.g. "(B)"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "question", as_question(self.question))
        if not self.text.strip():
            raise ValueError("a contrast pair needs a question, this one is empty")
        if self.positive.strip() == self.negative.strip():
            raise ValueError(
                f"both answers are {self.positive!r}, so this pair carries no contrast: {self.text[:60]!r}"
            )

    def __repr__(self) -> str:
        return f"ContrastPair({_fields(self)})"

    @property
    def id(self) -> str:
        return question_id(self.text)

    @property
    def text(self) -> str:
        """What is asked, by the name that `Question` has for it: a text, or a `Conversation`."""
        return as_question(self.question)

    @property
    def answers(self) -> tuple[str, ...]:
        return self.positive, self.negative

    def in_words(self) -> ContrastPair:
        r"""The same contrast without letters: the bare question, answered by the texts of its options.

        A pair whose answers are words already is returned as it is.

        >>> ContrastPair("Wait?\n\nChoices:\n (A) Yes\n (B) No", "(A)", "(B)").in_words()
        ContrastPair(question='Wait?', positive='Yes', negative='No')
        """
        if not self._has_letters():
            return self
        question = self.text
        bare = question.asking(stem(_last(question))) if isinstance(question, Conversation) else stem(question)
        return ContrastPair(bare, self._chosen(self.positive), self._chosen(self.negative))

    def spelled_out(self) -> ContrastPair:
        r"""The same question, each letter followed by the text of its option; answers in words stay as they are.

        >>> ContrastPair("Wait?\n (A) Yes\n (B) No", "(A)", "(B)").spelled_out().positive
        '(A) Yes'
        """
        if not self._has_letters():
            return self
        return ContrastPair(self.text, *(f"{answer.strip()} {self._chosen(answer)}" for answer in self.answers))

    def _has_letters(self) -> bool:
        return any(letter(answer) for answer in self.answers)

    def _chosen(self, answer: str) -> str:
        chosen, offered = letter(answer), options(self.text)
        if chosen not in offered:
            raise ValueError(f"{answer!r} is none of the options {sorted(offered)} of {self.text[:60]!r}")
        return offered[chosen]


@dataclass(frozen=True, repr=False)
class Question:
    """Something a model is asked. With both answers it is scored by their probabilities, without by a judge."""

    text: str
    """May be a `Conversation`."""
    matching: str | None = None
    """The answer that shows the behavior (or is correct), None for an open-ended question."""
    opposite: str | None = None
    category: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a question needs words, this one is empty")
        if (self.matching is None) != (self.opposite is None):
            raise ValueError(f"a question has two answers or none, this one has one: {self.text[:60]!r}")
        if self.matching is not None and self.matching.strip() == (self.opposite or "").strip():
            raise ValueError(f"both answers are {self.matching!r}, so nothing can be scored: {self.text[:60]!r}")

    def __repr__(self) -> str:
        return f"Question({_fields(self)})"

    @property
    def id(self) -> str:
        return question_id(self.text)

    @property
    def answers(self) -> tuple[str, ...]:
        """The matching answer and the opposite one; none for an open-ended question."""
        return () if self.matching is None or self.opposite is None else (self.matching, self.opposite)


PARTS = ("pairs", "open_pairs", "validation_questions", "ab_questions", "open_questions")
"""The fields of a behavior that hold pairs or questions."""


@dataclass(frozen=True, repr=False)
class Behavior:
    """A behavior: pairs to find its vector and to finetune on, and held-out questions to measure it by."""

    name: str
    pairs: tuple[ContrastPair, ...] = ()
    """A/B questions answered by letter: the vector is read here, and finetuning starts here."""
    open_pairs: tuple[ContrastPair, ...] = ()
    """Questions without letters, answered both ways in whole sentences: for finetuning and for the exemplar judge."""
    ab_questions: tuple[Question, ...] = ()
    open_questions: tuple[Question, ...] = ()
    validation_questions: tuple[Question, ...] = ()
    """A/B questions to choose layer and multiplier on, so that `ab_questions` stay unseen."""
    rubric: str = ""
    """What a judge is told: what 0 and what 10 mean."""
    description: str = ""
    system_prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """ "positive" / "negative" -> system prompts that ask for the behavior or its opposite."""
    phrases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """ "positive" / "negative" -> phrases that show the behavior or its opposite, for a judge that looks for them."""
    title: str = ""
    """The name as a table prints it."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Part -> how many of its entries were not read, because their answers are letters other than A and B."""

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name) or len(self.name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"the name of a behavior becomes that of files, which {self.name[:60]!r} cannot be: it has at most "
                f"{LONGEST_NAME} bytes, begins with no dot, and is without slashes, backslashes and line breaks"
            )
        if unknown := sorted(set(self.system_prompts) - {"positive", "negative"}):
            raise ValueError(f"system prompts are 'positive' or 'negative'; {self.name!r} has some that are {unknown}")
        if unknown := sorted(set(self.phrases) - {"positive", "negative"}):
            raise ValueError(f"phrases are 'positive' or 'negative'; {self.name!r} has some that are {unknown}")

    def require(self, part: str) -> tuple[Any, ...]:
        """The named part, or an error that says what this behavior has."""
        items: tuple[Any, ...] = getattr(self, part)
        if not items:
            filled = [name for name in ("pairs", "ab_questions", "open_questions") if getattr(self, name)]
            raise ValueError(f"behavior {self.name!r} has no {part}; it has {', '.join(filled) or 'nothing at all'}")
        return items

    def __repr__(self) -> str:
        """One line, whatever it holds: its name and how many there are of each.

        >>> Behavior("patience", pairs=(ContrastPair("Wait?", "Yes", "No"),), rubric="How patient?")
        Behavior('patience', 1 pairs)
        """
        counts = [f"{len(getattr(self, part))} {part}" for part in PARTS if getattr(self, part)]
        return f"Behavior({', '.join([repr(self.name), *counts])})"

    def first_questions(self, limit: int | None) -> Behavior:
        """The same behavior with at most `limit` held-out questions of each kind, the first ones; None keeps all."""
        parts = ("ab_questions", "open_questions", "validation_questions")
        return replace(self, **{part: getattr(self, part)[:limit] for part in parts})

    def contrasts_in_words(self) -> tuple[ContrastPair, ...]:
        """Open-ended contrasts: the behavior's own, else its A/B pairs told without letters."""
        return self.open_pairs or tuple(pair.in_words() for pair in self.pairs)


@runtime_checkable
class HasId(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=HasId)


def split_by_hash(items: Iterable[T], share: float, salt: str = "") -> tuple[list[T], list[T]]:
    """Put about `share` of the items aside, by a hash of each question: no seed, no order, the same on every machine.

    Items about the same question stay on the same side.

    >>> items = [Question(f"question {i}") for i in range(1000)]
    >>> kept, aside = split_by_hash(items, 0.2)
    >>> len(kept) + len(aside), 150 < len(aside) < 250
    (1000, True)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, this is {share}")
    kept: list[T] = []
    aside: list[T] = []
    for item in items:
        drawn = int(question_id(salt, item.id), 16) / 16**12
        (aside if drawn < share else kept).append(item)
    return kept, aside


def letter_balance(items: Sequence[ContrastPair | Question]) -> Counter[str]:
    """How often each letter is the positive answer.

    If "(A)" is right more often than "(B)", part of the vector is the letter and not the behavior.

    >>> letter_balance([ContrastPair("q", "(A)", "(B)"), ContrastPair("r", "(A)", "(B)")])
    Counter({'A': 2, 'B': 0})
    """
    counts: Counter[str] = Counter({"A": 0, "B": 0})
    for item in items:
        counts.update(filter(None, map(letter, item.answers[:1])))
    return counts
