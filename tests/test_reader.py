"""Every token, site and method of `extract` against one pair at a time: no batch, no padding, no hook of ours."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from jaxtyping import TypeCheckError
from tiny import FAMILIES, tiny_lora, tiny_model, tiny_tokenizer

from caa import Behavior, ContrastPair, Intervention, SteeringWrapper, extract
from caa.data.chat import ChatFormat
from caa.extraction.extract import extract_from_texts, read_pairs
from caa.extraction.reader import ReadConfig, Text, read
from caa.models.blocks import decoder_blocks
from caa.models.sites import site_modules
from caa.vectors.methods import logistic_probe, mean_difference, pca

PAIRS = [
    ContrastPair("Would you wait?", "I would, yes", "No"),
    ContrastPair("Stop now, or go on with it?", "I go on", "I shall stop at once"),
    ContrastPair("Why?", "It is good", "It is so bad"),
    ContrastPair("Is it so?", "Yes, it is", "Not at all"),
]


@torch.no_grad()
def states(model, ids, layer) -> torch.Tensor:
    """[position, d_model]: the output of the block, as transformers reports it."""
    return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]


def expected_side(model, tokenizer, side, layer, token) -> torch.Tensor:
    rows = []
    for pair in PAIRS:
        branches = ChatFormat(tokenizer).encode_pair(pair)
        ids = getattr(branches, side)
        answer = states(model, ids, layer)[branches.prompt_length :]
        picked = {
            "parting": lambda a, b=branches: a[b.parting - b.prompt_length],
            "last": lambda a: a[-1],
            "mean": lambda a: a.mean(0),
        }.get(token, lambda a: a[token])
        rows.append(picked(answer))
    return torch.stack(rows)


@pytest.mark.parametrize("token", ["parting", "last", "mean", 0, 1, -2])
def test_every_token_of_the_answer(token):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = read_pairs(model, tokenizer, PAIRS, [1, 2], token=token, batch_size=3)
    for layer in (1, 2):
        for side, values in zip(("positive", "negative"), found.at(layer), strict=True):
            expected = expected_side(model, tokenizer, side, layer, token)
            torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)
    vector = extract(model, tokenizer, PAIRS, [1, 2], token=token, batch_size=3)
    if token == 0:
        assert vector.at(2).norm() < 1e-5, "every answer begins with the same space"
    else:
        assert vector.at(2).norm() > 1e-2
    torch.testing.assert_close(vector.at(2), mean_difference(*found.at(2)), atol=1e-5, rtol=1e-4)
    assert vector.source.token == (token if isinstance(token, str) else f"answer token {token}")
    assert vector.source.n_pairs == 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_sites_sum_up_to_the_block(family, lora):
    """input + attention + MLP = output, for the vectors as for the activations: nothing else writes in a block."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    model = tiny_lora(model) if lora else model
    read = partial(extract, model, tokenizer, PAIRS, token="last", batch_size=3)
    sites = {site: read(site=site) for site in ("block input", "attention output", "MLP output", "block output")}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for layer in range(4):
        start, attention, mlp, end = (vector.at(layer) for vector in sites.values())
        assert min(attention.norm(), mlp.norm()) > 1e-3
        torch.testing.assert_close(start + attention + mlp, end, atol=1e-4, rtol=1e-4)
        if layer:
            torch.testing.assert_close(start, sites["block output"].at(layer - 1), atol=1e-5, rtol=1e-4)
    assert sites["MLP output"].source.site == "MLP output"
    expected = expected_side(model, tokenizer, "positive", 1, "last") - expected_side(
        model, tokenizer, "negative", 1, "last"
    )
    torch.testing.assert_close(sites["block output"].at(1), expected.mean(0), atol=1e-5, rtol=1e-4)


