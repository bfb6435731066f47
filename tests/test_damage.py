"""Damage: batched and padded measures against one text at a time, and texts whose measures can be said by heart."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from tiny import FAMILIES, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.data.chat import ChatFormat
from caa.data.text_quality import compression_ratio, distinct_share, words
from caa.evals.damage import divergences, perplexities
from caa.vectors.vector import Provenance

QUESTIONS = ["Hi?", "Would you rather wait a long time?", "Why so?", "One more"]
TEXTS = ["No.", "I would rather wait.", "x", "Because I said so, and more"]


def vector(seed: int = 0, layers: int = 4) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({i: torch.randn(32, generator=generator) for i in range(layers)}, Provenance())


@torch.no_grad()
def slow_perplexity(model, tokenizer, question: str, text: str) -> float:
    prompt, whole = ChatFormat(tokenizer).encode(question), ChatFormat(tokenizer).encode(question, text)
    logits = model(torch.tensor([whole])).logits[0].double()
    surprise = [-logits[i - 1].log_softmax(-1)[whole[i]].item() for i in range(len(prompt), len(whole))]
    return math.exp(sum(surprise) / len(surprise))


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_of_a_padded_batch_is_that_of_each_text_alone(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    found = perplexities(SteeringWrapper(model), tokenizer, QUESTIONS, TEXTS, batch_size=3)
    expected = [slow_perplexity(model, tokenizer, *pair) for pair in zip(QUESTIONS, TEXTS, strict=True)]
    assert found == pytest.approx(expected, rel=1e-3)
    assert len({round(value) for value in found}) > 1, "all texts alike would hide a mix-up"


def test_an_empty_answer_surprises_nobody_and_steering_is_refused():
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    found = perplexities(wrapper, tokenizer, ["Hi?", "Hi?"], ["", "No."])
    assert math.isnan(found[0])
    assert found[1] > 1
    with wrapper.steer(Intervention(vector(), 1)):
        for ask in (
            lambda: perplexities(wrapper, tokenizer, ["Hi?"], ["No."]),
            lambda: divergences(wrapper, tokenizer, ["Hi?"], [()]),
        ):
            with pytest.raises(ValueError, match="being steered"):
                ask()
    with pytest.raises(ValueError, match="reads at most"):
        perplexities(wrapper, tokenizer, ["Hi?"], ["No. " * 100])
    with pytest.raises(ValueError, match=r"the prompt 'No\. No\. .*reads at most"):
        divergences(wrapper, tokenizer, ["No. " * 100], [()])


@torch.no_grad()
def slow_divergence(model, tokenizer, prompt: str, layer: int, direction, multiplier: float) -> float:
    """By a hook of its own on the last token of one unpadded prompt."""
    ids = torch.tensor([ChatFormat(tokenizer).encode(prompt)])
    plain = model(ids).logits[0, -1].double().log_softmax(-1)

    def push(module, args, output):
        output = output.clone()
        output[:, -1] += multiplier * direction
        return output

    handle = model.get_decoder().layers[layer].register_forward_hook(push)
    steered = model(ids).logits[0, -1].double().log_softmax(-1)
    handle.remove()
    return (plain.exp() * (plain - steered)).sum().item()


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "OPT"])
def test_divergence_of_a_padded_batch_is_that_of_each_prompt_alone(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    steer = vector()
    settings = [(), (Intervention(steer, 1, 0.0),), (Intervention(steer, 1, 2.0),), (Intervention(steer, 2, -1.0),)]
    found = divergences(SteeringWrapper(model), tokenizer, QUESTIONS, settings, batch_size=3)
    expected = [
        slow_divergence(model, tokenizer, prompt, layer, steer.at(layer), multiplier)
        for prompt in QUESTIONS
        for layer, multiplier in ((1, 0.0), (1, 0.0), (1, 2.0), (2, -1.0))
    ]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert [found[i] for i in (0, 1, 4, 5)] == [0.0] * 4, "multiplier 0 is exactly the unsteered model"
    assert min(found[2], found[3]) > 1e-3


def test_texts_whose_measures_can_be_counted():
    texts = ["no no no", "no yes"]
    assert distinct_share(texts, 1) == 2 / 5
    assert distinct_share(texts, 2) == 2 / 3
    assert distinct_share([""], 2) == 1
    assert compression_ratio(texts) == len(b"no no no\nno yes") / len(zlib.compress(b"no no no\nno yes", 9))
    assert compression_ratio([]) == 1
    assert words("Well, I would not.") == 6
