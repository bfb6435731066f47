"""Steering against its slow definition: one row, no padding, no cache, a plain hook; on every family of models."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, RARE, random_ids, tiny_lora, tiny_model
from transformers import DynamicCache

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks
from caa.steering.patching import Recording
from caa.steering.scopes import everywhere
from caa.vectors.vector import Provenance

PROMPTS = [random_ids(1, length, seed=length)[0].tolist() for length in (9, 5, 1)]


def vector(seed: int = 0, width: int = 32) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(width, generator=generator) for layer in range(4)})


@torch.no_grad()
def by_hand(model, ids: list[int], layer: int, push: torch.Tensor, start: int) -> torch.Tensor:
    """Logits [position, vocab] with `push` added to the output of block `layer` from token `start` on."""

    def hook(module, args, output):
        resid = output if isinstance(output, torch.Tensor) else output[0]
        resid = torch.cat([resid[:, :start], resid[:, start:] + push], dim=1)
        return resid if isinstance(output, torch.Tensor) else (resid, *output[1:])

    handle = decoder_blocks(model)[layer].register_forward_hook(hook)
    try:
        return model(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()


@torch.no_grad()
def greedy_by_hand(model, prompt: list[int], layer: int, push: torch.Tensor, steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(by_hand(model, ids, layer, push, len(prompt) - 1)[-1].argmax().item())
    return ids[len(prompt) :]


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "side"), [*product(FAMILIES, ("left", "right")), ("Rwkv", "right")])
def test_a_row_of_a_padded_batch_is_steered_as_if_alone(family, side):
    model, v = tiny_model(family), vector()
    wrapper = SteeringWrapper(model, Intervention(v, layer=1, multiplier=2.5))
    ids, mask = pad(PROMPTS, 0, side)
    batch = wrapper(ids, mask).logits.detach()
    wrapper.unsteer()
    for row, prompt in enumerate(PROMPTS):
        expected = by_hand(model, prompt, 1, 2.5 * v.at(1), len(prompt) - 1)
        last = -1 if side == "left" else len(prompt) - 1
        assert (expected[-1] - model(torch.tensor([prompt])).logits[0, -1]).abs().max() > 1e-2, "steering does nothing"
        close(batch[row, last], expected[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_inside_the_text_is_steered_from_the_last_prompt_token_on(family):
    model, v = tiny_model(family), vector()
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in (10, 6)]
    ids, mask = pad(texts, 0, "right")
    wrapper = SteeringWrapper(model, Intervention(v, 2, -1.5))
    logits = wrapper(ids, mask, prompt_lengths=torch.tensor([7, 2])).logits.detach()
    wrapper.unsteer()
    for row, (text, start) in enumerate(zip(texts, (6, 1), strict=True)):
        close(logits[row, : len(text)], by_hand(model, text, 2, -1.5 * v.at(2), start))


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_equals_recomputing_everything(family):
    model, v = tiny_model(family), vector()
    model.generation_config.eos_token_id = None
    ids, mask = pad(PROMPTS, 0, "left")
    with SteeringWrapper(model).steer(Intervention(v, 1, 3.0)):
        written = SteeringWrapper(model).model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row, prompt in enumerate(PROMPTS):
        assert written[row, ids.shape[1] :].tolist() == greedy_by_hand(model, prompt, 1, 3.0 * v.at(1), 6)


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2"])
def test_several_tokens_on_a_filled_cache_go_on_with_the_answer(family):
    model, v = tiny_model(family), vector()
    prompt, answer = PROMPTS[0], [50, 51, 52]
    expected = by_hand(model, prompt + answer, 1, 2.0 * v.at(1), len(prompt) - 1)[-3:]
    wrapper, mask = SteeringWrapper(model), torch.ones(1, len(prompt + answer), dtype=torch.long)
    with wrapper.steer(Intervention(v, 1, 2.0)):
        for go_on in (model, wrapper, partial(wrapper, attention_mask=mask)):
            cache = model(torch.tensor([prompt]), use_cache=True).past_key_values
            close(go_on(torch.tensor([answer]), past_key_values=cache).logits[0], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_multiplier_zero_is_bit_identical(family):
    model, v = tiny_model(family), vector()
    ids, mask = pad(PROMPTS, 0, "left")
    wrapper = SteeringWrapper(model)
    plain = wrapper(ids, mask).logits
    with wrapper.steer(Intervention(v, 1, 0.0), Intervention(v, 2, 0.0, where=everywhere)):
        assert torch.equal(wrapper(ids, mask).logits, plain)
    with wrapper.steer(Intervention(v, 1, [0.0, 1.0, 0.0])):
        mixed = wrapper(ids, mask).logits
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1], plain[1])


def test_each_row_has_its_own_multiplier_also_in_generation():
    model, v = tiny_model(), vector()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPTS[0]] * 3)
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(v, 1, [-3.0, 0.0, 3.0])):
        together = wrapper.generate(ids, max_new_tokens=5, do_sample=False)
    for row, multiplier in enumerate((-3.0, 0.0, 3.0)):
        with wrapper.steer(Intervention(v, 1, multiplier)):
            alone = wrapper.generate(ids[:1], max_new_tokens=5, do_sample=False)
        assert torch.equal(together[row], alone[0])
    assert len({tuple(row.tolist()) for row in together}) == 3


def test_beams_and_samples_of_a_prompt_share_its_multiplier():
    model, v = tiny_model(), vector()
    ids, mask = pad(PROMPTS[:2], 0, "left")
    wrapper = SteeringWrapper(model)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2, "eos_token_id": None}
    with wrapper.steer(Intervention(v, 1, [2.0, -2.0])):
        together = wrapper.generate(ids, mask, **options)
    with wrapper.steer(Intervention(v, 1, -2.0)):
        alone = wrapper.generate(torch.tensor([PROMPTS[1]]), **options)
    assert torch.equal(together[2:, -4:], alone[:, -4:])
    with (
        wrapper.steer(Intervention(v, 1, [1.0, 2.0, 3.0])),
        pytest.raises(ValueError, match="3 multipliers do not fit"),
    ):
        wrapper(ids, mask)


def test_scope_everywhere_edits_the_prompt_too():
    model, v = tiny_model(), vector()
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(v, 1, 2.0, where=everywhere)):
        logits = wrapper(torch.tensor([PROMPTS[0]])).logits[0]
    close(logits, by_hand(model, PROMPTS[0], 1, 2.0 * v.at(1), 0))


def test_a_list_of_multipliers_that_does_not_fit_the_prompts_is_refused():
    model, v, ids = tiny_model(), vector(), torch.tensor([PROMPTS[0]] * 4)
    wrapper = SteeringWrapper(model)
    how = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None}
    with wrapper.steer(Intervention(v, 1, [1.0, -1.0])):
        for run in (wrapper, lambda ids: wrapper.generate(ids, **how)):
            with pytest.raises(ValueError, match="2 multipliers do not fit a batch of 4 rows"):
                run(ids)
        wrapper.generate(ids[:2], num_beams=2, **how)
    with wrapper.steer(Intervention(v, 1, torch.ones(1, 9))):
        wrapper(ids)
        with pytest.raises(ValueError, match="coefficients for 9 tokens do not fit a pass of 1"):
            wrapper.generate(ids, **how)


@pytest.mark.parametrize("multiplier", [float("nan"), float("inf"), 1e39, [1.0, float("nan")], [], torch.ones(1, 2, 3)])
def test_a_multiplier_is_finite_numbers(multiplier):
    with pytest.raises(ValueError, match="a multiplier is one finite number"):
        Intervention(vector(), 1, multiplier)


def test_calls_act_in_their_order_also_when_one_in_the_middle_ends():
    from caa.steering.operators import Clamp

    model, v, ids = tiny_model(), vector(), torch.tensor([PROMPTS[0]])
    a, b, c = Intervention(v, 1, 1.0, Clamp(2.0)), Intervention(v, 1, 1.5), Intervention(v, 1, 0.5, Clamp(-1.0))
    wrapper = SteeringWrapper(model)
    for asked, kept in [((a, b), (0, 1)), ((a, b, c), (0, 2)), ((c, b, a, c), (0, 1, 2)), ((b, a, b), (0, 1))]:
        handles = [wrapper.steer(each) for each in asked]
        for place, handle in enumerate(handles):
            if place not in kept:
                handle.close()
        left = tuple(asked[place] for place in kept)
        assert wrapper.interventions == left
        apart = wrapper(ids).logits
        wrapper.unsteer()
        with wrapper.steer(*left):
            assert torch.equal(wrapper(ids).logits, apart)
        with wrapper.steer(*reversed(left)):
            assert (wrapper(ids).logits - apart).abs().max() > 1e-2, "these commute, so any order would do"


def test_a_pause_is_unsteered():
    model, ids = tiny_model(), torch.tensor([PROMPTS[0]])
    plain, wrapper = model(ids).logits, SteeringWrapper(model, Intervention(vector(), 1, 1.0))
    steered = wrapper(ids).logits
    with wrapper.paused():
        assert torch.equal(wrapper(ids).logits, plain)
    assert torch.equal(wrapper(ids).logits, steered)


def test_several_interventions_add_up_and_nest():
    model, v, w = tiny_model(), vector(0), vector(1)
    ids = torch.tensor([PROMPTS[0]])
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(v, 1, 2.0), Intervention(w, 1, -1.0), Intervention(w, 3, 0.5)):
        at_once = wrapper(ids).logits
    with wrapper.steer(Intervention(w, 3, 0.5)), wrapper.steer(Intervention(2.0 * v - w, 1, 1.0)):
        assert len(wrapper.interventions) == 2
        nested = wrapper(ids).logits
    close(at_once, nested)
    assert wrapper.interventions == ()
    with wrapper.steer(Intervention(v, 2, 1.0, source_layer=1)):
        transferred = wrapper(ids).logits[0]
    close(transferred, by_hand(model, PROMPTS[0], 2, v.at(1), len(PROMPTS[0]) - 1))


def test_a_mask_of_pairs_without_positions_is_the_models_own_matter():
    model, v, ids = tiny_model(), vector(), torch.tensor([PROMPTS[0]])
    mask = torch.zeros(1, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), torch.finfo(torch.float32).min)
    wrapper = SteeringWrapper(model, Intervention(v, 1, 2.0))
    close(wrapper(ids, mask).logits[0].detach(), by_hand(model, PROMPTS[0], 1, 0 * v.at(1), 0))


@pytest.mark.slow
def test_a_model_that_was_compiled_and_run_before_is_steered_and_unsteered():
    job = Path(__file__).parent / "compiled_job.py"  # a process without type checks, which cannot be compiled
    done = subprocess.run([sys.executable, str(job)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", RARE)
def test_states_in_place_of_a_cache_are_steered_too(family):
    model, v = tiny_model(family), vector()
    model.generation_config.eos_token_id = None
    wrapper, prompt = SteeringWrapper(model), PROMPTS[0]
    plain = greedy_by_hand(model, prompt, 1, 0 * v.at(1), 6)
    with wrapper.steer(Intervention(v, 1, 3.0)):
        written = wrapper.generate(torch.tensor([prompt] * 2), max_new_tokens=6, do_sample=False)
    expected = greedy_by_hand(model, prompt, 1, 3.0 * v.at(1), 6)
    assert expected[1:] != plain[1:]
    assert written[:, len(prompt) :].tolist() == [expected] * 2


def test_requests_packed_into_one_row_are_refused_under_steering_and_nowhere_else():
    """As transformers' continuous batching passes them."""
    model, ends = tiny_model(), torch.tensor([0, 3, 5])
    packed = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    with (
        SteeringWrapper(model).steer(Intervention(vector(), 1, 3.0)),
        pytest.raises(ValueError, match="packs all requests into one row"),
    ):
        model(**packed, past_key_values=DynamicCache(), cu_seq_lens_q=ends)
    assert model(**packed, past_key_values=DynamicCache(), cu_seq_lens_q=ends).logits.isfinite().all()


