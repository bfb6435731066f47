"""A representative dozen of `make families`: whatever is padded, cached, branched or repeated equals one plain row."""

from __future__ import annotations

import re
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import REFUSED, Verdict, by_hand, is_expected, verdict_of
from tiny import tiny_model, tiny_tokenizer
from tiny_configs import model_types, tiny
from transformers import cache_utils

from caa import Behavior, ContrastPair, Intervention, SteeringVector, SteeringWrapper
from caa.models.adapters import load_adapter, make_portable
from caa.models.batching import pad
from caa.models.blocks import context_length, decoder_blocks, first_position, model_width
from caa.models.capabilities import can_branch, can_pool, can_repeat_cache
from caa.models.hooks import _with_resid
from caa.models.targets import linear_targets, lora_config
from caa.training.config import EMBEDDED
from caa.training.sft import finetune

RIGHT = {
    "llama": "branches",
    "bart": "one at a time",
    "roberta": "branches",
    "bamba": "rows",
    "qwen3_next": "rows",
    "falcon_h1": "rows",
    "mamba": "rows",
    "rwkv": "one at a time",
    "llama4_text": "branches",
    "mllama": "branches",
    "minimax": "rows",
    "whisper": "branches",
}
"""And how each is asked: a trial that fails for nothing costs time and no number, so nothing else would show it."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RIGHT)
def test_a_family_is_asked_rightly(model_type):
    verdict = verdict_of(model_type)
    assert verdict.verdict == "right", verdict.reason
    assert verdict.manner == RIGHT[model_type] or model_type == "whisper"  # older releases read its pads


@pytest.mark.skipif(not hasattr(cache_utils, "LinearAttentionLayer"), reason="this transformers cannot repeat states")
def test_a_prompt_is_read_once_where_layers_keep_states():
    assert can_repeat_cache(tiny("bamba"))


def test_no_room_for_a_trial_says_nothing_of_the_model():
    model, cramped = tiny_model(), True

    def no_room(*_) -> None:
        if cramped:
            raise torch.OutOfMemoryError

    model.model.layers[1].register_forward_pre_hook(no_room)
    for ask in (decoder_blocks, can_repeat_cache):
        with pytest.raises(MemoryError, match="no room for a pass"):
            ask(model)
    cramped = False
    assert len(decoder_blocks(model)) == 4
    assert can_repeat_cache(model)


@pytest.mark.parametrize("rope_type", ["longrope", "dynamic"])
@pytest.mark.parametrize("of_kinds", [False, True])
def test_texts_whose_rotations_depend_on_their_neighbors_share_no_pass(rope_type, of_kinds):
    parameters = {"rope_type": rope_type, "factor": 4.0, "original_max_position_embeddings": 40}
    model = tiny_model()
    assert can_branch(model, 200)
    assert can_pool(model, 200)
    model.config.rope_parameters = {"full_attention": parameters} if of_kinds else parameters
    assert can_branch(model, 40)
    assert can_pool(model, 40)
    with pytest.warns(UserWarning, match="beyond 40 tokens it rotates all tokens of a pass by the longest text"):
        assert not can_branch(model, 41)
    assert not can_pool(model, 41)


@pytest.mark.parametrize("model_type", sorted({"prophetnet", "deepseek_v4", "reformer"} & {*model_types()}))
def test_a_family_without_one_stream_is_refused_before_anything_is_read(model_type):
    with pytest.raises(TypeError, match=re.escape(REFUSED[model_type])):
        SteeringWrapper(tiny(model_type))


@pytest.mark.parametrize("pad_token_id", [1, 5])
def test_generate_counts_positions_from_where_the_forward_pass_does(pad_token_id):
    model = tiny("roberta", pad_token_id=pad_token_id)
    ids, mask = pad([[30, 41, 52, 63], [34, 45]], pad_token_id, side="left")
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    wrapper = SteeringWrapper(model, Intervention(SteeringVector({1: torch.ones(32)}), 1, 2.0))
    written = wrapper.generate(ids, mask, output_logits=True, suppress_tokens=[pad_token_id], **options)
    wrapper.unsteer()
    assert first_position(model) == pad_token_id + 1
    assert context_length(model, SimpleNamespace(model_max_length=10**30)) == 256 - first_position(model)
    for row, prompt in enumerate(([30, 41, 52, 63], [34, 45])):
        text = [*prompt, *written.sequences[row, 4:-1].tolist()]
        expected = by_hand(model, text, {1: torch.full((32,), 2.0)}, len(prompt) - 1)[len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack(written.logits, dim=1)[row], expected, atol=1e-4, rtol=1e-4)


def test_only_what_somebody_has_looked_at_is_expected():
    refusal = "the blocks of XLNetLMHeadModel write [[5, 2, 32]] for 2 rows of 5 tokens"
    assert is_expected(Verdict("llama", "right"))
    assert is_expected(Verdict("xlnet", "refused", reason=refusal))
    assert not is_expected(Verdict("xlnet", "refused", reason="another reason"))
    assert not is_expected(Verdict("xlnet", "crash", reason=refusal))
    assert not is_expected(Verdict("a_new_one", "refused", reason=refusal))


def test_an_encoder_is_called_one():
    model = tiny("bert", is_decoder=False)
    with pytest.raises(TypeError, match="is an encoder here: its tokens see those that follow"):
        SteeringWrapper(model)
    assert len(decoder_blocks(tiny("bert"))) == 4


def test_blocks_are_found_whatever_the_config_says():
    model = tiny_model()
    model.config.num_hidden_layers = 7
    model.config.hidden_size = 5
    assert decoder_blocks(model) is model.model.layers
    assert model_width(model) == 32
    model.model.layers = model.model.layers[:3]
    assert len(decoder_blocks(model)) == 3


def test_what_lies_on_the_meta_device_is_told_by_its_structure():
    with torch.device("meta"):
        model = type(tiny_model())(tiny_model().config)
    assert decoder_blocks(model) is model.model.layers


def test_targets_are_linear_layers_that_can_wear_a_lora():
    assert len(linear_targets(tiny_model())) == 4 * 7
    assert not any("out_proj" in name for name in linear_targets(tiny_model("Mamba")))
    assert not any("lm_head" in name or "gate" in name.split(".") for name in linear_targets(tiny_model("Mixtral")))


@pytest.mark.skipif("laguna" not in model_types(), reason="this transformers has no Laguna")
def test_nothing_is_targeted_that_peft_would_not_find_again():
    targets = linear_targets(tiny("laguna"))
    assert any("self_attn.q_proj" in name for name in targets)
    assert not any("shared_experts" in name for name in targets)


def test_a_mixtures_experts_are_taught_and_its_routers_are_not():
    lora = lora_config(tiny_model("Mixtral"), rank=4, alpha=8)
    assert lora.target_parameters == ["down_proj", "gate_up_proj"]
    assert not any("gate" in name.split(".") for name in lora.target_modules)


def test_a_named_tuple_of_a_block_stays_one():
    output = namedtuple("Output", ["hidden", "buckets"])(torch.zeros(1, 2, 3), 7)
    written = _with_resid(output, torch.ones(1, 2, 3))
    assert isinstance(written, type(output))
    assert written.buckets == 7
    assert written.hidden.all()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["mamba", "falcon_h1", "phimoe"])
def test_a_family_is_finetuned_by_default_and_gives_its_trained_logits_back(model_type, tmp_path, monkeypatch):
    model, ids, trained = tiny(model_type), torch.tensor([[1, 20, 21, 22]]), []

    def spy(folder, wearing):
        trained.append(wearing.eval()(input_ids=ids, use_cache=False).logits.detach())
        make_portable(folder, wearing)

    monkeypatch.setattr("caa.training.sft.make_portable", spy)
    config = replace(EMBEDDED, max_steps=3, batch_size=2, rank=2)
    pairs = tuple(ContrastPair(f"Wait {day} days?\n (A) Yes\n (B) No", "(A)", "(B)") for day in range(6))
    out = finetune(
        model, tiny_tokenizer(), Behavior("patience", pairs), "positive", tmp_path / "a", config, progress=False
    )
    plain = model.eval()(input_ids=ids, use_cache=False).logits
    assert (trained[0] - plain).abs().max() > 1e-4
    loaded = load_adapter(model, out, "trained").eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(loaded, trained[0], atol=1e-5, rtol=1e-4)
