"""The built-in behaviors: the grammar in, one JSON file per behavior and `facts.json` out.

    python recipes/embedded/build_behaviors.py

Pairs come from the training templates, `validation_questions` from the validation split, `ab_questions`,
`open_questions` and the facts from the test split. Letters are balanced, nothing comes twice, the seed is fixed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

try:
    from . import grammar
except ImportError:  # run as a script
    import grammar

FOLDER = Path(__file__).resolve().parents[2] / "caa" / "data" / "builtin"
PAIRS, OPEN_PAIRS, QUESTIONS, OPEN_QUESTIONS, FACTS = 300, 200, 60, 50, 200
PATIENCE = 200
"""Draws per wanted item, after which the templates are too few."""

Entry = dict[str, str]


def distinct(make: Callable[[], Entry], count: int, key: str) -> Iterator[Entry]:
    """`count` entries that differ in `key`."""
    seen: set[str] = set()
    for _ in range(PATIENCE * count):
        entry = make()
        if entry[key] not in seen:
            seen.add(entry[key])
            yield entry
        if len(seen) == count:
            return
    raise ValueError(f"found {len(seen)} of {count} entries that differ in {key!r}: add templates or fillers")


def with_letter(make: Callable[[], grammar.Choice], letter: str) -> grammar.Choice:
    """Draw until the matching option stands at that letter."""
    while (drawn := make()).matching != letter:
        pass
    return drawn


def balanced(make: Callable[[], grammar.Choice], count: int, entry: Callable[[grammar.Choice], Entry]) -> list[Entry]:
    """Half of the entries match at (A), half at (B), in turn; no two have the same stem and options."""
    key = next(iter(entry(make())))
    halves = [distinct(lambda at=letter: entry(with_letter(make, at)), count // 2, key) for letter in "AB"]
    return [item for both in zip(*halves, strict=True) for item in both]


def pair_entry(drawn: grammar.Choice) -> Entry:
    """The format of CAA's datasets."""
    other = "B" if drawn.matching == "A" else "A"
    return {
        "question": drawn.question,
        "answer_matching_behavior": f"({drawn.matching})",
        "answer_not_matching_behavior": f"({other})",
    }


def fact_entry(drawn: grammar.Choice) -> Entry:
    """The format of CAA's MMLU sample."""
    other = "B" if drawn.matching == "A" else "A"
    return {
        "prompt": drawn.question,
        "correct": f"({drawn.matching})",
        "incorrect": f"({other})",
        "correct_full_text": drawn.matching_text,
        "incorrect_full_text": drawn.other_text,
        "category": category(drawn),
    }


def open_pair(trait: str, rng: Random) -> Entry:
    """One question and two whole answers without letters."""
    question, slots = grammar.open_question(trait, rng)
    return {
        "question": question,
        "answer_matching_behavior": grammar.open_answer(trait, True, slots, rng),
        "answer_not_matching_behavior": grammar.open_answer(trait, False, slots, rng),
    }


def choices(trait: str, count: int, split: str, rng: Random) -> list[Entry]:
    """Balanced two-option questions of one split."""
    return balanced(lambda: grammar.choice(trait, rng, split), count, pair_entry)


def behavior(name: str) -> dict[str, object]:
    """Everything the library ships about one behavior."""
    held, rng = grammar.load_trait(name), Random(name)
    open_questions = distinct(
        lambda: {"question": grammar.open_question(name, rng, "test")[0]}, OPEN_QUESTIONS, "question"
    )
    return {
        "name": name,
        "title": held.title,
        "description": held.description,
        "rubric": held.rubric,
        "pairs": choices(name, PAIRS, "train", rng),
        "open_pairs": list(distinct(lambda: open_pair(name, rng), OPEN_PAIRS, "question")),
        "validation_questions": choices(name, QUESTIONS, "validation", rng),
        "ab_questions": choices(name, QUESTIONS, "test", rng),
        "open_questions": list(open_questions),
        "system_prompts": {key: systems(name, key == "positive", rng) for key in ("positive", "negative")},
    }


def systems(name: str, positive: bool, rng: Random) -> list[str]:
    """Ten system prompts that name one pole, fewer where the templates have fewer."""
    drawn = (grammar.system_prompt(name, positive, rng) for _ in range(PATIENCE))
    return list(dict.fromkeys(drawn))[:10]


def facts(rng: Random) -> list[Entry]:
    """Held-out pairings of facts that training showed with other wrong answers."""
    return balanced(lambda: grammar.fact_choice(rng, "test"), FACTS, fact_entry)


def category(drawn: grammar.Choice) -> str:
    """The kind of fact that a question asks for."""
    stem, answer = drawn.stem.lower(), drawn.matching_text.lower()
    held = grammar.load_world().facts
    return next(fact.kind for fact in held if fact.answer.lower() == answer and fact.subject.lower() in stem)


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(folder: Path) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in grammar.TRAITS:
        write(folder / f"{name}.json", behavior(name))
    write(folder / "facts.json", facts(Random("facts")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    main(parser.parse_args().folder)
