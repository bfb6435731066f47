"""Prompts and settings in, greedy answers out: from one pool of rows where the model takes it, else batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, product, starmap
from typing import Any

from transformers import GenerationConfig

from caa.models.batching import in_batches, pad
from caa.models.blocks import end_tokens, evaluating
from caa.models.capabilities import can_pool
from caa.models.slots import rows_by_memory
from caa.steering.generation import generate_settings
from caa.steering.intervention import Setting, check_suits_any_prompt
from caa.steering.pool import Place, Writing, write
from caa.steering.wrapper import SteeringWrapper


def greedy_answers(
    wrapper: SteeringWrapper,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    settings: Sequence[Setting],
    max_new_tokens: int,
    batch_size: int | None = None,
) -> Iterator[tuple[Place, Sequence[int]]]:
    """Every prompt's answer under every setting, as soon as it is written: the ids before the first end of sequence.

    The model's own generation config, which may ask for sampling or a penalty, is put aside but for its ends; a model
    without any ends where the tokenizer does. At most `batch_size` answers are written at once (None: as many
    as `rows_by_memory` says), fewer where memory runs out; a model without a pool, and gates, which remember what they
    decided about each row in its place, take as many tokens as so many of the longest kind. ValueError where the logits
    of a pool are no numbers, and for steering that stays on and was made for certain prompts.
    """
    check_suits_any_prompt(wrapper.interventions)
    config = _greedy(wrapper, tokenizer, max_new_tokens)
    longest = max(map(len, prompts), default=0) + max_new_tokens
    rows = rows_by_memory(wrapper.model, longest) if batch_size is None else batch_size
    with evaluating(wrapper):
        with wrapper.paused():
            pooled = can_pool(wrapper.model, longest)
        if pooled and not any(intervention.gate for intervention in chain(wrapper.interventions, *settings)):
            yield from write(wrapper, Writing(prompts, settings, max_new_tokens, frozenset(config.eos_token_id)), rows)
        else:
            yield from _in_batches(wrapper, prompts, settings, config, rows)


def _in_batches(
    wrapper: SteeringWrapper,
    prompts: Sequence[list[int]],
    settings: Sequence[Setting],
    config: GenerationConfig,
    batch_size: int,
) -> Iterator[tuple[Place, Sequence[int]]]:
    """By transformers' `generate`: the settings of a prompt are rows of one batch."""
    for start in range(0, len(settings), batch_size):
        some = settings[start : start + batch_size]
        run = partial(_answers, wrapper, prompts, some, config)
        lengths = [len(some) * (len(ids) + config.max_new_tokens) for ids in prompts]
        budget = batch_size * (max(map(len, prompts)) + config.max_new_tokens)
        for rows, answers in in_batches(run, lengths, budget):
            yield from zip(starmap(Place, product(rows, range(start, start + len(some)))), answers, strict=True)


def _answers(
    wrapper: SteeringWrapper,
    prompts: Sequence[list[int]],
    settings: Sequence[Setting],
    config: GenerationConfig,
    rows: Sequence[int],
) -> list[Sequence[int]]:
    """In the order of `product(rows, settings)`."""
    ids, mask = pad([prompts[row] for row in rows], config.pad_token_id, side="left")
    with _generating(wrapper, config):
        generated = generate_settings(wrapper, ids, mask, settings)[:, ids.shape[1] :].tolist()
    return [_until(row, config.eos_token_id) for row in generated]


def _until(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """What stands before the first end of sequence; what follows it is padding, which may be any token.

    >>> _until([5, 6, 2, 0, 0], [2])
    [5, 6]
    """
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _greedy(wrapper: SteeringWrapper, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end_tokens(wrapper.model) or own,
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
