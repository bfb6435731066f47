"""Scopes against lists of places, one text at a time: under pads, the KV cache, beams and samples; on every family."""

from __future__ import annotations

import pytest
import torch
from slow import PROMPTS, close, logits_by_hand, vector
from tiny import FAMILIES, tiny_model

from caa import Intervention, SteeringWrapper
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks
from caa.steering.scopes import (
    SCOPES,
    At,
    Decay,
    First,
    Steps,
    after_prompt,
    everywhere,
    last_prompt_token,
    prompt_only,
)

PLACES = [[0, 4, 10], [6], []]
BY_HAND = {
    "after_prompt": (after_prompt, lambda row, prompt, length: range(prompt - 1, length)),
    "everywhere": (everywhere, lambda row, prompt, length: range(length)),
    "prompt_only": (prompt_only, lambda row, prompt, length: range(prompt)),
    "last_prompt_token": (last_prompt_token, lambda row, prompt, length: [prompt - 1]),
    "first": (First(3), lambda row, prompt, length: range(min(3, length))),
    "at": (At(PLACES), lambda row, prompt, length: [place for place in PLACES[row] if place < length]),
    "steps": (Steps(2), lambda row, prompt, length: range(prompt - 1, min(prompt + 1, length))),
    "decay": (
        Decay(1.5),
        lambda row, prompt, length: {p: 0.5 ** ((p - prompt + 1) / 1.5) for p in range(prompt - 1, length)},
    ),
}
OPTIONS = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
WITH_LOGITS = {**OPTIONS, "output_logits": True, "return_dict_in_generate": True}


def expected_logits(model, row: int, text: list[int], prompt: int, name: str) -> torch.Tensor:
    """Of each token after the prompt, from the whole text at once."""
    places = BY_HAND[name][1](row, prompt, len(text) - 1)
    return logits_by_hand(model, text[:-1], 1, lambda token: token + 2.0 * vector().at(1), places)[prompt - 1 :]


def test_every_scope_with_a_name_is_tested_here():
    assert set(BY_HAND) == set(SCOPES)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_from_a_padded_batch_is_that_of_each_text_alone(family, name):
    model = tiny_model(family)
    ids, mask = pad(PROMPTS, 0, "left")
    with SteeringWrapper(model).steer(Intervention(vector(), 1, 2.0, where=BY_HAND[name][0])):
        written = SteeringWrapper(model).model.generate(ids, attention_mask=mask, **WITH_LOGITS)
    for row, prompt in enumerate(PROMPTS):
        text = prompt + written.sequences[row, 9:].tolist()
        expected = expected_logits(model, row, text, len(prompt), name)
        close(torch.stack([step[row] for step in written.logits]), expected)