@pytest.mark.parametrize("family", ["Mamba", "Rwkv"])
def test_a_state_that_nobody_counted_is_refused(family):
    model = tiny_model(family)
    with (
        SteeringWrapper(model).steer(Intervention(vector(), 1, 3.0)),
        pytest.raises(ValueError, match="with use_cache=False"),
    ):
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=3, use_cache=True)


def test_a_family_of_several_streams_is_refused():
    wrapper = SteeringWrapper(tiny_model(), Intervention(vector(), 1))
    decoder_blocks(wrapper.model)[1].register_forward_hook(lambda m, a, out: out[None], prepend=True)
    with pytest.raises(TypeError, match="not one residual stream"):
        wrapper(torch.tensor([PROMPTS[0]]))


def test_hidden_states_show_the_steered_stream():
    model, v = tiny_model(), vector()
    ids = torch.tensor([PROMPTS[0]])
    plain = model(ids, output_hidden_states=True).hidden_states
    with SteeringWrapper(model).steer(Intervention(v, 1, 1.0)):
        steered = model(ids, output_hidden_states=True).hidden_states
    close(steered[2][0, -1] - plain[2][0, -1], v.at(1))
    assert torch.equal(steered[1], plain[1])
    assert torch.equal(steered[2][0, :-1], plain[2][0, :-1])


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2", "Mixtral"])
def test_lora_put_on_before_or_after_steering_or_merged_makes_no_difference(family):
    v, ids = vector(), torch.tensor([PROMPTS[0]])
    before = SteeringWrapper(tiny_lora(tiny_model(family)), Intervention(v, 1, 2.0))
    expected = before(ids).logits
    wrapper = SteeringWrapper(tiny_model(family), Intervention(v, 1, 2.0))
    without = wrapper(ids).logits
    wrapper.model = tiny_lora(wrapper.model)
    assert torch.equal(wrapper(ids).logits, expected)
    assert not torch.allclose(expected, without, atol=1e-2), "this LoRA does nothing"
    with wrapper.finetune(None):
        assert torch.equal(wrapper(ids).logits, without)
    assert torch.equal(wrapper(ids).logits, expected), "the adapter did not come back"
    merged = SteeringWrapper(wrapper.model.merge_and_unload())
    close(merged(ids).logits, expected)


