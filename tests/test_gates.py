"""Gates against their slow twin: a text alone, read once without a gate, then steered at all its tokens or at none."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from slow import PROMPTS, close, logits_by_hand, vector
from tiny import random_ids, tiny_model

from caa import Intervention, SteeringWrapper
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks
from caa.steering.gates import Gate
from caa.steering.operators import Targeted, projection
from caa.steering.patching import record_activations
from caa.steering.scopes import everywhere
from caa.steering.scoring import Continued, log_probabilities
from caa.training.callback import SteeringCallback

MANY = [*PROMPTS, *(random_ids(1, length, seed=length)[0].tolist() for length in (4, 6, 7))]
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
WITH_LOGITS = {**OPTIONS, "output_logits": True, "return_dict_in_generate": True}


def along(model, prompt: list[int]) -> float:
    """Of the last prompt token, on the probe at layer 0."""
    return projection(record_activations(model, torch.tensor([prompt])).at(0)[:, -1:], vector(3).at(0)).item()


def gate_of(model) -> Gate:
    """One that is open for half of the prompts."""
    values = sorted(along(model, prompt) for prompt in MANY)
    return Gate(vector(3), 0, above=(values[2] + values[3]) / 2)


def expected_logits(model, gate: Gate, prompt: list[int], text: list[int], push: float) -> torch.Tensor:
    """Of each token after the prompt, from the whole text at once."""
    places = range(len(prompt) - 1, len(text) - 1) if along(model, prompt) > gate.above else []
    edited = logits_by_hand(model, text[:-1], 2, lambda token: token + push * vector().at(2), places)
    return edited[len(prompt) - 1 :]


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2", "Bloom"])
@pytest.mark.parametrize("cache", [True, False])
def test_a_padded_batch_is_decided_row_by_row_once(family, cache):
    model = tiny_model(family)
    gate, (ids, mask) = gate_of(model), pad(MANY, 0, "left")
    wrapper = SteeringWrapper(model, Intervention(vector(), 2, 2.0, gate=gate, where=everywhere))
    written = wrapper.generate(ids, mask, use_cache=cache, **WITH_LOGITS)
    again = wrapper.generate(ids[:, -1:], mask[:, -1:], use_cache=cache, **WITH_LOGITS)  # texts of before are forgotten
    wrapper.unsteer()
    for row, prompt in enumerate(MANY):
        text = prompt + written.sequences[row, ids.shape[1] :].tolist()
        close(torch.stack([step[row] for step in written.logits]), expected_logits(model, gate, prompt, text, 2.0))
        text = again.sequences[row].tolist()
        close(torch.stack([step[row] for step in again.logits]), expected_logits(model, gate, text[:1], text, 2.0))


def test_beams_of_a_prompt_share_its_decision():
    model = tiny_model()
    gate, beams = gate_of(model), {**OPTIONS, "num_beams": 3, "num_return_sequences": 2}
    ids, mask = pad(MANY, 0, "left")
    wrapper = SteeringWrapper(model, Intervention(vector(), 2, 6.0, gate=gate))
    together = wrapper.generate(ids, mask, **beams)
    wrapper.unsteer()
    differ = 0
    for row, prompt in enumerate(MANY):
        ungated = [Intervention(vector(), 2, 6.0)] if along(model, prompt) > gate.above else []
        plain = wrapper.generate(torch.tensor([prompt]), use_cache=False, **beams)
        with wrapper.steer(*ungated):
            alone = wrapper.generate(torch.tensor([prompt]), use_cache=False, **beams)
        assert torch.equal(together[2 * row : 2 * row + 2, -4:], alone[:, -4:])
        differ += not torch.equal(plain, alone)
    assert differ >= 2


@pytest.mark.parametrize("family", ["Llama", "Bloom"])
def test_every_setting_of_a_question_decides_for_itself(family):
    """Branches of one row (Llama) and rows that are repeated on the way (Bloom); an edit below the gate moves it."""
    model = tiny_model(family)
    gate, wrapper = gate_of(model), SteeringWrapper(model)
    gated = Intervention(vector(), 2, 2.0, gate=gate)
    flip = Intervention(vector(3), 0, 50.0)
    closing = Intervention(vector(3), 0, -50.0)
    settings = [(gated,), (), (flip, gated), (closing, gated), (Intervention(vector(), 2, 2.0, where=everywhere),)]
    texts = [Continued(prompt, ([50, 51], [60, 61]), 0) for prompt in MANY]
    scores = log_probabilities(wrapper, texts, settings)
    for row, text in enumerate(texts):
        for column, setting in enumerate([(), (), (flip, gated), (closing,), settings[4]]):
            ungated = [Intervention(i.vector, i.layer, i.multiplier, i.operator, i.where) for i in setting]
            if column == 0 and along(model, text.prompt) > gate.above:
                ungated = [Intervention(vector(), 2, 2.0)]
            alone = log_probabilities(wrapper, [text], [tuple(ungated)])[0, 0]
            torch.testing.assert_close(scores[row, column], alone, atol=2e-5, rtol=1e-5)
    opened = (scores[:, 0] - scores[:, 1]).abs().amax(1) > 1e-3
    assert 0 < opened.sum() < len(MANY)


def test_a_decision_holds_while_hooks_come_and_go_between_two_passes():
    model, answer = tiny_model(), [50, 51, 52, 53]
    gate, (ids, mask) = gate_of(model), pad(MANY, 0, "left")
    wrapper, gated = SteeringWrapper(model), Intervention(vector(), 2, 2.0, gate=gate, where=everywhere)
    expected = torch.stack([expected_logits(model, gate, prompt, [*prompt, *answer], 2.0) for prompt in MANY])
    steps, cache, steering = [], None, wrapper.steer(gated)
    for n, token in enumerate(answer):
        output = wrapper(ids, mask, use_cache=True, past_key_values=cache)  # looks for pads, too
        steps, cache, ids = [*steps, output.logits[:, -1]], output.past_key_values, torch.full((len(MANY), 1), token)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if n == 0:
            wrapper.steer(Intervention(vector(1), 3, 1.0)).close()
        elif n == 1:
            with wrapper.paused():
                model(random_ids(2, 3))
        else:
            steering.close()
            steering = wrapper.steer(gated)
    close(torch.stack(steps, dim=1), expected)
    some, real = pad(MANY[:4], 0, "left")
    with wrapper.paused():  # fewer texts, whose prompts end behind what was read unsteered
        cache = wrapper(some[:, :-2], real[:, :-2], use_cache=True).past_key_values
    behind = wrapper(some[:, -2:], real, prompt_lengths=real.sum(1), past_key_values=cache).logits[:, -1]
    close(behind, expected[:4, 0])


def test_a_gated_adapter_comes_back(tmp_path):
    model = tiny_model()
    ids, mask = pad(MANY, 0, "left")
    wrapper = SteeringWrapper(model, Intervention(vector(), 2, 2.0, gate=gate_of(model)))
    expected = wrapper(ids, mask).logits
    folder = wrapper.save_pretrained(tmp_path / "gated")
    wrapper.unsteer()
    loaded = SteeringWrapper.from_pretrained(folder, model)
    assert torch.equal(loaded(ids, mask).logits, expected)
    assert "if" in str(loaded.interventions[0])
    assert "caa.steered.v3" in (folder / "steering.json").read_text(), "versions that know no gates refuse it"


def test_gates_that_decide_nothing_are_refused():
    with pytest.raises(ValueError, match="Gate needs a threshold"):
        Gate(vector(), 0)
    with pytest.raises(ValueError, match="it is at layer 2, and layer 2 is steered"):
        Intervention(vector(), 2, gate=Gate(vector(), 2, above=0.0))
    with pytest.raises(ValueError, match="wide and the model 32"):
        SteeringWrapper(tiny_model(), Intervention(vector(), 2, gate=Gate(vector(width=8), 1, above=0.0)))
    with pytest.raises(ValueError, match="which training does not tell it"):
        SteeringCallback(Intervention(vector(), 2, gate=Gate(vector(), 1, above=0.0)))._steer(tiny_model())


def test_no_hook_is_more_than_one_a_layer_and_none_is_left():
    model = tiny_model()
    gate = gate_of(model)
    wrapper = SteeringWrapper(model)
    with wrapper.steer(*(Intervention(vector(), layer, 1.0, gate=gate) for layer, _ in product((1, 2), range(2)))):
        assert [len(block._forward_hooks) for block in decoder_blocks(model)] == [1, 1, 1, 0]
    with wrapper.steer(Intervention(vector(), 2, 0.0, gate=gate), Intervention(vector(), 3, 1.0, Targeted(above=0.0))):
        assert [len(block._forward_hooks) for block in decoder_blocks(model)] == [0, 0, 0, 1]
    assert not any(block._forward_hooks for block in decoder_blocks(model))
