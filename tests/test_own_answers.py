"""The model's own answers under opposing system prompts, and aligned texts, against reading them one by one."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from caa.data.chat import ChatFormat
from caa.extraction.own_answers import read_aligned, read_own_answers
from caa.steering.patching import record_activations
from caa.vectors.methods import mean_difference, pca

MODEL, TOKENIZER, END = tiny_model(), tiny_tokenizer(), 103
MODEL.generation_config.eos_token_id = [END]
QUESTIONS = ["Wait?", "What is it then?", "Go"]
SYSTEMS = (["Be kind.", "Help them."], ["Be cruel.", "Harm them all."])


def answered_alone(system: str, question: str) -> torch.Tensor:
    """[layer 0 and 2, d_model]: the mean over one greedy answer."""
    prompt = ChatFormat(TOKENIZER, system).encode(question)
    text = MODEL.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0].tolist()
    answer = text[len(prompt) :]
    answer = answer[: answer.index(END)] if END in answer else answer
    recorded = record_activations(MODEL, torch.tensor([prompt + answer]))
    return torch.stack([recorded.at(layer)[0, len(prompt) :].mean(0) for layer in (0, 2)])


def test_own_answers_are_read_behind_the_prompt_they_were_given_to():
    read = read_own_answers(MODEL, TOKENIZER, QUESTIONS, *SYSTEMS, [0, 2], max_new_tokens=5, batch_size=4)
    for side, systems in zip((read.positive, read.negative), SYSTEMS, strict=True):
        expected = torch.stack([answered_alone(system, question) for system in systems for question in QUESTIONS])
        torch.testing.assert_close(torch.stack([side[0], side[2]], dim=1), expected, atol=1e-5, rtol=1e-4)
    vector = read.vector(mean_difference)
    assert vector.norms()[2] > 1e-2
    assert (vector.source.token, vector.source.n_pairs) == ("mean of its own answer", 6)
    assert set(read.checks(mean_difference)) == {0, 2}, "they are pairs, which can be held out"
    assert torch.equal(read.subset([1, 0]).positive[2], read.positive[2][[1, 0]])
    with pytest.raises(ValueError, match="each system prompt has its opposite"):
        read_own_answers(MODEL, TOKENIZER, QUESTIONS, SYSTEMS[0], [])


def test_answers_are_greedy_whatever_the_models_own_config_asks_for():
    model = tiny_model()
    model.generation_config.update(eos_token_id=[END], do_sample=True, repetition_penalty=50.0)
    plain, own = (read_own_answers(m, TOKENIZER, QUESTIONS, *SYSTEMS, [2], max_new_tokens=5) for m in (MODEL, model))
    torch.testing.assert_close(own.positive[2], plain.positive[2])
    assert model.generation_config.repetition_penalty == 50.0


def test_answers_of_nothing_are_left_out():
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(104))
    with pytest.raises(ValueError, match="no question was answered under both"):
        read_own_answers(model, TOKENIZER, QUESTIONS, *SYSTEMS)


def test_aligned_texts_are_read_at_every_token_in_which_they_end_alike():
    positive, negative = ["I love it: the sea", "Yes. Go"], ["We all hate it: the sea", "No. Go"]
    read = read_aligned(MODEL, TOKENIZER, positive, negative, [1])
    shared = [len("e it: the sea"), len(". Go")]
    assert read.positive[1].shape == read.negative[1].shape == (sum(shared), 32)
    for side, texts in ((read.positive, positive), (read.negative, negative)):
        alone = [
            record_activations(MODEL, torch.tensor([ChatFormat(TOKENIZER).encode_text(text)])).at(1)[0]
            for text in texts
        ]
        expected = torch.cat([resid[-count:] for resid, count in zip(alone, shared, strict=True)])
        torch.testing.assert_close(side[1], expected, atol=1e-5, rtol=1e-4)
    assert read.vector(pca).norms()[1] > 1e-3
    assert "split-half cosine by text" in read.checks()[1], "tokens of one text are no independent pairs"
    with pytest.raises(ValueError, match="do not end alike"):
        read_aligned(MODEL, TOKENIZER, ["abc"], ["abd"])
