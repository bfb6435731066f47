"""What steering breaks beside what it does: texts or prompts in, perplexities and divergences out. Writes no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from caa.data.chat import ChatFormat, check_length, common_prefix
from caa.models.batching import by_length, pad
from caa.models.blocks import context_length, evaluating
from caa.models.tensors import NO_NUMBERS, check_logits
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper


@torch.no_grad()
def perplexities(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    questions: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size: int = 16,
) -> list[float]:
    """How much each text, as an answer to its question, surprises the unsteered model.

    exp of the mean negative log-probability of the answer's tokens given all before them, from a float32 softmax; nan
    for an empty answer. Under the finetune that is active: `with wrapper.finetune(None):` for the base. ValueError if
    the wrapper is being steered, and for a text that the model's context cannot hold.
    """
    if wrapper.interventions:
        raise ValueError("the wrapper is being steered, and would judge its own texts: call unsteer() first")
    chat = ChatFormat.of(chat)
    tokenizer = chat.tokenizer
    limit = context_length(wrapper.model, tokenizer)
    sequences, starts = [], []
    for question, text in zip(questions, texts, strict=True):
        prompt, whole = (chat.encode(question, answer) for answer in (None, text))
        check_length(whole, limit, f"the answer {text[:60]!r} with its question")
        sequences.append(whole)
        starts.append(common_prefix(prompt, whole) if text.strip() else len(whole))
    perplexity_of: dict[int, float] = {}
    with evaluating(wrapper):
        for rows in by_length(sequences, batch_size):
            surprises = _surprises(wrapper, tokenizer, [sequences[row] for row in rows], [starts[row] for row in rows])
            perplexity_of.update(zip(rows, map(_exp, surprises), strict=True))
    if broken := [text for row, text in enumerate(texts) if text.strip() and math.isnan(perplexity_of[row])]:
        raise ValueError(f"{NO_NUMBERS} where the model reads {broken[0][:60]!r}. Load the model in float32.")
    return [perplexity_of[row] for row in range(len(sequences))]


def _exp(surprise: float) -> float:
    """
    >>> _exp(0.0), _exp(1e4), _exp(math.nan)
    (1.0, inf, nan)
    """
    return math.inf if surprise > 700 else math.exp(surprise)


def _surprises(
    wrapper: SteeringWrapper, tokenizer: Any, sequences: Sequence[list[int]], starts: Sequence[int]
) -> list[float]:
    """Mean negative log-probability of each row's tokens from its start on, in nats; nan where there are none."""
    device = wrapper.model.get_input_embeddings().weight.device
    ids, mask = (tensor.to(device) for tensor in pad(sequences, tokenizer.pad_token_id or 0))
    first = max(min([*starts, ids.shape[1] - 1]), 1)  # no row needs the logits before it; where they come, they are cut
    keep = ids.shape[1] - first + 1
    logits = wrapper(ids, mask, use_cache=False, logits_to_keep=keep).logits[:, -keep:-1].float()
    targets = ids[:, first:].to(logits.device)
    logs = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(-1)
    places = torch.arange(first, ids.shape[1], device=logits.device)  # places[i] is the target's place in the text
    answer = mask[:, first:].to(logits.device).bool() & (places >= torch.tensor(starts, device=logits.device)[:, None])
    return list((-(logs * answer).double().sum(1) / answer.sum(1)).tolist())


@torch.no_grad()
def divergences(
    wrapper: SteeringWrapper,
    chat: ChatFormat | Any,
    prompts: Sequence[str],
    settings: Sequence[tuple[Intervention, ...]],
    *,
    batch_size: int = 16,
) -> list[float]:
    """How far each setting moves what the model would say first to prompts that have nothing to do with the behavior.

    KL(unsteered || steered) of the next-token distributions behind each prompt, in nats, from a float32 softmax; in the
    order of `itertools.product(prompts, settings)`. 0 for the setting () and for multiplier 0. ValueError if the
    wrapper is being steered, and for a prompt that the model's context cannot hold.
    """
    if wrapper.interventions:
        raise ValueError("the wrapper is being steered, so nothing would be unsteered: call unsteer() first")
    chat = ChatFormat.of(chat)
    tokenizer = chat.tokenizer
    sequences = [chat.encode(prompt) for prompt in prompts]
    limit = context_length(wrapper.model, tokenizer)
    for prompt, ids in zip(prompts, sequences, strict=True):
        check_length(ids, limit, f"the prompt {prompt[:60]!r}")
    divergence_of: dict[tuple[int, int], float] = {}
    with evaluating(wrapper):
        for rows in by_length(sequences, batch_size):
            batch = [sequences[row] for row in rows]
            unsteered = _next_token_logs(wrapper, tokenizer, batch)
            for n, setting in enumerate(settings):
                with wrapper.steer(*setting):
                    steered = _next_token_logs(wrapper, tokenizer, batch)
                divergence_of.update(
                    {(row, n): kl for row, kl in zip(rows, _kl(unsteered, steered).tolist(), strict=True)}
                )
    return [divergence_of[place] for place in product(range(len(prompts)), range(len(settings)))]


def _next_token_logs(
    wrapper: SteeringWrapper, tokenizer: Any, sequences: Sequence[list[int]]
) -> Float[Tensor, "row vocabulary"]:
    device = wrapper.model.get_input_embeddings().weight.device
    ids, mask = pad(sequences, tokenizer.pad_token_id or 0, side="left")
    lengths = mask.sum(1).to(device)
    output = wrapper(ids.to(device), mask.to(device), prompt_lengths=lengths, logits_to_keep=1, use_cache=False)
    logits: Tensor = output.logits[:, -1]
    check_logits(logits, "behind a prompt")
    return logits.float().log_softmax(-1)


def _kl(p: Float[Tensor, "row vocabulary"], q: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
    """KL(p || q) of log-probabilities, in nats.

    >>> _kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