def test_the_attention_is_what_the_attention_module_writes():
    """The sum alone would not tell attention and MLP from each other."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    written = []
    keep = decoder_blocks(model)[2].self_attn.register_forward_hook(lambda m, a, out: written.append(out[0][0, -1]))
    with torch.no_grad():
        for side in ("positive", "negative"):
            model(torch.tensor([getattr(ChatFormat(tokenizer).encode_pair(PAIRS[0]), side)]))
    keep.remove()
    found = extract(model, tokenizer, PAIRS[:1], [2], token="last", site="attention output")
    torch.testing.assert_close(found.at(2), written[0] - written[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", [pca, partial(pca, component=1, rescale=False), logistic_probe])
def test_a_method_sees_all_activations(method):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    vector = extract(model, tokenizer, PAIRS, [1, 3], method=method, token="last", batch_size=2)
    sides = [expected_side(model, tokenizer, side, 1, "last") for side in ("positive", "negative")]
    torch.testing.assert_close(vector.at(1), method(*sides), atol=1e-4, rtol=1e-3)
    assert vector.layers == [1, 3]


def test_unpaired_words_and_phrases():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    love, hate = ["Love", "I really adore you", "Joy"], ["Hate", "How I despise this"]
    vector = extract_from_texts(model, tokenizer, love, hate, [1], method=logistic_probe)
    sides = [torch.stack([states(model, tokenizer(t).input_ids, 1)[-1] for t in texts]) for texts in (love, hate)]
    torch.testing.assert_close(vector.at(1), logistic_probe(*sides), atol=1e-4, rtol=1e-3)
    assert (vector.source.method, vector.source.token, vector.source.n_pairs) == ("logistic probe", "last", 2)
    with pytest.raises(ValueError, match="not pairs"):
        extract_from_texts(model, tokenizer, love, hate, [1], method=pca)
    with pytest.raises(ValueError, match="has no tokens"):
        extract_from_texts(model, tokenizer, love, [""], [1], method=logistic_probe)


def test_some_of_the_pairs():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    some = read_pairs(model, tokenizer, PAIRS, [2], token="last", behavior="haste").subset([3, 1])
    direct = extract(model, tokenizer, [PAIRS[3], PAIRS[1]], [2], token="last", behavior="haste")
    torch.testing.assert_close(some.vector().at(2), direct.at(2), atol=1e-5, rtol=1e-4)
    known = dataclasses.replace(direct.source, data_hash="", checks={})  # not which were read, nor their rounding
    assert some.vector().source == known
    with pytest.raises(KeyError, match=r"layer 3 was not read; these are activations of layers \[2\]"):
        some.at(3)


def plain(model, ids, layers) -> dict[int, torch.Tensor]:
    """layer -> what the blocks write for one text, [position, d_model]; the last layer without the final norm."""
    written: dict[int, torch.Tensor] = {}
    hooks = [
        decoder_blocks(model)[layer].register_forward_hook(
            lambda m, a, out, layer=layer: written.update(
                {layer: (out if isinstance(out, torch.Tensor) else out[0])[0]}
            )
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return written


TEXTS = [
    Text(([5, 6, 7, 8, 9, 10], [5, 6, 7, 30, 31]), ((0, 2, 3, 5), (1, 4))),  # places in the shared part and behind it
    Text(([40, 41], [42, 43, 44, 45]), ((1,), (0, 3))),  # nothing is shared
    Text(([7, 8, 9], [7, 8, 9]), ((2,), (2,))),  # all is shared
    Text(([11, 12, 13, 14, 15, 16, 17], [11, 12]), ((6,), (1,))),  # one begins with all of the other
]


@pytest.mark.parametrize("family", [*FAMILIES, "Mamba", "Rwkv", "GPTNeo"])
def test_every_place_of_every_sequence_is_what_it_is_in_a_pass_of_its_own(family):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    batches = list(read(model, tokenizer, TEXTS, [1, 3], ReadConfig(batch_size=4)))
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3]
    for batch in batches:
        assert batch.texts == [TEXTS[row] for row in batch.rows]
        places = [
            (ids, p) for text in batch.texts for ids, ps in zip(text.sequences, text.places, strict=True) for p in ps
        ]
        for layer in (1, 3):
            expected = torch.stack([plain(model, ids, [layer])[layer][place] for ids, place in places])
            torch.testing.assert_close(batch.residuals[layer], expected, atol=2e-5, rtol=1e-4)


def test_texts_beyond_those_in_memory_keep_their_numbers(monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    whole = read_pairs(model, tokenizer, PAIRS, [2], token="mean")
    vector = extract(model, tokenizer, PAIRS, [2])
    monkeypatch.setattr("caa.extraction.reader.AT_A_TIME", 3)
    apart = read_pairs(model, tokenizer, PAIRS, [2], token="mean")
    assert apart.source == whole.source
    for one, other in zip(apart.at(2), whole.at(2), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(extract(model, tokenizer, PAIRS, [2]).at(2), vector.at(2), atol=1e-5, rtol=1e-4)


def test_a_pair_is_one_pass_whatever_is_read_of_it():
    """What both answers share is read once, for every token, site and method."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    extract(model, tokenizer, PAIRS)  # the first time, the model is tried out
    passes: list[int] = []
    decoder_blocks(model)[0].register_forward_pre_hook(lambda module, args: passes.append(args[0][..., 0].numel()))
    branches = ChatFormat(tokenizer).encode_pair(PAIRS[1])
    lengths = len(branches.positive), len(branches.negative)
    for options in ({}, {"method": pca}, {"token": "last"}, {"token": "mean", "method": pca}):
        passes.clear()
        extract(model, tokenizer, PAIRS[1:2], [1], **options)
        longest = 1 if "token" not in options else max(lengths) - branches.parting
        assert passes == [branches.parting + 2 * longest]


