"""Models of images and texts, asked by text alone: the right class, steered rightly, their text-only twins' name."""

from __future__ import annotations

import pytest
import torch
import transformers
from families import by_hand, check_open_answers
from tiny import random_ids, tiny_model, tiny_tokenizer
from tiny_configs import enlivened, model_types, tiny

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.models.fingerprint import digest_of_samples, fingerprint, has_fingerprint, sample_parameters

TYPES = [
    name for name in ("gemma3", "gemma4", "mistral3", "qwen2_5_vl", "qwen3_vl", "smolvlm") if name in model_types()
]
TWINS = {
    "gemma3": "model.language_model",
    "gemma4": "model.language_model",
    "mistral3": "model.language_model",
    "smolvlm": "model.text_model",
}
"""Those whose language model has a class of its own, and where it lies."""


@pytest.mark.parametrize("model_type", TYPES)
def test_an_image_text_model_is_loaded_by_its_folder_and_steered_as_by_hand(model_type, tmp_path):
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    ids, push = random_ids(1, 6), torch.randn(32, generator=torch.Generator().manual_seed(1))
    steered = SteeringWrapper(loaded, Intervention(SteeringVector({1: push}), 1, 2.0))(ids).logits[0]
    torch.testing.assert_close(steered, by_hand(model, ids[0].tolist(), {1: 2.0 * push}, 5), atol=1e-4, rtol=1e-4)
    assert (steered - model(ids).logits[0]).abs().max() > 0.1


@pytest.mark.parametrize("model_type", sorted({*TWINS} & {*TYPES}))
def test_a_text_only_twin_has_the_fingerprint_of_the_image_text_model(model_type):
    model = tiny(model_type)
    twin = transformers.AutoModelForCausalLM.from_config(model.config.get_text_config()).eval()
    before = f"{TWINS[model_type]}."
    weights = {name.replace(before, "model."): tensor for name, tensor in model.state_dict().items()}
    missing = twin.load_state_dict(weights, strict=False).missing_keys
    assert not missing
    assert fingerprint(twin) == fingerprint(model)
    assert has_fingerprint(model.bfloat16(), fingerprint(twin.bfloat16()))
    assert has_fingerprint(model, digest_of_samples(model, sample_parameters(model)))  # as files of before have it
    assert fingerprint(enlivened_again(twin)) != fingerprint(model)


def enlivened_again(model):
    """Other weights."""
    enlivened(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


@pytest.mark.skipif("qwen2_5_vl" not in TYPES, reason="this transformers has no Qwen2.5-VL")
def test_open_answers_go_on_from_their_own_positions_whatever_was_written_before():
    """Qwen's image-text models keep the positions of the last `generate`, for as many rows."""
    model = tiny("qwen2_5_vl")
    vector = SteeringVector(
        {layer: torch.randn(32, generator=torch.Generator().manual_seed(layer)) for layer in range(4)}
    )
    SteeringWrapper(model).generate(random_ids(2, 5), max_new_tokens=2, do_sample=False)
    check_open_answers(model, vector)


def test_weights_that_are_not_in_the_folder_are_not_drawn_at_random(tmp_path):
    model = tiny_model()
    transformers.AutoModel.from_config(model.config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 of the weights of a LlamaForCausalLM \(lm_head.weight\)"):
        load_model(str(tmp_path))
