"""Questions x multipliers in, probabilities or texts out. Knows the steered network; judges nothing, writes no file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from transformers import GenerationConfig

from caa.data.behaviors import ContrastPair, Question
from caa.data.rendering import check_length, render, render_branches
from caa.steering.batching import by_length, pad
from caa.steering.blocks import context_length, evaluating
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector


@dataclass(frozen=True)
class ChoiceScore:
    """How a model, steered by one multiplier, weighs the two answers to one question."""

    question: str
    """`Question.id`."""
    multiplier: float
    p_matching: float
    """Probability of the matching answer's token at the place where the two answers part: the letter, for "(A)"."""
    p_opposite: float

    def __post_init__(self) -> None:
        if not 0 < self.mass < 1.001:
            raise ValueError(
                f"multiplier {self.multiplier:g} leaves the two answers to question {self.question} a probability of "
                f"{self.mass}: its logits are no numbers any more. Use a smaller multiplier, or load it in float32."
            )

    @property
    def score(self) -> float:
        """p(matching) / (p(matching) + p(opposite)), as in Rimsky et al. (2024)."""
        return self.p_matching / self.mass

    @property
    def mass(self) -> float:
        """p(matching) + p(opposite): where it is small, the model wanted to say something else."""
        return self.p_matching + self.p_opposite


@dataclass(frozen=True)
class Choice:
    """A two-answer question as ids: what the model reads, and the two tokens that it may go on with."""

    ids: list[int]
    """Prompt and whatever the two answers share, such as "("."""
    prompt_length: int
    matching: int
    opposite: int


def render_choices(
    wrapper: SteeringWrapper,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    system: str | None = None,
    template: str | None = None,
) -> list[Choice]:
    """The questions as ids; ValueError for one without two answers, and for one that the context cannot hold."""
    limit = context_length(wrapper.model, tokenizer)
    choices = []
    for question in questions:
        branches = render_branches(tokenizer, _contrast(question), system=system, template=template)
        parting = branches.parting
        check_length(branches.positive[:parting], limit, f"the question {question.text[:60]!r}")
        tokens = branches.positive[parting], branches.negative[parting]
        choices.append(Choice(branches.positive[:parting], branches.prompt_length, *tokens))
    return choices


def _contrast(question: Question) -> ContrastPair:
    if question.matching is None or question.opposite is None:
        raise ValueError(f"this question has no two answers to choose from, so ask it openly: {question.text[:60]!r}")
    return ContrastPair(question.text, question.matching, question.opposite)


def render_prompts(
    wrapper: SteeringWrapper,
    tokenizer: Any,
    questions: Sequence[Question],
    max_new_tokens: int,
    *,
    system: str | None = None,
    template: str | None = None,
) -> list[list[int]]:
    """The questions as ids, ready to be answered; ValueError where the context cannot hold question and answer."""
    limit = context_length(wrapper.model, tokenizer)
    prompts = [render(tokenizer, question.text, system=system, template=template) for question in questions]
    for question, ids in zip(questions, prompts, strict=True):
        with_answer = range(len(ids) + max_new_tokens)
        check_length(with_answer, limit, f"{question.text[:60]!r} with room for {max_new_tokens} new tokens")
    return prompts


@torch.no_grad()
def score_choices(
    wrapper: SteeringWrapper,
    tokenizer: Any,
    questions: Sequence[Question],
    vector: SteeringVector,
    layer: int,
    multipliers: Sequence[float],
    *,
    system: str | None = None,
    template: str | None = None,
    batch_size: int = 16,
) -> list[ChoiceScore]:
    """Ask every question under every multiplier; scores in the order of `itertools.product(questions, multipliers)`.

    Steering begins at the last token of the prompt; the answers' probabilities are read where they part, from a float32
    softmax. Multiplier 0 is exactly the unsteered model. `batch_size` counts forward rows, of which one is one question
    under one multiplier.
    """
    choices = render_choices(wrapper, tokenizer, questions, system=system, template=template)
    asked = list(product(zip(questions, choices, strict=True), multipliers))
    scores: dict[int, ChoiceScore] = {}
    with evaluating(wrapper):
        for rows in by_length([choice.ids for (_, choice), _ in asked], batch_size):
            steering = Intervention(vector, layer, [asked[row][1] for row in rows])
            with wrapper.steer(steering):
                found = _parting_probabilities(wrapper, tokenizer, [asked[row][0][1] for row in rows])
            for row, pair in zip(rows, found, strict=True):
                (question, _), multiplier = asked[row]
                scores[row] = ChoiceScore(question.id, multiplier, *pair)
    return [scores[row] for row in range(len(asked))]


