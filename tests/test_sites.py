"""Steering at attention output, MLP output, heads and block input against a plain hook on that module, text by text."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from slow import PROMPTS, close
from tiny import FAMILIES, tiny_lora, tiny_model, tiny_tokenizer
from tiny_configs import model_types, tiny

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.data.behaviors import ContrastPair
from caa.exports.interventions import check_interventions
from caa.extraction.extract import extract
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks
from caa.models.capabilities import ignores_pads
from caa.models.sites import site_modules, site_width
from caa.steering.operators import ablate
from caa.steering.scopes import after_prompt, everywhere
from caa.steering.scoring import Continued, log_probabilities
from caa.vectors.vector import Provenance, only_head

USUAL = {"attention output": "self_attn", "MLP output": "mlp", "attention heads": "self_attn.o_proj", "block input": ""}
SANDWICH = USUAL | {"attention output": "post_attention_layernorm", "MLP output": "post_feedforward_layernorm"}
PATHS = {
    "Gemma2": SANDWICH,
    "Gemma3Text": SANDWICH,
    "Olmo2": SANDWICH,
    "GPT2": USUAL | {"attention output": "attn", "attention heads": "attn.c_proj"},
    "GPTNeoX": USUAL | {"attention output": "attention", "attention heads": "attention.dense"},
    "OPT": USUAL | {"MLP output": "fc2", "attention heads": "self_attn.out_proj"},
    "Bloom": USUAL
    | {
        "attention output": "self_attention.dense",
        "attention heads": "self_attention.dense",
        "MLP output": "mlp.dense_4h_to_h",
    },
}
INPUTS = ("block input", "attention heads")


def drawn(site: str, width: int = 32) -> SteeringVector:
    generator = torch.Generator().manual_seed(1)
    directions = {layer: torch.randn(width, generator=generator) for layer in range(4)}
    return SteeringVector(directions, Provenance(behavior="b", site=site))


@contextmanager
def plain_hook(model, layer: int, path: str, inputs: bool, edit, places):
    """Of a single text: what the module of that path writes, or is given, edited token by token."""

    def edited(tensor):
        rows = list(tensor.reshape(-1, tensor.shape[-1]))
        for place in places:
            rows[place] = edit(rows[place])
        return torch.stack(rows).reshape(tensor.shape)

    with hooked(model, layer, path, inputs, edited):
        yield


@contextmanager
def hooked(model, layer: int, path: str, inputs: bool, edited):
    """What the module of that path writes, or is given, as `edited` makes it."""

    def before(module, args, kwargs):
        return (
            ((edited(args[0]), *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": edited(kwargs["hidden_states"])})
        )

    def after(module, args, output):
        return edited(output) if isinstance(output, torch.Tensor) else (edited(output[0]), *output[1:])

    module = decoder_blocks(model)[layer].get_submodule(path)
    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True) if inputs else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def check_against_plain_hook(model, site: str, path: str, vector: SteeringVector, operator=None) -> None:
    """A left-padded batch, generated from the cache: each row is what the plain hook makes of its text alone."""
    prompts = PROMPTS if ignores_pads(model) else PROMPTS[:1]
    ids, mask = pad(prompts, 0, "left")
    edit = Intervention(vector, 1, 2.0) if operator is None else Intervention(vector, 1, 1.0, operator)
    wrapper = SteeringWrapper(model)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with wrapper.steer(edit):
        written = wrapper.generate(ids, mask, output_logits=True, return_dict_in_generate=True, **options)
    direction = vector.at(1)
    unit = direction / direction.norm()

    def by_hand(token):
        return token + 2.0 * direction if operator is None else token - (token @ unit) * unit

    for row, prompt in enumerate(prompts):
        text = prompt + written.sequences[row, ids.shape[1] :].tolist()
        places = range(len(prompt) - 1, len(text) - 1)
        with torch.no_grad(), plain_hook(model, 1, path, site in INPUTS, by_hand, places):
            expected = model(torch.tensor([text[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        plain = model(torch.tensor([text[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        assert (expected - plain).abs().max() > 1e-2, "the edit does nothing"
        close(torch.stack([step[row] for step in written.logits]), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_acts_where_it_was_read(family):
    model = tiny_model(family)
    for site, path in PATHS.get(family, USUAL).items():
        vector = drawn(site, site_width(model, site))
        check_against_plain_hook(model, site, path, vector)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["Llama", "Bloom"])
def test_beams_of_a_padded_batch_are_those_of_each_prompt_hooked_at_the_site_alone(family):
    """With a cache and without one."""
    model = tiny_model(family)
    ids, mask = pad(PROMPTS, 0, "left")
    beams = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "num_beams": 3}
    plain, changed = SteeringWrapper(model).generate(ids, mask, **beams)[:, -4:], 0
    for site, path in PATHS.get(family, USUAL).items():
        vector = drawn(site, site_width(model, site))
        wrapper = SteeringWrapper(model)
        with wrapper.steer(Intervention(vector, 1, 4.0)):
            cached, uncached = (wrapper.generate(ids, mask, use_cache=cache, **beams) for cache in (True, False))
        assert torch.equal(cached, uncached)
        for row, prompt in enumerate(PROMPTS):
            with beam_hook(model, path, site in INPUTS, 4.0 * vector.at(1), len(prompt) - 1):
                alone = model.generate(torch.tensor([prompt]), use_cache=False, **beams)
            assert torch.equal(cached[row, -4:], alone[0, -4:])
            changed += not torch.equal(alone[0, -4:], plain[row])
    assert changed >= 6, "or the hooks did nothing"


def beam_hook(model, path: str, inputs: bool, push: torch.Tensor, start: int):
    """All rows of a pass over whole texts, pushed from one place on in block 1."""
    return hooked(
        model, 1, path, inputs, lambda stream: torch.cat([stream[:, :start], stream[:, start:] + push], dim=1)
    )


@pytest.mark.parametrize(("family", "site"), [("Llama", "attention heads"), ("OPT", "MLP output")])
def test_an_edit_at_a_linear_layer_acts_on_when_a_lora_comes_and_goes(family, site, tmp_path):
    """PEFT puts a layer of its own in the place of the one that is edited."""
    tiny_lora(tiny_model(family)).save_pretrained(tmp_path, save_embedding_layers=False)
    push, ids = Intervention(drawn(site), 1, 1.0, ablate, everywhere), torch.tensor(PROMPTS[:1])
    worn_first = SteeringWrapper(tiny_lora(tiny_model(family)), push)
    model = tiny_model(family)
    wrapper = SteeringWrapper(model, push)
    alone = wrapper(ids).logits
    with pytest.raises(ValueError, match="no adapter"):
        wrapper.load_adapter(tmp_path / "nowhere", "sft")
    assert torch.equal(wrapper(ids).logits, alone)
    wrapper.load_adapter(tmp_path / "sft", "sft")
    assert not torch.allclose(wrapper(ids).logits, alone, atol=1e-2)
    close(wrapper(ids).logits, worn_first(ids).logits)
    for steered in (wrapper, worn_first):
        steered.unload_adapters()
        assert torch.equal(steered(ids).logits, alone)
    wrapper.unsteer()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_under_a_lora_and_with_other_operators_too():
    for site, path in USUAL.items():
        check_against_plain_hook(tiny_lora(tiny_model()), site, path, drawn(site))
        check_against_plain_hook(tiny_model("OPT"), site, PATHS["OPT"][site], drawn(site), ablate)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_mlp_adds_is_what_the_block_writes_by_the_sum_rule(family):
    """input + attention + MLP = output: the same push at the MLP's output and at the block's is the same model."""
    model, ids = tiny_model(family), torch.tensor([PROMPTS[0]])
    wrapper = SteeringWrapper(model)
    at_mlp, at_block = (Intervention(drawn(site), 2, 1.5) for site in ("MLP output", "block output"))
    logits = []
    for edit in (at_mlp, at_block, Intervention(drawn("attention output"), 2, 1.5)):
        with wrapper.steer(edit):
            logits.append(wrapper(ids).logits)
    close(logits[0], logits[1])
    parallel = family == "GPTNeoX"  # where attention and MLP both read the block's input
    assert torch.allclose(logits[2], logits[1], atol=1e-4) == parallel


SITES_OF = {
    "llama": USUAL,
    "llama4_text": USUAL | {"MLP output": "feed_forward"},
    "bart": "does not sum up",
    "roberta": "cannot tell which part",
    "bamba": "cannot tell which part",
    "qwen3_next": "cannot tell which part",
    "falcon_h1": "does not sum up",
    "mamba": "cannot tell which part",
    "rwkv": "does not sum up",
    "mllama": USUAL,
    "minimax": "does not sum up",
    "whisper": PATHS["OPT"],
}
"""The representative dozen of tests/test_families.py: where the site is, or the words in which it is refused."""


@pytest.mark.parametrize("model_type", sorted({*SITES_OF} & {*model_types()}))
def test_a_family_acts_there_or_is_refused_by_name(model_type):
    model, known = tiny(model_type), SITES_OF[model_type]
    for site in ("attention output", "MLP output", "attention heads"):
        if isinstance(known, str):
            with pytest.raises(TypeError, match=known):
                SteeringWrapper(model, Intervention(drawn(site), 1, 1.0))
        else:
            check_against_plain_hook(model, site, known[site], drawn(site, site_width(model, site)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder_blocks(model))


@pytest.mark.parametrize("family", ["Llama", "Bloom"])
def test_settings_at_sites_share_passes_with_others(family):
    model = tiny_model(family)
    wrapper, sites, shared = SteeringWrapper(model), list(USUAL), drawn("block output")
    settings = [
        (),
        *((Intervention(shared, layer, 2.0, site=site),) for site in sites for layer in (0, 2)),
        (Intervention(drawn(sites[0]), 0, 1.0), Intervention(drawn(sites[1]), 3, 1.0, where=everywhere)),
        (Intervention(drawn(sites[0]), 2, 1.0, where=everywhere), Intervention(drawn("block output"), 1, -1.0)),
    ]
    texts = [Continued(prompt, ([50, 51], [60, 61]), 0) for prompt in PROMPTS]
    scores = log_probabilities(wrapper, texts, settings)
    for column, setting in enumerate(settings):
        for row, text in enumerate(texts):
            alone = log_probabilities(wrapper, [text], [setting])[0, 0]
            torch.testing.assert_close(scores[row, column], alone, atol=2e-5, rtol=1e-5)
    assert len({round(value, 3) for value in scores[0, :, 0].tolist()}) == len(settings)


def test_a_head_is_read_and_edited_alone():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    pairs = [ContrastPair(f"Wait {n}?\n (A) Yes\n (B) No", "(A)", "(B)") for n in range(3)]
    heads = extract(model, tokenizer, pairs, site="attention heads", token="last")
    one = only_head(heads, 2, 4)
    assert one.at(1)[16:24].equal(heads.at(1)[16:24])
    assert not one.at(1)[:16].any() | one.at(1)[24:].any()
    check_against_plain_hook(model, "attention heads", "self_attn.o_proj", 5 * one)
    with pytest.raises(ValueError, match="no head 4 of 4"):
        only_head(heads, 4, 4)


def test_sites_are_saved_told_and_refused_where_nobody_knows_them(tmp_path):
    model, ids = tiny_model(), torch.tensor([PROMPTS[0]])
    wrapper = SteeringWrapper(
        model, Intervention(drawn("attention output"), 2, 1.0), Intervention(drawn("MLP output"), 1, 1.0)
    )
    expected = wrapper(ids).logits
    folder = wrapper.save_pretrained(tmp_path / "sites")
    wrapper.unsteer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = SteeringWrapper.from_pretrained(folder, model)
    assert torch.equal(loaded(ids).logits, expected)
    assert [edit.place for edit in loaded.interventions] == ["attention output", "MLP output"]
    assert str(loaded.interventions[0]) == "b x +1, layer 2, at the attention output"
    loaded.unsteer()
    with pytest.raises(ValueError, match="adds to what a block writes, and this acts elsewhere"):
        check_interventions([Intervention(drawn("MLP output"), 1)], [after_prompt], "llama.cpp", "")
    with pytest.raises(ValueError, match="no site 'the mlp'"):
        Intervention(drawn("MLP output"), 1, site="the mlp")
    with pytest.raises(ValueError, match="8 wide and the model 32 at its attention heads"):
        SteeringWrapper(model, Intervention(drawn("attention heads", 8), 1))
    elsewhere = replace(Intervention(drawn("attention output"), 2, 1.0), site="block output")
    with SteeringWrapper(model).steer(elsewhere):
        assert (model(ids).logits - expected).abs().max() > 1e-2


def test_a_saved_adapter_without_a_site_goes_on_at_the_block_output(tmp_path):
    model, ids = tiny_model(), torch.tensor([PROMPTS[0]])
    wrapper = SteeringWrapper(model, Intervention(drawn("attention output"), 2, 1.0, site="block output"))
    expected = wrapper(ids).logits
    folder = wrapper.save_pretrained(tmp_path / "old")
    assert '"site"' not in (folder / "steering.json").read_text(), "as version 0.1 wrote it"
    wrapper.unsteer()
    assert torch.equal(SteeringWrapper.from_pretrained(folder, model)(ids).logits, expected)


def test_a_site_is_looked_for_once_and_costs_one_hook():
    model, passes = tiny_model(), []
    wrapper = SteeringWrapper(model)
    handle = model.model.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(3):
        with wrapper.steer(Intervention(drawn("MLP output"), 1), Intervention(drawn("MLP output"), 1)):
            assert len(site_modules(model, "MLP output")[1]._forward_hooks) == 1
    assert len(passes) == 1
    handle.remove()