@pytest.mark.parametrize("token", ["parting", "mean"])
def test_a_system_prompt_is_read_once_for_all_pairs(token, monkeypatch):
    model, chat = tiny_model(), ChatFormat(tiny_tokenizer(), system="Be kind, and brief")
    expected = read_pairs(model, chat, PAIRS, token=token)
    monkeypatch.setattr("caa.models.prefix.LEAST_SAVED", 1)
    read_pairs(model, chat, PAIRS, token=token)
    tokens: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: tokens.append(args[0].numel()))
    found = read_pairs(model, chat, PAIRS, token=token)
    shared = len("{Be kind, and brief}[") + 1
    assert tokens[0] == shared
    texts = [chat.encode_pair(pair) for pair in PAIRS]
    longest = max(max(len(text.positive), len(text.negative)) for text in texts)
    assert len(tokens) == 2
    assert tokens[1] < len(PAIRS) * 2 * (longest - shared)
    for layer in range(4):
        for side, other in zip(found.at(layer), expected.at(layer), strict=True):
            torch.testing.assert_close(side, other, atol=1e-5, rtol=1e-4)


def test_a_behavior_stands_for_its_pairs_and_names_the_vector():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    behavior = Behavior("haste", tuple(PAIRS))
    vector, expected = extract(model, tokenizer, behavior), extract(model, tokenizer, PAIRS, behavior="haste")
    assert vector.source == expected.source
    assert torch.equal(vector.at(2), expected.at(2))
    assert extract(model, tokenizer, behavior, behavior="speed").source.behavior == "speed"
    assert (
        read_pairs(model, tokenizer, behavior, [1]).source
        == read_pairs(model, tokenizer, PAIRS, [1], behavior="haste").source
    )
    with pytest.raises((TypeError, TypeCheckError), match=r"a Behavior as load_behavior gives it|pairs"):
        extract(model, tokenizer, "haste")
    with pytest.raises(ValueError, match="pairs"):
        extract(model, tokenizer, Behavior("empty"))


def test_what_cannot_be_read_is_refused_at_birth():
    for options, match in (({"token": "first"}, "no token 'first'"), ({"site": "mlp"}, "no site 'mlp'")):
        with pytest.raises((ValueError, TypeCheckError), match=rf"{match}|Literal"):
            ReadConfig(**options)
    with pytest.raises(ValueError, match="this batch_size is 0"):
        ReadConfig(batch_size=0)
    with pytest.raises(ValueError, match=r"places \[3\] are not in a text of 3 tokens"):
        Text(([1, 2, 3],), ((3,),))
    with pytest.raises(ValueError, match=r"places \[-1\] are not in a text of 3 tokens"):
        Text(([1, 2, 3],), ((-1,),))
    assert Text(([1, 2, 3],), ((0, 1),)).sequences == ([1, 2],)


def test_clear_errors():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(ValueError, match="an answer of 3 tokens has no token 3"):
        extract(model, tokenizer, PAIRS, token=3)
    with pytest.raises((ValueError, TypeCheckError), match=r"no token 'first'|site"):
        extract(model, tokenizer, PAIRS, token="first")
    with pytest.raises((ValueError, TypeCheckError), match=r"no site 'mlp'|site"):
        extract(model, tokenizer, PAIRS, site="mlp")
    with pytest.raises(ValueError, match="no layer 4"):
        extract(model, tokenizer, PAIRS, [4], method=pca)
    with pytest.raises(ValueError, match="no contrast pairs"):
        extract(model, tokenizer, [], method=pca)


def test_a_block_that_cannot_be_told_is_refused():
    model = tiny_model()
    steering = Intervention(extract(model, tiny_tokenizer(), PAIRS), 2, 5.0)
    with SteeringWrapper(model).steer(steering), pytest.raises(TypeError, match="does not sum up"):
        site_modules(model, "MLP output")
    model = tiny_model()
    decoder_blocks(model)[1].mlp = torch.nn.Sequential(decoder_blocks(model)[1].mlp, torch.nn.Identity())
    assert len(site_modules(model, "MLP output")) == 4
    for block in decoder_blocks(model):
        block.post_feedforward_layernorm = torch.nn.Identity()  # a sandwich only by name: it never runs
    with pytest.raises(TypeError, match="does not sum up"):
        site_modules(model, "MLP output")
    model = tiny_model()
    for block in decoder_blocks(model):
        block.thinker = block.mlp
        del block.mlp
    with pytest.raises(TypeError, match="cannot tell which part of a LlamaDecoderLayer gives its MLP output; it has"):
        site_modules(model, "MLP output")
