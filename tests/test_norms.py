"""Relative doses: what a push measures beside the stream, and back; against one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from slow import PROMPTS, close, vector
from tiny import FAMILIES, tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.extraction.norms import conversion, dose, in_doses, multiplier_of, peaks, stream_norms, stream_profiles
from caa.steering.patching import record_activations


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_each_prompt_alone(family):
    model = tiny_model(family)
    found = stream_norms(model, tiny_tokenizer(), PROMPTS, batch_size=2)
    assert list(found) == [0, 1, 2, 3]
    for layer in range(3):
        alone = [model(torch.tensor([p]), output_hidden_states=True).hidden_states[layer + 1][0, -1] for p in PROMPTS]
        assert found[layer] == pytest.approx(sum(h.norm().item() for h in alone) / 3, rel=1e-5)


def test_a_coordinate_that_makes_up_the_stream_is_told():
    model = tiny_model()
    model.model.embed_tokens.weight.data[:, 7] = 40.0
    profiles = stream_profiles(model, tiny_tokenizer(), PROMPTS, [0, 1], batch_size=2)
    alone = torch.stack([record_activations(model, torch.tensor([prompt])).at(1)[0, -1] for prompt in PROMPTS])
    squares = alone.square().sum(0)
    assert profiles[1].coordinate == 7
    assert profiles[1].share == pytest.approx((squares[7] / squares.sum()).item(), abs=1e-3)
    assert profiles[1].norm == pytest.approx(alone.norm(dim=1).mean().item(), rel=1e-5)
    rest = alone[:, [place for place in range(32) if place != 7]].norm(dim=1).mean().item()
    assert profiles[1].norm_without == pytest.approx(rest, rel=0.05)
    assert "layer 1: coordinate 7 has" in "".join(peaks(profiles))
    assert peaks(stream_profiles(tiny_model(), tiny_tokenizer(), PROMPTS, [1])) == []


def test_adapters_are_part_of_the_stream():
    plain, worn = (stream_norms(m, tiny_tokenizer(), PROMPTS, [1]) for m in (tiny_model(), tiny_lora(tiny_model())))
    assert abs(plain[1] - worn[1]) > 1e-2


def test_there_and_back():
    v, norms = vector(), {1: 7.0, 2: 11.0}
    assert dose(v, 2, -1.5, norms) == pytest.approx(-1.5 * v.at(2).norm().item() / 11)
    assert multiplier_of(v, 2, dose(v, 2, -1.5, norms), norms) == pytest.approx(-1.5)
    assert in_doses(v, norms).layers == [1, 2]
    assert in_doses(v, norms).norms() == pytest.approx(norms)
    assert in_doses(v, norms).cosine(v) == pytest.approx({1: 1.0, 2: 1.0})
    factor = in_doses(v, norms).source.checks["layer 2: multiplier of dose 1"]
    assert factor == pytest.approx(multiplier_of(v, 2, 1.0, norms))
    assert in_doses(v, norms).source.history == ("rescaled to the norm of the stream: multipliers are doses",)


def test_what_is_added_has_the_dose_that_was_asked_for():
    model, v = tiny_model(), vector()
    norms = stream_norms(model, tiny_tokenizer(), PROMPTS[:1], [1])
    plain = record_activations(model, torch.tensor(PROMPTS[:1])).at(1)[0, -1]
    for push in (Intervention(v, 1, multiplier_of(v, 1, 0.25, norms)), Intervention(in_doses(v, norms), 1, 0.25)):
        with SteeringWrapper(model).steer(push):
            moved = record_activations(model, torch.tensor(PROMPTS[:1])).at(1)[0, -1] - plain
        close(moved.norm() / plain.norm(), torch.tensor(0.25))


def test_a_line_for_tables():
    v = SteeringVector({2: torch.tensor([0.0, 4.0])})
    assert conversion(v, 2, [-1, 0, 0.4], {2: 8.0}) == (
        "relative dose at layer 2 (vector 4, stream 8): -1 = -0.5, 0 = 0, +0.4 = +0.2"
    )


def test_clear_errors():
    v, zero = vector(), SteeringVector({1: torch.zeros(32)})
    with pytest.raises(KeyError, match=r"not measured at layer 3, only at \[1\]"):
        dose(v, 3, 1.0, {1: 2.0})
    with pytest.raises(ValueError, match=r"zero at layer 1, so no multiplier gives a dose of 0\.5"):
        multiplier_of(zero, 1, 0.5, {1: 2.0})
    with pytest.raises(ValueError, match="no prompts"):
        stream_norms(tiny_model(), tiny_tokenizer(), [])
    with pytest.raises(ValueError, match="no layer 9"):
        stream_norms(tiny_model(), tiny_tokenizer(), PROMPTS, [9])
