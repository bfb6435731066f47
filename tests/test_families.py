"""A representative dozen of `make families`: whatever is padded, cached, branched or repeated equals one plain row."""

from __future__ import annotations

import pytest
import torch
from families import verdict_of
from tiny import tiny_model
from tiny_configs import tiny

from caa import SteeringWrapper
from caa.models.blocks import decoder_blocks, model_width
from caa.models.targets import linear_targets

RIGHT = [
    "llama",
    "bart",
    "roberta",
    "bamba",
    "qwen3_next",
    "falcon_h1",
    "mamba",
    "rwkv",
    "llama4_text",
    "mllama",
    "minimax",
]
REFUSED = {"prophetnet": "not one residual stream", "deepseek_v4": "not one residual stream"}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RIGHT)
def test_a_family_is_asked_rightly(model_type):
    verdict = verdict_of(model_type)
    assert verdict.verdict == "right", verdict.reason


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_without_one_stream_is_refused_before_anything_is_read(model_type):
    with pytest.raises(TypeError, match=REFUSED[model_type]):
        SteeringWrapper(tiny(model_type))


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
