"""Settings in, what they do in plain words out; conversations in, HTML out, in which all that was written is data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from caa.data.behaviors import Message
from caa.playground.session import Setting
from caa.playground.streaming import Answer

SHOWN = 2000
"""Tokens that a side of the page holds at most, the newest ones: a browser is slow with more."""
PLACES = {
    "after_prompt": "from the last token of the prompt on",
    "everywhere": "on every token",
    "prompt_only": "on the tokens of the prompt",
    "last_prompt_token": "on the last token of the prompt",
}
FAINT = 0.05
"""A cosine that is never in full color, so that noise stays pale."""
_TOKEN = Markup('<span class="{}" style="--v:{:.0f}%" title="{:+.3f}">{}</span>')


@dataclass(frozen=True)
class Turn:
    """A question and what both sides say to it."""

    question: str
    answers: tuple[Answer, Answer]
    """Unsteered, steered."""


def histories(turns: Sequence[Turn], question: str) -> tuple[list[Message], list[Message]]:
    """The two conversations so far with a new question: each side has its own past."""
    return _history(turns, question, 0), _history(turns, question, 1)


def _history(turns: Sequence[Turn], question: str, side: int) -> list[Message]:
    messages: list[Message] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answers[side].text})
    return [*messages, {"role": "user", "content": question}]


def sentence(setting: Setting, pushes: Mapping[str, float]) -> str:
    """The setting in force. `pushes` are relative to the length of the residual stream."""
    wearing = f"Both sides wear the finetune {setting.finetune}. " if setting.finetune else ""
    active = [
        f"{name} x {multiplier:+g} (a push of {abs(pushes[name]):.2g} of the residual stream's length)"
        for name, multiplier in setting.vectors.items()
        if multiplier
    ]
    drawn = f" Tokens are drawn at temperature {setting.temperature:g}, on both sides by the seed {setting.seed}."
    sampled = drawn if setting.temperature else ""
    if not active:
        return f"{wearing}Nothing is steered: both sides are the same model.{sampled}"
    where = f"at layer {setting.layer} (the output of that block, counted from 0), {PLACES[setting.scope]}"
    return f"{wearing}The right side is steered by {' and '.join(active)}, {where}.{sampled}"


def waiting(question: str, reason: str) -> str:
    """A message that has no answer yet."""
    return Markup('<p class="asked">{}</p><p class="waits">{}</p>').format(question, reason)


def pane(turns: Sequence[Turn], side: int, name: str) -> str:
    """One side of the conversation, its tokens colored by their cosine with a vector."""
    most = full_color(turns, name)
    left, parts = SHOWN, []
    for turn in reversed(turns):
        answer = turn.answers[side]
        shown = min(left, len(answer.ids))
        left -= shown
        parts.append(_turn(turn.question, answer, shown, name, most))
    return Markup("").join(reversed(parts))


def full_color(turns: Sequence[Turn], name: str) -> float:
    """The largest cosine, of either sign, that is shown on either side: one scale for both."""
    answers = [answer for turn in turns for answer in turn.answers]
    shown = [cosines for answer in answers for cosines in answer.along[-SHOWN:]]
    return max((abs(cosines[name]) for cosines in shown if name in cosines), default=0.0)


def _turn(question: str, answer: Answer, shown: int, name: str, most: float) -> Markup:
    first = len(answer.ids) - shown
    cut = Markup('<p class="cut">{:,} earlier tokens are not shown</p>').format(first) if first else ""
    text = Markup("").join(_tokens(answer, first, name, max(most, FAINT)))
    return Markup('<p class="asked">{}</p>{}<p class="said">{}</p>').format(question, cut, text)


def _tokens(answer: Answer, first: int, name: str, most: float) -> Iterator[str]:
    for number, (text, along) in enumerate(zip(answer.texts[first:], answer.along[first:], strict=True), first):
        text = text if number else text.lstrip()
        if name in along:
            value = along[name]
            yield _TOKEN.format("along" if value > 0 else "away", 100 * abs(value) / most, value, text)
        else:
            yield Markup("{}").format(text)