def test_the_scopes_differ_here():
    """Else the tests above would not tell one from the other."""
    model, text = tiny_model(), [*PROMPTS[0], 50, 51, 52]
    found = [expected_logits(model, 0, text, 9, name)[-1] for name in BY_HAND]
    assert all((a - b).abs().max() > 1e-2 for n, a in enumerate(found) for b in found[:n])


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2"])
def test_generation_without_a_cache_is_the_same(family, name):
    model = tiny_model(family)
    ids, mask = pad(PROMPTS, 0, "left")
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(vector(), 1, 2.0, where=BY_HAND[name][0])):
        cached, uncached = (wrapper.generate(ids, mask, use_cache=cache, **WITH_LOGITS) for cache in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
    close(torch.stack(cached.logits), torch.stack(uncached.logits))


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2"])
def test_beams_of_a_batch_are_those_of_each_prompt_alone_without_a_cache(family, name):
    model = tiny_model(family)
    ids, mask = pad(PROMPTS[:2], 0, "left")
    wrapper, beams = SteeringWrapper(model), {**OPTIONS, "num_beams": 3, "num_return_sequences": 2}

    def scope(row=None):
        rows = [PLACES[row]] if row is not None else PLACES[:2]
        return At(rows) if name == "at" else BY_HAND[name][0]

    with wrapper.steer(Intervention(vector(), 1, [6.0, -6.0], where=scope())):
        together = wrapper.generate(ids, mask, **beams)
    plain = wrapper.generate(ids, mask, **beams)
    assert not torch.equal(together, plain)
    for row, multiplier in enumerate((6.0, -6.0)):
        with wrapper.steer(Intervention(vector(), 1, multiplier, where=scope(row))):
            alone = wrapper.generate(torch.tensor([PROMPTS[row]]), use_cache=False, **beams)
        assert torch.equal(together[2 * row : 2 * row + 2, -3:], alone[:, -3:])


@pytest.mark.parametrize("name", BY_HAND)
def test_several_samples_of_a_prompt_are_steered_like_it(name):
    model = tiny_model()
    ids, mask = pad(PROMPTS, 0, "left")
    torch.manual_seed(0)
    options = {**WITH_LOGITS, "do_sample": True, "num_return_sequences": 2}
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(vector(), 1, 2.0, where=BY_HAND[name][0])):
        written = wrapper.generate(ids, mask, **options)
    for sample, row in enumerate([0, 0, 1, 1, 2, 2]):
        text = PROMPTS[row] + written.sequences[sample, 9:].tolist()
        expected = expected_logits(model, row, text, len(PROMPTS[row]), name)
        close(torch.stack([step[sample] for step in written.logits]), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BY_HAND)
def test_a_padded_batch_of_prompts_with_answers(name, side):
    model, lengths = tiny_model(), torch.tensor([7, 3, 1])
    ids, mask = pad(PROMPTS, 0, side)
    wrapper = SteeringWrapper(model, Intervention(vector(), 1, 2.0, where=BY_HAND[name][0]))
    logits = wrapper(ids, mask, prompt_lengths=lengths).logits.detach()
    wrapper.unsteer()
    for row, text in enumerate(PROMPTS):
        places = BY_HAND[name][1](row, lengths[row].item(), len(text))
        expected = logits_by_hand(model, text, 1, lambda token: token + 2.0 * vector().at(1), places)
        close(logits[row][mask[row].bool()], expected)


def test_the_current_token_of_each_cached_step_is_the_default_scope():
    model, push = tiny_model(), 2.0 * vector().at(1)
    ids = torch.tensor([PROMPTS[0]])

    def current(module, args, output):
        return torch.cat([output[:, :-1], output[:, -1:] + push], dim=1)

    handle = decoder_blocks(model)[1].register_forward_hook(current)
    expected = model.generate(ids, **WITH_LOGITS)
    handle.remove()
    wrapper = SteeringWrapper(model, Intervention(vector(), 1, 2.0))
    close(torch.stack(wrapper.generate(ids, **WITH_LOGITS).logits), torch.stack(expected.logits))


def test_a_mask_of_a_padded_batch_becomes_places():
    ids, mask = pad([[5, 6, 7], [8]], 0, "left")
    assert At.mask(ids >= 6, mask) == At([[1, 2], [0]])
    assert At.mask(ids < 99, mask) == At([[0, 1, 2], [0]])
    assert At.mask(ids == 7) == At([[2], []])


def test_one_step_is_the_last_prompt_token_and_one_token_the_first():
    positions, last = torch.arange(5)[None], torch.tensor([[2]])
    assert torch.equal(Steps(1)(positions, last), last_prompt_token(positions, last))
    assert torch.equal(First(1)(positions, last), positions == 0)


def test_places_that_make_no_sense_are_refused():
    for places in ([], [[-1]]):
        with pytest.raises(ValueError, match="At needs a list of places for each prompt"):
            At(places)
    with pytest.raises(ValueError, match="at least one token"):
        First(0)
    with pytest.raises(ValueError, match="at least one step"):
        Steps(0)
    wrapper = SteeringWrapper(tiny_model(), Intervention(vector(), 1, where=At([[0], [1]])))
    with pytest.raises(ValueError, match="2 lists of places do not fit a batch of 3 rows"):
        wrapper(*pad(PROMPTS, 0, "left"))
