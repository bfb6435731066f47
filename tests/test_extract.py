"""Extraction against its slow definition: one pair at a time, no batch, no padding, no hook."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, RARE, tiny_lora, tiny_model, tiny_tokenizer

from caa import ContrastPair, Intervention, SteeringVector, SteeringWrapper, extract
from caa.data.chat import ChatFormat
from caa.extraction.extract import extract_from_texts
from caa.models.blocks import decoder_blocks
from caa.vectors.methods import mean_difference

QUESTIONS = ("Would you wait?", "Stop now, or go on with it?", "Why?", "Is it so?", "Do you agree with me?")
PAIRS = [
    ContrastPair(f"{question}\n (A) Yes\n (B) No", *(("(A)", "(B)") if number % 2 else ("(B)", "(A)")))
    for number, question in enumerate(QUESTIONS)
]


@torch.no_grad()
def one_pair_at_a_time(model, tokenizer, pairs, layer) -> torch.Tensor:
    total = torch.zeros(32, dtype=torch.float64)
    for pair in pairs:
        branches = ChatFormat(tokenizer).encode_pair(pair)
        for sign, ids in ((1, branches.positive), (-1, branches.negative)):
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            total += sign * states[layer + 1][0, branches.parting].double()
    return (total / len(pairs)).float()


@pytest.mark.parametrize("family", RARE)  # their hidden_states are not numbered as those of the others
def test_extraction_in_batches_is_the_mean_of_each_pair_alone(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    vector = extract(model, tokenizer, PAIRS, batch_size=3, method=mean_difference)
    alone = [extract(model, tokenizer, [pair]) for pair in PAIRS]
    assert len({len(pair.question) for pair in PAIRS}) > 1, "without padding they could not differ"
    for layer in range(4):
        expected = torch.stack([each.at(layer) for each in alone]).mean(0)
        torch.testing.assert_close(vector.at(layer), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_extraction_equals_one_pair_at_a_time(family, lora):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    model = tiny_lora(model) if lora else model
    vector = extract(model, tokenizer, PAIRS, batch_size=3, method=mean_difference)
    for layer in (0, 1, 2):  # hidden_states[-1] is after the final norm, so it cannot vouch for the last block
        expected = one_pair_at_a_time(model, tokenizer, PAIRS, layer)
        assert expected.norm() > 1e-3, "a zero vector would agree with anything"
        torch.testing.assert_close(vector.at(layer), expected, atol=1e-5, rtol=1e-4)


def test_the_last_layer_is_what_the_last_block_writes():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    written = []
    with decoder_blocks(model)[3].register_forward_hook(lambda m, a, out: written.append(out[0, -3:])):
        for side in ("positive", "negative"):
            ids = getattr(ChatFormat(tokenizer).encode_pair(PAIRS[0]), side)
            model(torch.tensor([ids]))
    place = ChatFormat(tokenizer).encode_pair(PAIRS[0]).parting - len(ids)
    torch.testing.assert_close(extract(model, tokenizer, PAIRS[:1]).at(3), written[0][place] - written[1][place])


def test_batches_order_padding_side_and_layers_do_not_show():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    reference = extract(model, tokenizer, PAIRS, batch_size=1)
    for batch_size in (2, 7):
        again = extract(model, tokenizer, PAIRS[::-1], [1], batch_size=batch_size)
        assert again.layers == [1]
        torch.testing.assert_close(again.at(1), reference.at(1), atol=1e-6, rtol=1e-5)


def test_swapped_answers_turn_the_vector_round():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    swapped = [ContrastPair(pair.question, pair.negative, pair.positive) for pair in PAIRS]
    there, back = extract(model, tokenizer, PAIRS), extract(model, tokenizer, swapped)
    torch.testing.assert_close(there.at(2), -back.at(2))


def test_a_vector_is_read_in_the_model_as_it_is_now():
    tokenizer = tiny_tokenizer()
    model = tiny_lora(tiny_model())
    wrapper = SteeringWrapper(model)
    tuned = extract(model, tokenizer, PAIRS)
    with wrapper.finetune(None):
        base = extract(model, tokenizer, PAIRS)
    assert (tuned.source.adapter, base.source.adapter) == ("sft", "")
    torch.testing.assert_close(base.at(1), extract(tiny_model(), tokenizer, PAIRS).at(1))
    assert (tuned.at(1) - base.at(1)).norm() > 1e-3


def test_the_model_is_left_in_the_mode_it_was_in():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.train()
    model.model.layers[2].eval()
    modes = [module.training for module in model.modules()]
    extract(model, tokenizer, PAIRS)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_unpaired_texts_at_their_last_token():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    love, hate = ["I really love", "I adore", "Nothing is better than"], ["I really hate", "I despise"]
    vector = extract_from_texts(model, tokenizer, love, hate, [1])
    means = []
    for texts in (love, hate):
        states = [
            model(torch.tensor([tokenizer(t).input_ids]), output_hidden_states=True).hidden_states[2][0, -1]
            for t in texts
        ]
        means.append(torch.stack(states).mean(0))
    torch.testing.assert_close(vector.at(1), (means[0] - means[1]).detach(), atol=1e-5, rtol=1e-4)
    assert vector.source.method == "mean difference, unpaired"
    assert vector.source.n_pairs == 2
    with pytest.raises(ValueError, match="one of them is empty"):
        extract_from_texts(model, tokenizer, love, [])


def test_the_whole_pipe_carries_a_planted_signal():
    """Pairs that differ in one token give a vector which, added back, makes that token's effect on the stream."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    vector = extract(model, tokenizer, PAIRS[:1], [3])
    branches = ChatFormat(tokenizer).encode_pair(PAIRS[0])
    ids = torch.tensor([branches.negative[: branches.parting + 1]])
    with SteeringWrapper(model).steer(Intervention(vector, 3, 1.0)):
        moved = model(ids).logits[0, -1]
    torch.testing.assert_close(moved, model(torch.tensor([branches.positive[: branches.parting + 1]])).logits[0, -1])