def test_switching_finetunes():
    model = tiny_lora(tiny_lora(tiny_model(), "positive", seed=1).unload(), "positive", seed=1)
    torch.manual_seed(2)
    from peft import LoraConfig

    model.add_adapter("negative", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wrapper, ids = SteeringWrapper(model), torch.tensor([PROMPTS[0]])
    seen = {}
    for name in ("positive", "negative", None):
        with wrapper.finetune(name):
            seen[name] = wrapper(ids).logits
    assert torch.equal(seen[None], tiny_model()(ids).logits)
    assert not torch.equal(seen["positive"], seen["negative"])
    assert model.active_adapters == ["positive"]
    with (
        pytest.raises(ValueError, match=r"holds no adapter 'neutral'; it holds \['positive', 'negative'\]"),
        wrapper.finetune("neutral"),
    ):
        pass
    with pytest.raises(ValueError, match="it holds none"), SteeringWrapper(tiny_model()).finetune("positive"):
        pass


def test_taking_all_adapters_off_gives_the_base_back():
    base, ids = tiny_model(), torch.tensor([PROMPTS[0]])
    plain, wrapper = base(ids).logits, SteeringWrapper(tiny_lora(base))
    assert not torch.equal(wrapper(ids).logits, plain)
    wrapper.unload_adapters()
    assert wrapper.model is base
    assert wrapper.adapters == []
    assert torch.equal(wrapper(ids).logits, plain)
    assert list(base.state_dict()) == list(tiny_model().state_dict())


def saved_lora(folder, **kwargs):
    """A folder with a LoRA adapter of the tiny Llama that does something, trained copies and tokens too."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, **{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **kwargs})
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def harmed(folder):
    """The same adapter with one tensor of another shape."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[max(tensors)] = torch.zeros(3, 3)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


SPECIAL = [
    {},
    {"modules_to_save": ["norm"]},
    {"modules_to_save": ["lm_head"]},
    {"trainable_token_indices": [5, 6]},
    {"use_dora": True},
]


@pytest.mark.parametrize("special", SPECIAL, ids=str)
def test_with_every_adapter_off_the_base_is_left(tmp_path, special):
    base, ids = tiny_model(), torch.tensor([[5, 6, 7]])
    plain, wrapper = base(ids).logits, SteeringWrapper(base)
    wrapper.load_adapter(saved_lora(tmp_path, **special), "a")
    assert not torch.allclose(wrapper(ids).logits, plain, atol=1e-2)
    with wrapper.finetune(None):
        assert torch.equal(wrapper(ids).logits, plain)
    wrapper.unload_adapters()
    assert torch.equal(wrapper(ids).logits, plain)
    assert list(wrapper.model.state_dict()) == list(tiny_model().state_dict())
    wrapper.unload_adapters()
    assert wrapper.model is base


@pytest.mark.parametrize("special", SPECIAL, ids=str)
def test_a_refused_adapter_leaves_no_trace(tmp_path, special):
    wrapper, ids = SteeringWrapper(tiny_model()), torch.tensor([[5, 6, 7]])
    plain, modules = wrapper(ids).logits, [type(module) for module in wrapper.modules()]
    bad = harmed(saved_lora(tmp_path / "bad", target_modules=["v_proj"], **special))
    with pytest.raises(ValueError, match="does not fit this model"):
        wrapper.load_adapter(bad, "a")
    assert wrapper.adapters == []
    assert [type(module) for module in wrapper.modules()] == modules
    assert all(parameter.requires_grad for parameter in wrapper.parameters())
    assert torch.equal(wrapper(ids).logits, plain)
    wrapper.load_adapter(saved_lora(tmp_path / "good", **special), "a")
    worn, modules = wrapper(ids).logits, [type(module) for module in wrapper.modules()]
    with pytest.raises(ValueError, match="does not fit this model"):
        wrapper.load_adapter(bad, "b")
    assert (wrapper.adapters, wrapper.model.active_adapters) == (["a"], ["a"])
    assert [type(module) for module in wrapper.modules()] == modules
    assert torch.equal(wrapper(ids).logits, worn)
    wrapper.load_adapter(saved_lora(tmp_path / "good", **special), "b")
    assert torch.equal(wrapper(ids).logits, worn), "the name is not free again"


@pytest.mark.parametrize("name", ["a.b", "keys", "", "training"])
def test_names_that_torch_has_no_room_for_are_refused(tmp_path, name):
    wrapper = SteeringWrapper(tiny_model())
    with pytest.raises(ValueError, match=f"no adapter can be called '{name}'"):
        wrapper.load_adapter(saved_lora(tmp_path), name)
    assert wrapper.adapters == []


def test_a_finetune_acts_also_inside_of_none(tmp_path):
    wrapper, ids = SteeringWrapper(tiny_model()), torch.tensor([[5, 6, 7]])
    plain = wrapper(ids).logits
    wrapper.load_adapter(saved_lora(tmp_path / "a"), "a")
    worn = wrapper(ids).logits
    wrapper.load_adapter(saved_lora(tmp_path / "b", target_modules=["v_proj"]), "b")
    other = wrapper(ids).logits
    with wrapper.finetune(None):
        for name, expected in (("a", worn), ("b", other), (None, plain)):
            with wrapper.finetune(name):
                assert torch.equal(wrapper(ids).logits, expected)
                assert wrapper.model._adapters_disabled == (name is None)
            assert torch.equal(wrapper(ids).logits, plain)
        with pytest.raises(RuntimeError, match="boom"), wrapper.finetune("a"):
            raise RuntimeError("boom")
        assert torch.equal(wrapper(ids).logits, plain)
    assert torch.equal(wrapper(ids).logits, other)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", ["sft", None])
def test_what_is_trained_is_the_same_after_a_switch(trainable, name):
    wrapper = SteeringWrapper(tiny_lora(tiny_model()))
    for parameter in wrapper.parameters():
        parameter.requires_grad = trainable and parameter.requires_grad
    before = [key for key, parameter in wrapper.named_parameters() if parameter.requires_grad]
    assert bool(before) == trainable
    with wrapper.finetune(name):
        pass
    assert [key for key, parameter in wrapper.named_parameters() if parameter.requires_grad] == before


def test_an_intervention_says_what_it_does():
    named = SteeringVector({2: torch.ones(32)}, Provenance(behavior="patience"))
    assert str(Intervention(named, 2, -1.5)) == "patience x -1.5, layer 2"
    assert str(Intervention(named, 2, [0.0, 1.0])) == "patience x 0/+1, layer 2"


def test_a_wrapper_says_how_it_is_steered():
    named = SteeringVector({1: torch.ones(32)}, Provenance(behavior="patience"))
    wrapper = SteeringWrapper(tiny_lora(tiny_model()))
    assert repr(wrapper) == "SteeringWrapper(LlamaForCausalLM, 4 layers, adapters: sft (active); not steered)"
    with wrapper.finetune(None), wrapper.steer(Intervention(named, 1, -1.5)), wrapper.steer(Intervention(named, 1, 2)):
        assert repr(wrapper).splitlines() == [
            "SteeringWrapper(LlamaForCausalLM, 4 layers, adapters: sft; steered by)",
            "  patience x -1.5, layer 1",
            "  patience x +2, layer 1",
        ]


def test_steering_by_what_is_no_intervention_says_what_is_wanted():
    wrapper, recording = SteeringWrapper(tiny_model()), Recording({2: torch.ones(1, 3, 32)}, torch.tensor([3]))
    check = getattr(SteeringWrapper._check, "__wrapped__", SteeringWrapper._check)  # the tests' type checker says less
    for given, layer in ((vector(), 2), (recording, 2)):
        with pytest.raises(
            TypeError, match=rf"wrapper\.steer\(Intervention\(vector, layer={layer}, multiplier=1.0\)\)"
        ):
            check(wrapper, given)
    with pytest.raises(TypeError, match="steer takes interventions, this is of type Tensor"):
        check(wrapper, vector().at(1))
    assert wrapper.interventions == ()


def test_no_hook_is_left_behind_and_none_of_others_taken():
    model = tiny_model()
    block = decoder_blocks(model)[1]
    mine = block.register_forward_hook(lambda *_: None)
    wrapper = SteeringWrapper(model)
    with pytest.raises(RuntimeError, match="boom"), wrapper.steer(Intervention(vector(), 1, 1.0)):
        assert len(block._forward_hooks) == 2
        raise RuntimeError("boom")
    assert list(block._forward_hooks) == [mine.id]
    assert not any(m._forward_pre_hooks for m in model.modules())
    handle = wrapper.steer(Intervention(vector(), 1, 1.0))
    handle.close()
    handle.close()
    assert list(block._forward_hooks) == [mine.id]


def test_an_operator_that_fails_leaves_no_trace():
    model, ids = tiny_model(), torch.tensor([PROMPTS[0]])
    plain = model(ids).logits

    def broken(resid, direction, strength):
        raise ZeroDivisionError

    wrapper = SteeringWrapper(model)
    with pytest.raises(ZeroDivisionError), wrapper.steer(Intervention(vector(), 1, 1.0, operator=broken)):
        wrapper(ids, prompt_lengths=torch.tensor([3]))
    assert torch.equal(wrapper(ids).logits, plain)
    assert wrapper._clock.prompt_lengths is None


def test_parameters_keep_their_names_and_values():
    model = tiny_model()
    names = list(model.state_dict())
    with SteeringWrapper(model).steer(Intervention(vector(), 1, 1.0)):
        model(torch.tensor([PROMPTS[0]]))
        assert list(model.state_dict()) == names
    for name, tensor in tiny_model().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_half_precision_follows_the_stream_and_gradients_flow():
    model, v = tiny_model().to(torch.bfloat16), vector()
    wrapper, ids = SteeringWrapper(model), torch.tensor([PROMPTS[0]])
    with wrapper.steer(Intervention(v, 1, 2.0)):
        logits = wrapper(ids).logits
    assert logits.dtype == torch.bfloat16
    logits.float().logsumexp(-1).sum().backward()
    assert decoder_blocks(model)[0].mlp.down_proj.weight.grad.abs().max() > 0


def test_clear_errors():
    wrapper = SteeringWrapper(tiny_model())
    with pytest.raises(ValueError, match="no layer 4: this model has layers 0 to 3"):
        wrapper.steer(Intervention(vector(), 4))
    with pytest.raises(ValueError, match="this vector is 16 wide and the model 32"):
        wrapper.steer(Intervention(vector(width=16), 1))
    with pytest.raises(KeyError, match="no direction for layer 2"):
        wrapper.steer(Intervention(SteeringVector({1: torch.ones(32)}), 2))
    with pytest.raises(ValueError, match="pad prompts on the left"):
        wrapper.generate(*pad(PROMPTS, 0, "right"))
    with pytest.raises(TypeError, match="needs a causal LM"):
        SteeringWrapper(torch.nn.Linear(2, 2))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in wrapper.model.modules())


def test_an_adapter_that_would_write_over_the_base_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model("GPT2"), LoraConfig(r=2, bias="all", target_modules=["c_attn"])).save_pretrained(tmp_path)
    wrapper = SteeringWrapper(tiny_model("GPT2"))
    ids = torch.tensor([PROMPTS[0]])
    before = wrapper(ids).logits
    with pytest.raises(ValueError, match="holds biases of the base"):
        wrapper.load_adapter(tmp_path, "a")
    assert torch.equal(wrapper(ids).logits, before)
