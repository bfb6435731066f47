"""Similarity of tokens, the logit lens and transfer sweeps, against what one would write by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import FAMILIES, random_ids, tiny_model, tiny_tokenizer

from caa.data.behaviors import Behavior, Question
from caa.evals.tasks import score_choices
from caa.evals.transfer import dose_response, sweep_rows
from caa.extraction.norms import dose, stream_norms
from caa.extraction.projections import (
    logit_lens,
    projections_apart,
    projections_around,
    similarities,
    token_texts,
    written,
)
from caa.models.blocks import decoder_blocks
from caa.models.hooks import reading
from caa.runs.rows import OWN, VectorRef
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector


def vector_of(width: int = 32, layers: int = 4, seed: int = 0) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({i: torch.randn(width, generator=generator) for i in range(layers)})


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_similarities_are_those_of_the_hidden_states(measure):
    model, vector, ids = tiny_model(), vector_of(), random_ids(1, 9)[0].tolist()
    found = similarities(SteeringWrapper(model), ids, vector, [0, 2], measure=measure)
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert found.shape == (2, 9)
    for row, layer in enumerate((0, 2)):
        for place in range(9):
            resid, direction = states[layer + 1][0, place], vector.at(layer)
            expected = torch.dot(resid, direction) / direction.norm()
            expected = expected / resid.norm() if measure == "cosine" else expected
            assert found[row, place].item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_generated_text_is_seen_as_it_was_written():
    """The stream at each step of a cached, steered generation, and the same text read in one pass."""
    wrapper, vector = SteeringWrapper(tiny_model()), vector_of()
    prompt, seen = random_ids(1, 5)[0].tolist(), []
    with wrapper.steer(Intervention(vector, 1, 2.0)):
        with reading(decoder_blocks(wrapper.model), [2]) as found:
            decoder_blocks(wrapper.model)[3].register_forward_pre_hook(lambda *_: seen.append(found[2][0, -1].clone()))
            whole = written(wrapper, prompt, 4)
        along = similarities(wrapper, whole, vector, [2], prompt_length=len(prompt), measure="dot")[0]
        wrong = similarities(wrapper, whole, vector, [2], measure="dot")[0]
    assert len(whole) == 9
    expected = torch.stack(seen) @ vector.at(2) / vector.at(2).norm()
    torch.testing.assert_close(along[4:8], expected[:4], rtol=1e-4, atol=1e-4)
    assert (along[4:8] - wrong[4:8]).abs().max() > 0.1, "steering only the last token would look otherwise"


def test_each_token_that_is_written_is_the_likeliest_behind_those_before_it():
    wrapper, prompt = SteeringWrapper(tiny_model()), random_ids(1, 5)[0].tolist()
    whole = written(wrapper, prompt, 8)
    likeliest = wrapper.model(torch.tensor([whole])).logits[0].argmax(-1).tolist()
    assert whole == prompt + likeliest[4:-1]


def test_a_planted_direction_peaks_where_it_was_planted():
    wrapper, ids = SteeringWrapper(tiny_model()), random_ids(1, 8)[0].tolist()
    vector = vector_of()
    at = torch.zeros(1, 8)
    at[0, 5] = 50.0
    with wrapper.steer(Intervention(vector, 1, at)):
        found = similarities(wrapper, ids, vector, prompt_length=1)
    assert found[1].argmax() == 5
    assert found[1, 5] > 0.9
    assert found[0].max() < 0.9, "the layer below knows nothing of it"


class Bytes:
    """A tokenizer whose tokens are the bytes of a text."""

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_token_texts_add_up_also_where_a_character_has_many_tokens():
    ids = list("né ☃!".encode())
    found = token_texts(Bytes(), ids)
    assert len(found) == len(ids)
    assert "".join(found) == "né ☃!"
    assert found[:3] == ["n", "", "é"]


def _replaced(direction: torch.Tensor, _module: object, _inputs: object, output: object) -> object:
    if isinstance(output, tuple):
        return direction.expand_as(output[0]), *output[1:]
    return direction.expand_as(output)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_shows_the_head_behind_the_last_norm(family):
    wrapper, tokenizer, vector = SteeringWrapper(tiny_model(family)), tiny_tokenizer(), vector_of()
    found = logit_lens(wrapper, tokenizer, vector, top=3)
    assert list(found) == [0, 1, 2, 3]
    last = decoder_blocks(wrapper.model)[3]
    for layer, line in found.items():
        direction = vector.at(layer)
        with last.register_forward_hook(partial(_replaced, direction)):
            logits = wrapper.model(torch.tensor([[7]])).logits[0, -1]
        top = logits.topk(3)
        assert [spoken.token for spoken in line] == [tokenizer.decode([i]) for i in top.indices.tolist()]
        assert line[0].logit == pytest.approx((top.values[0] - logits.mean()).item(), abs=1e-3)


def test_the_lens_of_a_heads_row_says_its_token():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    token = tokenizer("Q", add_special_tokens=False).input_ids[0]
    planted = SteeringVector({2: model.lm_head.weight[token] / model.model.norm.weight})
    [spoken, *_] = logit_lens(SteeringWrapper(model), tokenizer, planted, top=2)[2]
    assert spoken.token == "Q"


def test_the_lens_refuses_a_steered_model():
    wrapper, vector = SteeringWrapper(tiny_model()), vector_of()
    with wrapper.steer(Intervention(vector, 1)), pytest.raises(ValueError, match="unsteer"):
        logit_lens(wrapper, tiny_tokenizer(), vector)


def test_projections_are_meant_around_each_origin():
    wrapper, vector = SteeringWrapper(tiny_model()), vector_of()
    texts = [(random_ids(1, n, seed=n)[0].tolist(), origin) for n, origin in ((9, 4), (12, 6))]
    found = projections_around(wrapper, texts, vector, 2, 3)
    each = [
        similarities(wrapper, ids, vector, prompt_length=at, measure="dot")[:, at - 2 : at + 3] for ids, at in texts
    ]
    torch.testing.assert_close(found, (each[0] + each[1]) / 2)
    with pytest.raises(ValueError, match="9 tokens, origin at 4, has no 5 tokens before"):
        projections_around(wrapper, texts, vector, 5, 3)


def test_projections_apart_are_the_positive_sides_minus_the_negative_sides():
    wrapper, vector = SteeringWrapper(tiny_model()), vector_of()
    positive, negative = ([(random_ids(1, 12, seed=seed)[0].tolist(), 5)] for seed in (1, 2))
    sides = [projections_around(wrapper, texts, vector, 5, 6) for texts in (positive, negative)]
    assert torch.equal(projections_apart(wrapper, positive, negative, vector), sides[0] - sides[1])


OF_1 = VectorRef("other", "of 1")
QUESTIONS = tuple(Question(f"Is {n} it?\n (A) yes\n (B) no", "(A)", "(B)") for n in range(3))
BEHAVIOR = Behavior("b", ab_questions=QUESTIONS, open_questions=(Question("What then?"), Question("Why?")))


def test_a_transfer_adds_one_layers_direction_at_every_layer():
    wrapper, tokenizer, vector = SteeringWrapper(tiny_model()), tiny_tokenizer(), vector_of()
    rows = sweep_rows(wrapper, tokenizer, BEHAVIOR, vector, [0, 2], (-1.0, 0.0, 1.0), source_layer=1, ref=OF_1)
    assert len(rows) == 3 * 2 * 3
    at = {(row.cell.layer, row.cell.multiplier, row.question): row.score for row in rows}
    for layer in (0, 2):
        moved = SteeringVector({layer: vector.at(1)})
        for multiplier in (-1.0, 0.0, 1.0):
            expected = score_choices(wrapper, tokenizer, QUESTIONS, [(Intervention(moved, layer, multiplier),)])
            for one in expected:
                assert at[layer, multiplier, one.question] == pytest.approx(one.score, abs=1e-5)
    own = sweep_rows(wrapper, tokenizer, BEHAVIOR, vector, [2], (1.0,))
    assert max(abs(row.score - at[2, 1.0, row.question]) for row in own) > 1e-3
    assert {row.cell.vector for row in rows} == {OF_1}
    assert {row.cell.vector for row in own} == {OWN}


def test_a_dose_is_measured_beside_the_stream():
    wrapper, tokenizer, vector = SteeringWrapper(tiny_model()), tiny_tokenizer(), vector_of()
    found = dose_response(wrapper, tokenizer, BEHAVIOR, vector, 1, [-0.5, 0.0, 0.5], max_new_tokens=4)
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q.text}], tokenize=False) for q in QUESTIONS]
    ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    norms = stream_norms(wrapper.model, tokenizer, ids, [1])
    for response in found:
        assert dose(vector, 1, response.multiplier, norms) == pytest.approx(response.dose, abs=1e-5)
        expected = score_choices(wrapper, tokenizer, QUESTIONS, [(Intervention(vector, 1, response.multiplier),)])
        assert list(response.scores) == pytest.approx([one.score for one in expected], abs=1e-5)
        assert response.perplexity > 1
    assert not math.isclose(found[0].scores[0], found[2].scores[0], abs_tol=1e-3)
    assert replace(found[0]).dose == -0.5
