"""Operators against numpy, one token at a time; inside models of several families; under the cache; with gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow import PROMPTS, close, hooked, logits_by_hand, vector
from tiny import FAMILIES, tiny_lora, tiny_model

from caa import Intervention, SteeringWrapper
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks
from caa.steering.intervention import clamp_subspace, erase_subspace
from caa.steering.operators import (
    OPERATORS,
    Clamp,
    Targeted,
    ablate,
    add,
    add_keeping_norm,
    add_relative,
    projection,
    replace,
)
from caa.steering.patching import record_activations
from caa.steering.scopes import everywhere


def unit(d):
    return d / np.linalg.norm(d)


BY_HAND = {
    "add": (add, lambda h, d, s: h + s * d),
    "add_keeping_norm": (
        add_keeping_norm,
        lambda h, d, s: (h + s * d) / np.linalg.norm(h + s * d) * np.linalg.norm(h),
    ),
    "add_relative": (add_relative, lambda h, d, s: h + s * np.linalg.norm(h) * unit(d)),
    "ablate": (ablate, lambda h, d, s: h - s * np.dot(h, d) / np.dot(d, d) * d),
    "clamp": (Clamp(1.5), lambda h, d, s: h + s * (1.5 - np.dot(h, unit(d))) * unit(d)),
    "replace": (replace, lambda h, d, s: (1 - s) * h + s * d),
    "targeted above": (Targeted(above=0.3), lambda h, d, s: h + s * d if np.dot(h, unit(d)) > 0.3 else h),
    "targeted between": (
        Targeted(-0.6, 0.6, Clamp(2.0)),
        lambda h, d, s: h + s * (2 - np.dot(h, unit(d))) * unit(d) if abs(np.dot(h, unit(d))) < 0.6 else h,
    ),
}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("per_token", [False, True])
def test_an_operator_is_what_numpy_says_token_by_token(name, per_token):
    operator, by_hand = BY_HAND[name]
    resid, direction = drawn(3, 5, 8), drawn(3, 5, 8, seed=1) if per_token else drawn(8, seed=1)
    strength = torch.tensor([[0.0, 1.0, -0.5, 2.0, 0.3]]).repeat(3, 1)
    before = resid.clone()
    found = operator(resid, direction, strength).numpy()
    each = direction.expand_as(resid).numpy()
    places = list(np.ndindex(3, 5))
    expected = np.array([by_hand(resid[p].numpy(), each[p], strength[p].item()) for p in places]).reshape(3, 5, 8)
    assert torch.equal(resid, before), "written in place"
    assert np.abs(expected - resid.numpy()).max() > 0.1, "the operator does nothing here"
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_operator_with_a_name_is_tested_here():
    assert {name.split()[0] for name in BY_HAND} == set(OPERATORS)


def test_what_operators_leave():
    resid, direction, one = drawn(2, 4, 8).float(), drawn(8, seed=1).float(), torch.ones(2, 4)
    norms = resid.norm(dim=-1)
    close(add_keeping_norm(resid, direction, 3 * one).norm(dim=-1), norms)
    assert (projection(ablate(resid, direction, one), direction).abs() < 1e-5 * norms).all()
    torch.testing.assert_close(ablate(resid, direction, one), ablate(resid, -7 * direction, one))
    close(projection(Clamp(-2.0)(resid, direction, one), direction), -2 * one)
    assert torch.equal(replace(resid, resid, 0.3 * one), resid)
    assert torch.equal(replace(resid, direction, one), direction.expand_as(resid))
    assert torch.equal(ablate(resid, 0 * direction, one), resid), "nothing points along a vector of zeros"
    assert torch.equal(add_keeping_norm(resid, -resid, one), 0 * resid)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BY_HAND)
def test_half_precision_is_rounded_once(name, dtype):
    operator, _ = BY_HAND[name]
    resid, direction, strength = drawn(2, 4, 64).to(dtype), drawn(64, seed=1).float(), torch.full((2, 4), 0.5)
    found = operator(resid, direction, strength)
    assert found.dtype == dtype
    exact = operator(resid.double(), direction, strength)
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("values", [None, [1.5, -0.5]])
def test_a_subspace_is_erased_or_set_as_one_projection_does_it(values):
    span = drawn(2, 32, seed=4)
    basis = torch.linalg.qr(span.T).Q.T
    at_once = basis.T @ basis
    target = torch.tensor(values or [0.0, 0.0], dtype=torch.float64) @ basis
    setting = erase_subspace(span, 1) if values is None else clamp_subspace(basis, 1, values)
    model, ids = tiny_model(), PROMPTS[0]
    with SteeringWrapper(model).steer(*setting):
        found = model(torch.tensor([ids])).logits[0]
    expected = logits_by_hand(
        model, ids, 1, lambda token: (token.double() - at_once @ token.double() + target).float(), [len(ids) - 1]
    )
    close(found, expected)
    assert (found - model(torch.tensor([ids])).logits[0]).abs().max() > 0.1
    with pytest.raises(ValueError, match="needs orthonormal directions"):
        clamp_subspace(span, 1, [0.0, 0.0])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_directions_that_follow_from_others_erase_nothing_more(scale):
    first, second = drawn(2, 32, seed=4).float()
    given = torch.stack([first, 3 * first, scale * second, first - 0.3 * second])
    basis = torch.stack([edit.direction.double() for edit in erase_subspace(given, 1)])
    both = torch.linalg.qr(torch.stack([first, second]).double().T).Q
    assert len(basis) == 2
    torch.testing.assert_close(basis.T @ basis, both @ both.T, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="2 directions of zeros span nothing"):
        erase_subspace(torch.zeros(2, 32), 1)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="Clamp needs finite numbers"):
        Clamp(float("nan"))
    with pytest.raises(ValueError, match="needs a threshold"):
        Targeted()
    with pytest.raises(ValueError, match="no projection is above 2 and below 1"):
        Targeted(above=2.0, below=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablating_leaves_nothing_at_the_site_and_clamping_sets_it(family):
    model, v = tiny_model(family), vector()
    ids, mask = pad(PROMPTS, 0, "left")
    wrapper, real = SteeringWrapper(model), torch.arange(9) < mask.sum(1, keepdim=True)
    before = projection(record_activations(model, ids, mask).at(1), v.at(1))[real]
    norms = record_activations(model, ids, mask).at(1).norm(dim=-1)[real]
    assert (before.abs() > 1e-3 * norms).any(), "there is nothing to ablate"
    with wrapper.steer(Intervention(v, 1, 1.0, ablate, everywhere)):
        assert (projection(record_activations(model, ids, mask).at(1), v.at(1))[real].abs() < 1e-5 * norms).all()
    with wrapper.steer(Intervention(v, 1, 1.0, Clamp(2.5), everywhere)):
        close(projection(record_activations(model, ids, mask).at(1), v.at(1))[real], torch.full_like(before, 2.5))


@pytest.mark.parametrize("name", BY_HAND)
def test_multiplier_zero_is_bit_identical_in_a_batch_too(name):
    model, (operator, _) = tiny_model(), BY_HAND[name]
    ids, mask = pad(PROMPTS, 0, "left")
    wrapper = SteeringWrapper(model)
    plain = wrapper(ids, mask).logits
    with wrapper.steer(Intervention(vector(), 1, 0.0, operator, everywhere)):
        assert torch.equal(wrapper(ids, mask).logits, plain)
    with wrapper.steer(Intervention(vector(), 1, [0.0, 1.0, 0.0], operator, everywhere)):
        mixed = wrapper(ids, mask).logits
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1, -5:], plain[1, -5:])


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2", "Bloom"])
def test_generation_with_cache_and_pads_is_that_of_each_text_alone(family, name):
    """Targeted edits too: which tokens they choose is a matter of each token."""
    model, v, (operator, by_hand) = tiny_model(family), vector(), BY_HAND[name]
    ids, mask = pad(PROMPTS, 0, "left")
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with SteeringWrapper(model).steer(Intervention(v, 1, 0.7, operator)):
        written = SteeringWrapper(model).model.generate(ids, attention_mask=mask, **options)

    def edit(token):
        return torch.tensor(by_hand(token.numpy(), v.at(1).numpy(), 0.7), dtype=torch.float32)

    for row, prompt in enumerate(PROMPTS):
        text = prompt + written.sequences[row, 9:].tolist()
        expected = logits_by_hand(model, text[:-1], 1, edit, range(len(prompt) - 1, len(text) - 1))
        close(torch.stack([step[row] for step in written.logits]), expected[len(prompt) - 1 :])


@pytest.mark.parametrize("name", BY_HAND)
def test_gradients_of_operators(name):
    operator, _ = BY_HAND[name]
    strength = torch.tensor([[1.0, 0.5, -2.0]])
    inputs = drawn(1, 3, 4).requires_grad_(), drawn(4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda resid, direction: operator(resid, direction, strength), inputs)


@pytest.mark.parametrize("operator", [add, add_keeping_norm, ablate, Clamp(1.0)])
def test_gradients_flow_through_the_edit_as_through_a_hook_of_ones_own(operator):
    model, v, ids = tiny_model(), vector(), PROMPTS[0]
    labels = torch.tensor([ids])

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def edit(token):
        return operator(token[None, None], v.at(1), torch.tensor([[2.0]]))[0, 0]

    plain = gradients(model(torch.tensor([ids]), labels=labels).loss)
    with hooked(model, 1, edit, range(4, 9)):
        expected = gradients(model(torch.tensor([ids]), labels=labels).loss)
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(v, 1, 2.0, operator)):
        found = gradients(wrapper(labels, prompt_lengths=torch.tensor([5]), labels=labels).loss)
    assert list(found) == list(expected)
    early = "model.layers.0.mlp.down_proj.weight"
    assert (expected[early] - plain[early]).abs().max() > 1e-3, "the edit does not show in the gradients"
    for name, gradient in expected.items():
        close(found[name], gradient)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_learns_under_steering(checkpointing):
    """Preventative steering: the step differs from the unsteered one, and moves the LoRA alone."""
    ids = torch.tensor([PROMPTS[0]])

    def step(multiplier):
        model = tiny_lora(tiny_model())
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        wrapper = SteeringWrapper(model)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with wrapper.steer(Intervention(vector(), 1, multiplier, where=everywhere)):
            wrapper(ids, labels=ids).loss.backward()
        optimizer.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name in before if ".lora_" in name}
        return {name: p.detach() for name, p in model.named_parameters() if name in moved}

    steered, unsteered = step(2.0), step(0.0)
    assert any((steered[name] - unsteered[name]).abs().max() > 1e-3 for name in steered)


def test_checkpointed_gradients_are_the_same():
    ids, found = torch.tensor([PROMPTS[0]]), []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        wrapper = SteeringWrapper(model)
        with wrapper.steer(Intervention(vector(), 1, 2.0, ablate, everywhere)):
            wrapper(ids, labels=ids).loss.backward()
        found.append(decoder_blocks(model)[0].mlp.down_proj.weight.grad)
    close(*found)
