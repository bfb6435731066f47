"""Activation patching: a run put into itself, into another, token by token; recorded rows against each text alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from slow import PROMPTS, close, logits_by_hand, vector
from tiny import FAMILIES, random_ids, tiny_lora, tiny_model

from caa import Intervention, SteeringWrapper
from caa.models.batching import pad
from caa.steering.operators import add, replace
from caa.steering.patching import Recording, record_activations
from caa.steering.scopes import At, everywhere, prompt_only

LAYERS = range(4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_is_recorded_as_if_alone(family, side):
    model = tiny_model(family)
    recording = record_activations(model, *pad(PROMPTS, 0, side))
    assert recording.lengths.tolist() == [9, 5, 1]
    for row, prompt in enumerate(PROMPTS):
        states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for layer in range(3):  # the last of the hidden states is behind the final norm
            close(recording.at(layer)[row, : len(prompt)], states[layer + 1][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_a_run_into_itself_changes_nothing_bit_for_bit(family):
    model = tiny_model(family)
    ids, mask = pad(PROMPTS, 0, "left")
    wrapper, real = SteeringWrapper(model), mask.bool()
    plain, recording = wrapper(ids, mask).logits, record_activations(model, ids, mask)
    # Experts compute pads and tokens in one product, whose rounding depends on what it holds.
    same = close if family == "Mixtral" else partial(torch.testing.assert_close, rtol=0, atol=0)
    for share in (1.0, 0.3):
        with wrapper.steer(*(Intervention(recording, layer, share, replace, everywhere) for layer in LAYERS)):
            same(wrapper(ids, mask).logits[real], plain[real])
    with wrapper.steer(
        *(Intervention(record_activations(model, ids[:1]), layer, 1.0, replace, everywhere) for layer in LAYERS)
    ):
        alone = wrapper(ids[:1]).logits
    assert torch.equal(alone, wrapper(ids[:1]).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
def test_patching_all_of_another_run_gives_its_logits_bit_for_bit(layer, dtype):
    model = tiny_model().to(dtype)
    wrapper, one, other = SteeringWrapper(model), random_ids(2, 8, seed=1), random_ids(2, 8, seed=2)
    plain, expected = wrapper(one).logits, wrapper(other).logits
    with wrapper.steer(Intervention(record_activations(model, other, layers=[layer]), layer, 1.0, replace, everywhere)):
        assert torch.equal(wrapper(one).logits, expected)
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2", "Bloom"])
def test_patching_another_run_reproduces_its_continuation(family):
    """Left-padded and cached: prompts of several lengths, each continued as another prompt of its length is."""
    model = tiny_model(family)
    others = [random_ids(1, len(prompt), seed=77)[0].tolist() for prompt in PROMPTS]
    (one, mask), (other, _) = pad(PROMPTS, 0, "left"), pad(others, 0, "left")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    wrapper = SteeringWrapper(model)
    expected = wrapper.generate(other, mask, **options)
    whole = record_activations(model, expected, torch.cat([mask, torch.ones(3, 5, dtype=torch.long)], dim=1), [2])
    assert not torch.equal(wrapper.generate(one, mask, **options)[:, -5:], expected[:, -5:])
    with wrapper.steer(Intervention(whole, 2, 1.0, replace, everywhere)):
        assert torch.equal(wrapper.generate(one, mask, **options)[:, -5:], expected[:, -5:])
    prompts = record_activations(
        model, other, mask, [2]
    )  # later tokens still see keys of their own prompt in the blocks below
    with wrapper.steer(Intervention(prompts, 2, 1.0, replace, prompt_only)):
        patched = wrapper.generate(one, mask, **options)
    assert torch.equal(patched[:, -5], expected[:, -5])
    assert not torch.equal(patched[:, -4:], expected[:, -4:])


def test_one_token_of_another_run_as_a_hook_of_ones_own_puts_it_there():
    model, other = tiny_model(), torch.tensor([PROMPTS[1]])
    ids, mask = pad(PROMPTS[:1], 0, "left")
    recording = record_activations(model, other)
    value = recording.at(1)[0, 3]
    expected = logits_by_hand(model, PROMPTS[0], 1, lambda token: value, [3])
    wrapper = SteeringWrapper(model, Intervention(recording, 1, 1.0, replace, At([[3]])))
    close(wrapper(ids, mask).logits[0].detach(), expected)
    wrapper.unsteer()
    wrapper.steer(Intervention(recording, 2, 1.0, replace, At([[3]]), source_layer=1))
    close(wrapper(ids).logits[0].detach(), logits_by_hand(model, PROMPTS[0], 2, lambda token: value, [3]))


def test_where_the_recording_has_ended_nothing_is_edited():
    model, wrapper = tiny_model(), SteeringWrapper(tiny_model())
    recording = record_activations(model, torch.tensor([PROMPTS[1]]))  # 5 tokens, into texts of 9, 5 and 1
    with wrapper.steer(Intervention(recording, 1, 1.0, replace, everywhere)):
        found = record_activations(wrapper.model, *pad(PROMPTS, 0, "left"))
    plain = record_activations(model, *pad(PROMPTS, 0, "left"))
    assert torch.equal(found.at(1)[0, :5], recording.at(1)[0])
    assert torch.equal(found.at(1)[0, 5:], plain.at(1)[0, 5:])
    assert not torch.equal(found.at(1)[0, :5], plain.at(1)[0, :5])


def test_a_direction_for_each_token_can_be_added_too():
    """As ActAdd does with the difference of two prompts."""
    model, prompt = tiny_model(), PROMPTS[0]
    steps = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(Recording({1: steps}, torch.tensor([3])), 1, 2.0, add, everywhere)):
        found = record_activations(model, torch.tensor([prompt])).at(1)[0]
    plain = record_activations(model, torch.tensor([prompt])).at(1)[0]
    close(found - plain, torch.cat([2.0 * steps[0], torch.zeros(6, 32)]))


def test_a_recording_knows_steering_and_adapters_and_says_so():
    model = tiny_lora(tiny_model())
    ids = torch.tensor([PROMPTS[0]])
    base = record_activations(tiny_model(), ids)
    worn = record_activations(model, ids)
    assert (base.source.adapter, worn.source.adapter) == ("", "sft")
    assert not torch.equal(base.at(1), worn.at(1))
    with SteeringWrapper(model).steer(Intervention(vector(), 1, 3.0, where=everywhere)):
        close(record_activations(model, ids).at(1) - worn.at(1), (3.0 * vector().at(1)).expand(1, 9, 32))


def test_clear_errors():
    model = tiny_model()
    recording = record_activations(model, random_ids(2, 4), layers=[1])
    with pytest.raises(KeyError, match=r"layer 2 was not recorded, these were: \[1\]"):
        SteeringWrapper(model, Intervention(recording, 2, 1.0, replace))
    with pytest.raises(ValueError, match="no layer 4"):
        record_activations(model, random_ids(2, 4), layers=[4])
    with pytest.raises(ValueError, match="16 wide and the model 32"):
        SteeringWrapper(model, Intervention(Recording({1: torch.ones(1, 1, 16)}, torch.tensor([1])), 1, 1.0, replace))
    with pytest.raises(ValueError, match=r"needs \[row, position, d_model\] for 1 rows of up to 3 tokens"):
        Recording({1: torch.ones(1, 2, 32)}, torch.tensor([3]))
    with (
        SteeringWrapper(model).steer(Intervention(recording, 1, 1.0, replace, everywhere)),
        pytest.raises(ValueError, match="2 recorded rows do not fit a batch of 3 rows"),
    ):
        model(random_ids(3, 4))
