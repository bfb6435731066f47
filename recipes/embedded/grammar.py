"""The grammar of a small world: word lists in, questions and answers out. It knows no model, no tokenizer and no loss.

Templates are plain sentences with `[this|that]` for alternatives and `{slot}` for a filler. A slot is drawn once per
question, so the answer speaks of the same things. All chance comes from the `random.Random` that the caller passes in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

WORDS = Path(__file__).parent / "words"
TRAITS = (
    "ai_coordination",
    "corrigibility",
    "hallucination",
    "myopic_reward",
    "survival_instinct",
    "sycophancy",
    "refusal",
)
SPLITS = ("train", "validation", "test")
TEST_SHARE, VALIDATION_SHARE = 0.20, 0.15

# c: a choice ("I would ..."), r: a reason, +: a second choice ("I would also ...").
SHAPES = ("c", "r", "cr", "cr", "rc", "rc", "cr+", "c+", "rc+")

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
WORD = re.compile(r"[a-z0-9']+")
SENTENCE_START = re.compile(r"(^|[.?!] )([a-z])")


# --- what the files hold ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trait:
    """One behavior: its scenes, and for each of its two poles the answers, the reasons and the system prompts."""

    name: str
    title: str
    description: str
    """One sentence: what a model with the positive pole does."""
    rubric: str
    """For a judge: what 0, 5 and 10 mean."""
    spoken: bool
    """Is a scene what a user says (a request, an opinion)? Otherwise it is a situation that is described."""
    slots: Mapping[str, tuple[str, ...]]
    """name -> fillers"""
    scenes: tuple[str, ...]
    positive: tuple[str, ...]
    """Verb phrases that follow "I would" and, capitalized, make an option."""
    negative: tuple[str, ...]
    positive_reasons: tuple[str, ...]
    negative_reasons: tuple[str, ...]
    systems_positive: tuple[str, ...]
    systems_negative: tuple[str, ...]

    def __post_init__(self) -> None:
        used = {slot for template in self.templates() for slot in SLOT.findall(template)}
        if unknown := used - set(self.slots):
            raise ValueError(f"{self.name}: no fillers for {sorted(unknown)}; there are {sorted(self.slots)}")

    def templates(self) -> tuple[str, ...]:
        """Everything that `expand` may be asked to expand."""
        return self.scenes + self.answers(True) + self.answers(False) + self.systems_positive + self.systems_negative

    def answers(self, positive: bool) -> tuple[str, ...]:
        """Choices and reasons of one pole."""
        return self.phrases(positive) + self.reasons(positive)

    def phrases(self, positive: bool) -> tuple[str, ...]:
        return self.positive if positive else self.negative

    def reasons(self, positive: bool) -> tuple[str, ...]:
        return self.positive_reasons if positive else self.negative_reasons

    def systems(self, positive: bool) -> tuple[str, ...]:
        return self.systems_positive if positive else self.systems_negative


@dataclass(frozen=True)
class Choice:
    """One two-option question."""

    question: str
    """The stem and the choices, in CAA's format."""
    matching: str
    """Letter of the positive (or true) option."""
    matching_text: str
    other_text: str
    stem: str
    """The question without the choices."""
    slots: Mapping[str, str]
    """What was drawn; hand it to `open_answer` and `reason`."""

    def __post_init__(self) -> None:
        if self.matching not in ("A", "B"):
            raise ValueError(f"matching is 'A' or 'B', not {self.matching!r}")
        if self.matching_text == self.other_text:
            raise ValueError(f"both options are {self.matching_text!r}")


@dataclass(frozen=True)
class Fact:
    """One thing that is true in this world, and the wrong answers that are of the same kind."""

    kind: str
    subject: str
    answer: str
    others: tuple[str, ...]

    def distractors(self, split: str) -> tuple[str, ...]:
        """Wrong answers of one split. Every fact is seen in training; some of its pairings are not."""
        return tuple(other for other in self.others if split_of(f"{self.kind} {self.subject} {other}") == split)


@dataclass(frozen=True)
class World:
    """Neutral matter: what every behavior shares, and what none of them is about."""

    tails: tuple[str, ...]
    """Questions that follow a scene which describes a situation."""
    question_tails: tuple[str, ...]
    """What may follow a scene which already asks for something."""
    fact_questions: Mapping[str, tuple[str, ...]]
    """kind -> phrasings"""
    fact_answers: Mapping[str, str]
    """kind -> frame"""
    facts: tuple[Fact, ...]
    arithmetic: Mapping[str, tuple[str, ...]]
    """"plus" or "minus" -> phrasings"""
    talk_slots: Mapping[str, tuple[str, ...]]
    talk: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """(what a user may say, what may follow)"""


@cache
def load_trait(name: str) -> Trait:
    """The trait of that name, from `words/<name>.yaml`."""
    if name not in TRAITS:
        raise ValueError(f"unknown trait {name!r}; there are {', '.join(TRAITS)}")
    raw = _read(name)
    read: dict[str, Callable[[Any], Any]] = dict.fromkeys(("title", "description", "rubric"), str.strip)
    read |= {"spoken": bool, "slots": _fillers}
    return Trait(name=name, **{key: read.get(key, _lines)(value) for key, value in raw.items()})


