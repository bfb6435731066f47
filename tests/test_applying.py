"""Directions applied at several layers, on other models and after finetuning."""

from __future__ import annotations

import pytest
import torch
from slow import PROMPTS, close, vector
from tiny import tiny_lora, tiny_model

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.steering.intervention import spread_over_layers
from caa.steering.operators import Clamp, Targeted, ablate
from caa.steering.scopes import First, everywhere
from caa.vectors.vector import Provenance

IDS = torch.tensor([PROMPTS[0]])


def test_a_vector_spread_over_layers_is_an_intervention_at_each():
    wrapper, v = SteeringWrapper(tiny_model()), vector()
    for split, each in ((True, 1.0), (False, 3.0)):
        with wrapper.steer(*spread_over_layers(v, [0, 1, 3], 3.0, split=split, where=everywhere)):
            found = wrapper(IDS).logits
        with wrapper.steer(*(Intervention(v, layer, each, where=everywhere) for layer in (0, 1, 3))):
            assert torch.equal(wrapper(IDS).logits, found)
    assert [each.strengths.tolist() for each in spread_over_layers(v, [1, 2], [2.0, -4.0])] == [[1.0, -2.0]] * 2
    assert {each.operator for each in spread_over_layers(v, [1, 2], 1.0, operator=ablate)} == {ablate}
    for layers in ([], [1, 1]):
        with pytest.raises(ValueError, match="one or more layers, each once"):
            spread_over_layers(v, layers, 1.0)


def test_order_matters_where_operators_do_not_commute():
    wrapper, v = SteeringWrapper(tiny_model()), vector()
    push, clamp = Intervention(v, 1, 2.0), Intervention(v, 1, 1.0, Clamp(0.5))
    with wrapper.steer(clamp):
        clamped = wrapper(IDS).logits
    with wrapper.steer(push, clamp):
        close(wrapper(IDS).logits, clamped)
    with wrapper.steer(clamp, push):
        assert (wrapper(IDS).logits - clamped).abs().max() > 1e-2


def test_a_vector_of_one_model_on_its_finetune_and_on_another_of_its_width():
    base, other = tiny_model(), SteeringWrapper(tiny_lora(tiny_model()))
    v = SteeringVector({1: vector().at(1)}, Provenance(model="base"))
    plain = other(IDS).logits
    with other.steer(Intervention(v, 1, 2.0)), SteeringWrapper(base).steer(Intervention(v, 1, 2.0)):
        assert not torch.equal(other(IDS).logits, plain)
        with other.finetune(None):
            assert torch.equal(other(IDS).logits, base(IDS).logits)
    with pytest.raises(ValueError, match="this vector is 16 wide and the model 32: it was read in 'base'"):
        other.steer(Intervention(SteeringVector({1: torch.ones(16)}, Provenance(model="base")), 1))


def test_an_intervention_says_what_is_unusual_about_it():
    v = SteeringVector({2: torch.ones(32)}, Provenance(behavior="patience"))
    assert str(Intervention(v, 2, 1.0, ablate, everywhere)) == "patience x +1, layer 2, ablate, everywhere"
    assert str(Intervention(v, 2)) == "patience x +1, layer 2", "the vector itself, once"
    targeted = Intervention(v, 2, 1.0, Targeted(above=2.0, operator=ablate), First(3))
    assert str(targeted) == "patience x +1, layer 2, Targeted(above=2.0, below=None, operator=ablate), First(k=3)"