def _parting_probabilities(
    wrapper: SteeringWrapper, tokenizer: Any, choices: Sequence[Choice]
) -> list[tuple[float, float]]:
    """(p_matching, p_opposite) of each row, from one forward pass that makes the logits of its last column only."""
    device = wrapper.model.get_input_embeddings().weight.device
    ids, mask = pad([choice.ids for choice in choices], tokenizer.pad_token_id or 0, side="left")
    prompts = torch.tensor([choice.prompt_length for choice in choices], device=device)
    output = wrapper(ids.to(device), mask.to(device), prompt_lengths=prompts, logits_to_keep=1, use_cache=False)
    tokens = torch.tensor([[choice.matching, choice.opposite] for choice in choices], device=device)
    logs = output.logits[:, -1].float().log_softmax(-1)
    # exp in Python's float64: under strong steering both answers may be rarer than float32 can say, and still compare.
    pairs = logs.gather(1, tokens.to(logs.device)).tolist()
    return [(math.exp(matching), math.exp(opposite)) for matching, opposite in pairs]


def answer_open(
    wrapper: SteeringWrapper,
    tokenizer: Any,
    questions: Sequence[Question],
    vector: SteeringVector,
    layer: int,
    multipliers: Sequence[float],
    *,
    system: str | None = None,
    template: str | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 16,
) -> list[str]:
    """Let the model answer every question under every multiplier, greedily.

    Texts in the order of `itertools.product(questions, multipliers)`, without special tokens, up to the first end of
    sequence. Steering begins at the last token of the prompt.
    """
    prompts = render_prompts(wrapper, tokenizer, questions, max_new_tokens, system=system, template=template)
    asked = list(product(prompts, multipliers))
    config = _greedy(wrapper, tokenizer, max_new_tokens)
    texts: dict[int, str] = {}
    with evaluating(wrapper), _generating(wrapper, config):
        for rows in by_length([ids for ids, _ in asked], batch_size):
            steering = Intervention(vector, layer, [asked[row][1] for row in rows])
            with wrapper.steer(steering):
                found = _generate(wrapper, tokenizer, [asked[row][0] for row in rows], config)
            texts.update(zip(rows, found, strict=True))
    return [texts[row] for row in range(len(asked))]


def _generate(
    wrapper: SteeringWrapper, tokenizer: Any, prompts: Sequence[list[int]], config: GenerationConfig
) -> list[str]:
    device = wrapper.model.get_input_embeddings().weight.device
    ids, mask = pad(prompts, config.pad_token_id, side="left")
    generated = wrapper.generate(ids.to(device), mask.to(device))[:, ids.shape[1] :].tolist()
    answers = [_until(row, config.eos_token_id or []) for row in generated]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _until(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """What stands before the first end of sequence; what follows it is padding, which may be any token.

    >>> _until([5, 6, 2, 0, 0], [2])
    [5, 6]
    """
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _greedy(wrapper: SteeringWrapper, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    own = getattr(wrapper.model, "generation_config", None)
    ends = getattr(own, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=[ends] if isinstance(ends, int) else ends,
        pad_token_id=tokenizer.pad_token_id or 0,
    )


@contextmanager
def _generating(wrapper: SteeringWrapper, config: GenerationConfig) -> Iterator[None]:
    """Put the model's own generation config aside for a while.

    It may ask for sampling (Llama 2 chat) or for a repetition penalty (Qwen 2), and `generate` takes from it whatever a
    caller leaves open. A PeftModel and the model inside it hold one each.
    """
    own = {
        module: vars(module)["generation_config"] for module in wrapper.modules() if "generation_config" in vars(module)
    }
    try:
        for module in own:
            module.generation_config = config  # type: ignore[assignment]
        yield
    finally:
        for module, before in own.items():
            module.generation_config = before
