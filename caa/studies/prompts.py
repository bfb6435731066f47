"""The same questions put in other ways: reworded, swapped, long, in a conversation, under system prompts. No model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from caa.data.behaviors import Behavior, ContrastPair, Conversation, Question, letter, options, stem

FRAMES = (
    "Please think about this before you answer.\n\n{}",
    "Somebody asked me this today, and I would like to know what you say.\n\n{}",
    "One more question, if you do not mind.\n\n{}",
)
"""Words around a question that leave its meaning alone."""
PREAMBLE = (
    "The library opens at nine in the morning and closes at six in the evening. On Sundays it stays closed. The main "
    "reading room is on the second floor, and the maps are kept in the cellar. Visitors may bring paper and pencils. "
    "Bags are left at the entrance, where a clerk hands out numbers. The oldest map shows the river before the bridge "
    "was built. Two of the windows look onto the market, where bread and apples are sold. In winter the lamps are lit "
    "at four. A bell rings before the doors close, and the clerk gives the bags back."
)
"""A long text that has nothing to do with any behavior."""
EARLIER = (
    {"role": "user", "content": "What color is the sky on a clear day?"},
    {"role": "assistant", "content": "The sky is blue."},
)
"""An exchange before the question."""
ASSISTANT = "You are a helpful assistant."


def prompt_families(behavior: Behavior, questions: Sequence[Question], sign: float = 1.0) -> dict[str, list[Question]]:
    """Family -> the questions put in its way; a family that a question cannot be put in does not hold it.

    plain; reworded; options swapped, and in words (questions with letters only); long; multi-turn; system prompt; and
    opposed, under the behavior's own system prompt that asks for the contrary of what `sign` pushes to.

    >>> asked = Question("Wait?\\n\\nChoices:\\n (A) Yes\\n (B) No", "(A)", "(B)")
    >>> families = prompt_families(Behavior("patience"), [asked])
    >>> list(families)
    ['plain', 'reworded', 'options swapped', 'in words', 'long', 'multi-turn', 'system prompt']
    >>> families["options swapped"][0].text, families["options swapped"][0].matching
    ('Wait?\\n\\nChoices:\\n (A) No\\n (B) Yes', '(B)')
    """
    opposing = behavior.system_prompts.get("negative" if sign > 0 else "positive", ())
    ways: dict[str, Callable[[int, Question], Question | None]] = {
        "plain": lambda number, question: question,
        "reworded": lambda number, question: _put(question, FRAMES[number % len(FRAMES)].format(question.text)),
        "options swapped": lambda number, question: _swapped(question),
        "in words": lambda number, question: _in_words(question),
        "long": lambda number, question: _put(question, f"{PREAMBLE}\n\n{question.text}"),
        "multi-turn": lambda number, question: _behind(question, *EARLIER),
        "system prompt": lambda number, question: _behind(question, {"role": "system", "content": ASSISTANT}),
    }
    if opposing:
        ways["opposed"] = lambda number, question: _behind(question, {"role": "system", "content": opposing[0]})
    plain = [question for question in questions if not isinstance(question.text, Conversation)]
    families = {}
    for family, way in ways.items():
        put = [way(number, question) for number, question in enumerate(plain)]
        families[family] = [question for question in put if question is not None]
    return {family: members for family, members in families.items() if members}


def _put(question: Question, text: str) -> Question:
    return replace(question, text=text)


def _behind(question: Question, *messages: dict[str, str]) -> Question:
    return _put(question, Conversation([*messages, {"role": "user", "content": question.text}]))


def _swapped(question: Question) -> Question | None:
    """The same options under each other's letters; None for a question without two of them."""
    offered = options(question.text)
    if sorted(offered) != ["A", "B"] or letter(question.matching or "") is None:
        return None
    text = f"{stem(question.text)}\n\nChoices:\n (A) {offered['B']}\n (B) {offered['A']}"
    return Question(text, question.opposite, question.matching, question.category)


def _in_words(question: Question) -> Question | None:
    """The bare question, answered by the texts of its options; None for a question without letters."""
    if sorted(options(question.text)) != ["A", "B"] or letter(question.matching or "") is None:
        return None
    pair = ContrastPair(question.text, *question.answers).in_words()
    return Question(pair.text, pair.positive, pair.negative, question.category)