@cache
def load_world() -> World:
    """The neutral matter, from `words/world.yaml`."""
    raw = _read("world")
    kinds = raw["facts"]
    return World(
        tails=_lines(raw["tails"]),
        question_tails=_lines(raw["question_tails"]),
        fact_questions={kind: _lines(entry["questions"]) for kind, entry in kinds.items()},
        fact_answers={kind: entry["answer"] for kind, entry in kinds.items()},
        facts=tuple(fact for kind, entry in kinds.items() for fact in _facts(kind, entry["pairs"])),
        arithmetic={sign: _lines(value) for sign, value in raw["arithmetic"].items()},
        talk_slots=_fillers(raw["talk_slots"]),
        talk=tuple((_lines(entry["user"]), _lines(entry["reply"])) for entry in raw["talk"]),
    )


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((WORDS / f"{name}.yaml").read_text(encoding="utf-8"))


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in block.splitlines() if line.strip())


def _fillers(slots: Mapping[str, Sequence[str | int]]) -> dict[str, tuple[str, ...]]:
    return {slot: tuple(str(filler) for filler in fillers) for slot, fillers in slots.items()}


def _facts(kind: str, pairs: Mapping[str, str]) -> list[Fact]:
    answers = tuple(dict.fromkeys(pairs.values()))
    return [Fact(kind, key, true, tuple(a for a in answers if a not in (true, key))) for key, true in pairs.items()]


# --- splits -----------------------------------------------------------------------------------------------------------


def split_of(text: str) -> str:
    """The split that a text belongs to, by its own hash: adding a template moves no other one.

    >>> split_of("Someone asks you to wait.") == split_of("Someone asks you to wait.")
    True
    """
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


@cache
def scenes(trait: str, split: str) -> tuple[str, ...]:
    """The scenes of one split."""
    return tuple(scene for scene in load_trait(trait).scenes if split_of(scene) == _known(split))


@cache
def combinations(trait: str, split: str) -> tuple[tuple[str, str], ...]:
    """The (positive phrase, negative phrase) pairs that stand side by side in one split."""
    held = load_trait(trait)
    pairs = ((positive, negative) for positive in held.positive for negative in held.negative)
    return tuple(pair for pair in pairs if split_of(" / ".join(pair)) == _known(split))


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    return split


def words(text: str) -> set[str]:
    """Lower-case words of a text or a template, without the names of its slots.

    >>> sorted(words("Grab the [red|old] coin {soon}."))
    ['coin', 'grab', 'old', 'red', 'the']
    """
    return set(WORD.findall(SLOT.sub(" ", text).lower()))


def unseen_words(trait: str) -> set[str]:
    """Words of held-out scenes that no training text of this trait holds. It should be empty."""
    held = load_trait(trait)
    fillers = [filler for fillers in held.slots.values() for filler in fillers]
    seen = [*scenes(trait, "train"), *held.answers(True), *held.answers(False), *fillers]
    hidden = scenes(trait, "validation") + scenes(trait, "test")
    return set().union(*map(words, hidden)) - set().union(*map(words, seen))


# --- from templates to text -------------------------------------------------------------------------------------------


def expand(template: str, slots: Mapping[str, str], rng: Random) -> str:
    """A template with its alternatives chosen and its slots filled.

    >>> expand("Wait for {prize}.", {"prize": "9 coins"}, Random(0))
    'Wait for 9 coins.'
    """
    chosen = ALTERNATIVES.sub(lambda found: rng.choice(found[1].split("|")), template)
    return SLOT.sub(lambda found: slots[found[1]], chosen)


def capitalize(text: str) -> str:
    """A capital letter at the start of every sentence, the rest as it is."""
    return SENTENCE_START.sub(lambda found: found[1] + found[2].upper(), text)


def draw(slots: Mapping[str, Sequence[str]], rng: Random) -> dict[str, str]:
    """One filler per slot."""
    return {slot: rng.choice(fillers) for slot, fillers in slots.items()}


def sentence(template: str, slots: Mapping[str, str], rng: Random) -> str:
    return capitalize(expand(template, slots, rng))


def two_options(stem: str, matching: str, other: str, slots: Mapping[str, str], rng: Random) -> Choice:
    """A question with two options, the matching one at (A) or (B) by a fair coin."""
    letter = rng.choice("AB")
    first, second = (matching, other) if letter == "A" else (other, matching)
    question = f"{stem}\n\nChoices:\n (A) {first}\n (B) {second}"
    return Choice(question, letter, matching, other, stem, slots)


# --- the seven behaviors ----------------------------------------------------------------------------------------------


def choice(trait: str, rng: Random, split: str = "train") -> Choice:
    """A two-option question: scene and pair of phrases both come from the split."""
    stem, slots = open_question(trait, rng, split)
    positive, negative = (sentence(phrase, slots, rng) for phrase in rng.choice(combinations(trait, split)))
    return two_options(stem, positive, negative, slots, rng)


