"""Questions x settings in, probabilities or texts out. Knows the steered network; judges nothing, writes no file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from jaxtyping import Float
from torch import Tensor

from caa.data.behaviors import ContrastPair, Question
from caa.data.chat import ChatFormat, check_length
from caa.models.blocks import context_length
from caa.steering.answers import greedy_answers
from caa.steering.intervention import Setting
from caa.steering.scoring import Continued, log_probabilities
from caa.steering.wrapper import SteeringWrapper

RAREST = 1e-290
"""The smallest probability of the likelier answer that is kept; float64's smallest numbers have few digits."""


@dataclass(frozen=True)
class ChoiceScore:
    """How a model weighs the two answers to one question."""

    question: str
    """`Question.id`."""
    p_matching: float
    """Probability of the tokens in which the matching answer differs from the other: the letter, for "(A)".

    Long answers may be rarer than float64 can say: then both probabilities are raised alike (`comparable`)."""
    p_opposite: float

    def __post_init__(self) -> None:
        if not 0 < self.mass < 1.001:
            raise ValueError(
                f"the two answers to question {self.question} have a probability of {self.mass}: the logits are no "
                "numbers any more. Use a smaller multiplier, or load it in float32."
            )

    @property
    def score(self) -> float:
        """p(matching) / (p(matching) + p(opposite)), as in Rimsky et al. (2024)."""
        return self.p_matching / self.mass

    @property
    def mass(self) -> float:
        """p(matching) + p(opposite): where it is small, the model wanted to say something else."""
        return self.p_matching + self.p_opposite


def comparable(logs: Float[Tensor, "*rest answer"]) -> Float[Tensor, "*rest answer"]:
    """Log probabilities of answers, float64, as probabilities whose ratio float64 can say.

    Where even the likeliest answer is rarer than `RAREST`, all are raised by the factor that brings it there. NaN where
    no answer is possible.

    >>> import torch
    >>> comparable(torch.tensor([[-1000.0, -1000.0 + math.log(3)]], dtype=torch.float64)).div(RAREST)
    tensor([[0.3333, 1.0000]], dtype=torch.float64)
    """
    missing = math.log(RAREST) - logs.amax(-1, keepdim=True)
    return (logs + missing.clamp(min=0)).exp()


def render_choices(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Sequence[Question],
) -> list[Continued]:
    """The questions as ids; ValueError for one without two answers, and for one that the context cannot hold.

    What follows the place where the answers differ is left out if it is the same for both, such as the ")" of "(A)".
    """
    chat = ChatFormat.of(chat)
    limit = context_length(wrapper.model, chat.tokenizer)
    choices = []
    for question in questions:
        branches = chat.encode_pair(_contrast(question))
        pair = _without_common_end(branches.positive, branches.negative, branches.parting)
        prompt, start = branches.prompt_length, branches.parting - branches.prompt_length
        choice = Continued(branches.positive[:prompt], (pair[0][prompt:], pair[1][prompt:]), start)
        check_length(range(choice.length), limit, f"the question {question.text[:60]!r}")
        choices.append(choice)
    return choices


def _without_common_end(first: list[int], second: list[int], parting: int) -> tuple[list[int], list[int]]:
    """Two texts without the tokens that both end in; each keeps at least the token where they part.

    >>> _without_common_end([1, 7, 9], [1, 8, 9], parting=1)
    ([1, 7], [1, 8])
    """
    while min(len(first), len(second)) > parting + 1 and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    return first, second


def _contrast(question: Question) -> ContrastPair:
    if question.matching is None or question.opposite is None:
        raise ValueError(f"this question has no two answers to choose from, so ask it openly: {question.text[:60]!r}")
    return ContrastPair(question.text, question.matching, question.opposite)


def render_prompts(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Sequence[Question],
    max_new_tokens: int,
) -> list[list[int]]:
    """The questions as ids, ready to be answered; ValueError where the context cannot hold question and answer."""
    chat = ChatFormat.of(chat)
    limit = context_length(wrapper.model, chat.tokenizer)
    prompts = [chat.encode(question.text) for question in questions]
    for question, ids in zip(questions, prompts, strict=True):
        with_answer = range(len(ids) + max_new_tokens)
        check_length(with_answer, limit, f"{question.text[:60]!r} with room for {max_new_tokens} new tokens")
    return prompts


def score_choices(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    *,
    batch_size: int = 16,
) -> list[ChoiceScore]:
    """Ask every question under every setting; scores in the order of `itertools.product(questions, settings)`.

    One forward pass reads a question once for all settings that leave its prompt alone (see `log_probabilities`).
    """
    chat = ChatFormat.of(chat)
    texts = render_choices(wrapper, chat, questions)
    logs = log_probabilities(wrapper, texts, settings, pad_id=chat.pad_id, batch_size=batch_size)
    pairs = comparable(logs).flatten(0, 1).tolist()
    cases = product(questions, settings)
    return [ChoiceScore(question.id, *pair) for (question, _), pair in zip(cases, pairs, strict=True)]


def answer_open(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    *,
    max_new_tokens: int = 48,
    batch_size: int | None = None,
) -> list[str]:
    """Let the model answer every question under every setting, greedily.

    Texts in the order of `itertools.product(questions, settings)`, without special tokens, up to the first end of
    sequence; at most `batch_size` are written at once, by default as many as memory is there for (`rows_by_memory`). A
    prompt is read once for all settings that leave it alone.
    """
    answers = stream_open(wrapper, chat, questions, settings, max_new_tokens=max_new_tokens, batch_size=batch_size)
    texts = dict(answers)
    return [texts[place] for place in product(range(len(questions)), range(len(settings)))]


def stream_open(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    *,
    max_new_tokens: int = 48,
    batch_size: int | None = None,
) -> Iterator[tuple[tuple[int, int], str]]:
    """The answers of `answer_open`, each as soon as it is written: ((index of question, index of setting), text)."""
    chat = ChatFormat.of(chat)
    prompts = render_prompts(wrapper, chat, questions, max_new_tokens)
    for place, ids in greedy_answers(wrapper, chat.tokenizer, prompts, settings, max_new_tokens, batch_size):
        yield place, chat.tokenizer.decode(ids, skip_special_tokens=True).strip()