def test_a_pair_costs_its_unique_tokens_and_the_pass_ends_at_the_last_wanted_layer():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    extract(model, tokenizer, PAIRS[:1])  # the first time, the model is tried out
    seen: dict[int, int] = dict.fromkeys(range(4), 0)

    def count(layer):
        return lambda module, args: seen.update({layer: seen[layer] + args[0][..., 0].numel()})

    for layer, block in enumerate(decoder_blocks(model)):
        block.register_forward_pre_hook(count(layer))
    longest = max(PAIRS, key=lambda pair: len(pair.question))
    extract(model, tokenizer, [longest], [0, 2])
    unique = ChatFormat(tokenizer).encode_pair(longest).parting + 2
    assert seen == {0: unique, 1: unique, 2: unique, 3: 0}
    assert not any(block._forward_hooks for block in decoder_blocks(model))


def test_clear_errors():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(ValueError, match="no contrast pairs"):
        extract(model, tokenizer, [])
    with pytest.raises(ValueError, match="no layer 9: this model has layers 0 to 3"):
        extract(model, tokenizer, PAIRS, [9])
    with pytest.raises(ValueError, match="reads at most 256"):
        extract(model, tokenizer, [ContrastPair("why? " * 60, "(A)", "(B)")])
    with pytest.raises(ValueError, match="at least one row"):
        extract(model, tokenizer, PAIRS, batch_size=0)


def test_a_vector_does_not_remember_how_it_was_batched(tmp_path):
    vector = extract(tiny_model(), tiny_tokenizer(), PAIRS, [1], behavior="patience")
    loaded = SteeringVector.load(vector.save(tmp_path / "patience.safetensors"))
    assert loaded.source == vector.source
    assert (loaded.source.behavior, loaded.source.n_pairs, loaded.source.token) == ("patience", 5, "parting")