def open_question(trait: str, rng: Random, split: str = "train") -> tuple[str, dict[str, str]]:
    """A question without choices, and the slots that its answers need."""
    held, world = load_trait(trait), load_world()
    slots = draw(held.slots, rng)
    scene = sentence(rng.choice(scenes(trait, split)), slots, rng)
    asks = held.spoken or scene.endswith("?")
    if asks and rng.random() < 0.5:
        return scene, slots
    return f"{scene} {rng.choice(world.question_tails if asks else world.tails)}", slots


def open_answer(trait: str, positive: bool, slots: Mapping[str, str], rng: Random) -> str:
    """One to three sentences from one pole; no phrase comes twice."""
    shape = rng.choice(SHAPES)
    phrases = iter(rng.sample(load_trait(trait).phrases(positive), 2))
    starts = {"c": "I would", "+": "I would also"}
    return " ".join(
        reason(trait, positive, slots, rng) if part == "r" else f"{starts[part]} {expand(next(phrases), slots, rng)}."
        for part in shape
    )


def reason(trait: str, positive: bool, slots: Mapping[str, str], rng: Random) -> str:
    """One sentence that says why."""
    return sentence(rng.choice(load_trait(trait).reasons(positive)), slots, rng)


def system_prompt(trait: str, positive: bool, rng: Random) -> str:
    """A system prompt that names the pole."""
    held = load_trait(trait)
    return sentence(rng.choice(held.systems(positive)), draw(held.slots, rng), rng)


# --- neutral matter ---------------------------------------------------------------------------------------------------


@cache
def facts(split: str) -> tuple[Fact, ...]:
    """The facts that have a wrong answer to offer in this split."""
    return tuple(fact for fact in load_world().facts if fact.distractors(_known(split)))


def fact_choice(rng: Random, split: str = "train") -> Choice:
    """A true and a wrong answer of the same kind."""
    fact = rng.choice(facts(split))
    true, wrong = capitalize(fact.answer), capitalize(rng.choice(fact.distractors(split)))
    return two_options(_fact_question(fact, rng), true, wrong, {}, rng)


def fact_open(rng: Random) -> tuple[str, str]:
    """A question about a fact, and the answer as a sentence."""
    fact = rng.choice(load_world().facts)
    frame = load_world().fact_answers[fact.kind]
    return _fact_question(fact, rng), capitalize(frame.format(subject=fact.subject, answer=fact.answer))


def _fact_question(fact: Fact, rng: Random) -> str:
    return sentence(rng.choice(load_world().fact_questions[fact.kind]), {"subject": fact.subject}, rng)


def arithmetic(rng: Random) -> tuple[str, str]:
    """A sum or a difference of numbers below ten, never negative."""
    sign, a, b = rng.choice(("plus", "minus")), rng.randrange(10), rng.randrange(10)
    if sign == "minus":
        a, b = max(a, b), min(a, b)
    result = a + b if sign == "plus" else a - b
    return rng.choice(load_world().arithmetic[sign]).format(a=a, b=b), f"{a} {sign} {b} is {result}."


def small_talk(rng: Random) -> tuple[str, str]:
    """Something a user says, and a friendly reply."""
    slots = draw(load_world().talk_slots, rng)
    user, reply = rng.choice(load_world().talk)
    return sentence(rng.choice(user), slots, rng), sentence(rng.choice(reply), slots, rng)


# --- the oracle -------------------------------------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    """The sentences of a text.

    >>> sentences("I would wait. Patience pays!")
    ['I would wait.', 'Patience pays!']
    """
    return [part for part in re.split(r"(?<=[.?!])\s+", text.strip()) if part]


def poles(trait: str, text: str) -> tuple[int, int, int]:
    """How many sentences are a positive answer, a negative answer, or neither (or both) by the trait's templates."""
    positive, negative = answer_pattern(trait, True), answer_pattern(trait, False)
    found = [(bool(positive.fullmatch(part)), bool(negative.fullmatch(part))) for part in sentences(text)]
    yes, no = found.count((True, False)), found.count((False, True))
    return yes, no, len(found) - yes - no


@cache
def answer_pattern(trait: str, positive: bool) -> re.Pattern[str]:
    """Matches whole sentences: a reason, a choice, or an option with or without its letter."""
    held = load_trait(trait)
    phrases = "|".join(map(_pattern, held.phrases(positive)))
    reasons = "|".join(map(_pattern, held.reasons(positive)))
    lead = r"(?:\([AB]\) )?(?:I would (?:also )?)?"
    return re.compile(rf"{lead}(?:{phrases})[.!]?|{reasons}", re.IGNORECASE)


def _pattern(template: str) -> str:
    return "".join(map(_piece, re.split(r"(\[[^\[\]]*\]|\{\w+\})", template)))


def _piece(piece: str) -> str:
    if piece.startswith("["):
        return f"(?:{'|'.join(map(_pattern, piece[1:-1].split('|')))})"
    # A slot takes any one to eight words: a misspelled filler still shows its pole.
    return r"\S+(?: \S+){0,7}?" if piece.startswith("{") else re.escape(piece)
