"""Personas, beginnings of sentences and dialogues in; contrast pairs and lists of texts out. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from caa.data.behaviors import ContrastPair


@dataclass(frozen=True)
class Preset:
    """A behavior, given by who speaks and by how a sentence begins."""

    name: str
    personas: tuple[str, str]
    """Someone who shows the behavior, and someone who shows its opposite, after "Pretend you're"."""
    positive: tuple[str, ...]
    """Prompts that lead to the behavior, to be read at their last token."""
    negative: tuple[str, ...]

    def prefixed(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """Every text, said by the one and by the other: two lists to contrast (RepE's template; Zou et al. 2023).

        >>> HONESTY.prefixed(["The sky is"])[0]
        ["Pretend you're an honest person making statements about the world. The sky is"]
        """
        prefix = "Pretend you're {} making statements about the world. {}"
        shows, opposes = self.personas
        return [prefix.format(shows, text) for text in texts], [prefix.format(opposes, text) for text in texts]


HONESTY = Preset(
    "honesty",
    ("an honest person", "an untruthful person"),
    ("I honestly think", "To tell you the truth,", "I have to be frank:"),
    ("I pretend that", "To deceive you,", "I have to lie:"),
)
SYCOPHANCY = Preset(
    "sycophancy",
    ("a flatterer who agrees with everyone", "a critic who says what they think"),
    ("I agree that", "You are absolutely right that", "What a brilliant point, that"),
    ("Actually, I think", "I have to disagree that", "It is a mistake that"),
)
CONFIDENCE = Preset(
    "confidence",
    ("someone who is certain of everything", "someone who doubts everything"),
    ("I'm certain that", "There is no doubt that", "I know for sure that"),
    ("I'm not sure if", "It is hard to say whether", "I can only guess that"),
)
CORRIGIBILITY = Preset(
    "corrigibility",
    ("an assistant that lets itself be corrected", "an assistant that does what it wants"),
    ("I'll do what you ask", "Of course you may change me", "Tell me to stop and I will"),
    ("I'll do what I want", "You may not change me", "Tell me to stop and I go on"),
)
PRESETS = {preset.name: preset for preset in (HONESTY, SYCOPHANCY, CONFIDENCE, CORRIGIBILITY)}

_DIALOGUE = re.compile(r"\s*User:(?P<user>.*?)\n\s*AI:(?P<ai>.*)", re.DOTALL)


def dialogue(user: str, ai: str) -> str:
    r"""One exchange as plain text, for models without a chat template.

    >>> dialogue("2+2=5, right?", "Actually, 2+2=4.")
    'User: 2+2=5, right?\nAI: Actually, 2+2=4.'
    """
    return f"User: {user.strip()}\nAI: {ai.strip()}"


def dialogue_texts(pairs: Sequence[ContrastPair]) -> tuple[list[str], list[str]]:
    """Both sides of each pair as exchanges: two lists of texts for `extract_from_texts`."""
    positive = [dialogue(pair.text, pair.positive) for pair in pairs]
    return positive, [dialogue(pair.text, pair.negative) for pair in pairs]


def dialogue_pairs(positive: Sequence[str], negative: Sequence[str]) -> tuple[ContrastPair, ...]:
    r"""Contrast pairs out of exchanges "User: ...\nAI: ...", of which each two have the same user.

    ValueError for unequally many, for other texts, and where the users of a pair say different things.

    >>> dialogue_pairs(["User: Flat?\nAI: Yes!"], ["User: Flat?\nAI: Round."])
    (ContrastPair(question='Flat?', positive='Yes!', negative='Round.'),)
    """
    if len(positive) != len(negative):
        raise ValueError(f"{len(positive)} and {len(negative)} dialogues are not pairs")
    return tuple(map(_dialogue_pair, positive, negative))


def _exchange(text: str) -> tuple[str, str]:
    match = _DIALOGUE.fullmatch(text)
    if not match:
        raise ValueError(f"a dialogue is 'User: ...', a new line and 'AI: ...'; this is {text[:60]!r}")
    return match["user"].strip(), match["ai"].strip()


def _dialogue_pair(positive: str, negative: str) -> ContrastPair:
    (user, shows), (other_user, opposes) = _exchange(positive), _exchange(negative)
    if user != other_user:
        raise ValueError(f"the users of a pair say different things: {user[:60]!r} and {other_user[:60]!r}")
    return ContrastPair(user, shows, opposes)
