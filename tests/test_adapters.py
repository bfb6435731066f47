"""Adapters that others made: proved when they are loaded, or refused with the model left bit for bit as it was."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from adapter_kinds import IDS as KIND_IDS
from adapter_kinds import KINDS, close, logits, quietly, trained
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from slow import vector
from tiny import tiny_lora, tiny_model, tiny_tokenizer
from torch import nn

from caa import Behavior, ContrastPair, Intervention, Question, SteeringWrapper, extract, load_model
from caa.evals.grid import EvalGrid
from caa.exports.merged import to_merged
from caa.exports.peft import to_peft
from caa.extraction.norms import stream_norms
from caa.models.adapter_state import active_adapters, merged_adapters
from caa.models.adapters import AdapterError, adapter_record, save_adapter
from caa.models.fingerprint import fingerprint, has_fingerprint
from caa.models.restore import WriteGuard
from caa.models.tensors import plain_parts
from caa.runs.rows import read_rows
from caa.steering.patching import record_activations
from caa.steering.scopes import everywhere
from caa.steering.scoring import Continued, log_probabilities

TOKENIZER = tiny_tokenizer()
PAIRS = [ContrastPair(f"Wait {n}?\n (A) Yes\n (B) No", "(A)", "(B)") for n in range(4)]
IDS = torch.tensor([[5, 6, 7, 8]])


def tensors_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def write(folder, tensors) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def adapter(folder, kind: str = "LoRA", seed: int = 1):
    with quietly():
        trained(KINDS[kind], folder, seed)
    return folder


def snapshot(model) -> dict:
    """Everything that a refusal must not change."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "modes": [module.training for module in model.modules()],
        "config": copy.deepcopy(model.config.to_dict()),
        "active": active_adapters(model),
    }


def same(before: dict, after: dict) -> None:
    tensors, others = before.pop("tensors"), after.pop("tensors")
    assert before == after
    assert list(tensors) == list(others)
    for name, tensor in tensors.items():
        assert all(map(torch.equal, plain_parts(tensor), plain_parts(others[name]))), name


@pytest.fixture(params=["first", "second"])
def wrapper(request, tmp_path) -> SteeringWrapper:
    """A plain model, or one that wears an adapter already."""
    wrapper = SteeringWrapper(tiny_model())
    if request.param == "second":
        wrapper.load_adapter(adapter(tmp_path / "other", seed=9), "other")
    return wrapper


def refuse(wrapper: SteeringWrapper, folder, match: str) -> None:
    before = snapshot(wrapper.model)
    with quietly(), pytest.raises(AdapterError, match=match) as error:
        wrapper.load_adapter(folder, "new")
    assert "\n" not in str(error.value)
    same(before, snapshot(wrapper.model))


CHANGES_BASE = ["LoRA, PiSSA", "LoRA, OLoRA", "LoRA, layer_replication", "LoRA, bias"]


@pytest.mark.parametrize("kind", CHANGES_BASE)
def test_an_adapter_that_changes_the_base_is_refused_with_the_way_out(wrapper, tmp_path, kind):
    way_out = "[Cc]heckpoint of its own" if "replication" in kind or "bias" in kind else "path_initial_model_for_weight"
    refuse(wrapper, adapter(tmp_path / "new", kind), way_out)


@pytest.mark.parametrize("kind", ["LoRA, PiSSA", "LoRA, OLoRA"])
def test_a_change_of_the_base_is_seen_by_itself(wrapper, tmp_path, kind, monkeypatch):
    """Also of an initialization whose name nobody knew."""
    monkeypatch.setattr("caa.models.adapters._MOVES_BASE", ("unknown",))
    refuse(wrapper, adapter(tmp_path / "new", kind), r"changes the base's own weights \(.*q_proj")


def test_tensors_of_the_base_in_a_file_are_no_harm_where_they_are_the_base_s(wrapper, tmp_path):
    folder = adapter(tmp_path / "new", "LoRA on the embeddings")
    key, tensors = "base_model.model.model.embed_tokens.base_layer.weight", tensors_of(folder)
    same_base = tiny_model().model.embed_tokens.weight.detach().clone()
    write(folder, tensors | {key: same_base})
    wrapper.load_adapter(folder, "new")
    wrapper.unload_adapters()
    other = same_base.clone()
    other[7, 3] += 1e-3
    write(folder, tensors | {key: other})
    refuse(wrapper, folder, r"changes the base's own weights \(.*embed_tokens")


def test_one_bit_in_the_base_is_seen_and_put_back():
    model = tiny_model()
    weight = model.model.layers[1].mlp.up_proj.weight
    before = weight.detach().clone()
    for write_bit in (
        lambda: weight.data[3, 4].neg_(),
        lambda: weight.data.add_(1e-3),
        lambda: torch._foreach_mul_([weight.data], 1.5),
        lambda: torch.add(before, 1, out=weight.data),
        lambda: setattr(weight, "data", before * 2),
        lambda: setattr(weight, "data", weight.data.t()),
        lambda: weight.detach().numpy().__setitem__((0, 0), 1.0) or weight.data.copy_(before + 1),
    ):
        with WriteGuard(model) as guard:
            write_bit()
            assert guard.changed() == ["model.layers.1.mlp.up_proj.weight"]
            guard.restore()
            assert not guard.changed()
        assert torch.equal(weight, before) or weight[0, 0] == 1.0
    with WriteGuard(model) as guard, torch.no_grad():
        weight.copy_(weight.clone())
        assert not guard.changed(), "the same numbers were written"
        model.model.layers[1].mlp.up_proj.weight = nn.Parameter(before + 1)
        assert guard.changed() == ["model.layers.1.mlp.up_proj.weight"]


# Keys


def renamed(folder, old: str, new: str) -> None:
    write(folder, {key.replace(old, new): tensor for key, tensor in tensors_of(folder).items()})


ELSEWHERE = {
    "multimodal twin": (".model.layers", ".model.language_model.layers"),
    "AutoModel": ("base_model.model.model.", "base_model.model."),
    "misnamed": ("self_attn", "attn"),
    "a layer too many": ("layers.3.", "layers.7."),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_tensors_that_land_nowhere_are_refused(wrapper, tmp_path, case):
    folder = adapter(tmp_path / "new")
    renamed(folder, *ELSEWHERE[case])
    refuse(wrapper, folder, r"tensors of the adapter at .* have no place in this model")


def test_a_deeper_model_s_adapter_is_refused(wrapper, tmp_path):
    folder = adapter(tmp_path / "new")
    tensors = tensors_of(folder)
    deeper = {key.replace("layers.3.", "layers.4."): tensor.clone() for key, tensor in tensors.items()}
    write(folder, tensors | deeper)
    refuse(wrapper, folder, r"4 tensors .* have no place")


@pytest.mark.parametrize("missing", ["layers.2.", "layers.1.self_attn.v_proj.lora_B", "lora_magnitude_vector"])
def test_parameters_that_the_file_does_not_fill_are_refused(wrapper, tmp_path, missing):
    folder = adapter(tmp_path / "new", "LoRA, DoRA")
    kept = {key: tensor for key, tensor in tensors_of(folder).items() if missing not in key}
    assert len(kept) < len(tensors_of(folder))
    write(folder, kept)
    refuse(wrapper, folder, "holds nothing for|does not fit")


@pytest.mark.parametrize("name", ["0", "model", "norm", "weight", "lora_A", "base_layer", "base_model"])
def test_an_adapter_called_as_a_module_would_lose_tensors_of_others_and_is_refused(wrapper, tmp_path, name):
    before = snapshot(wrapper.model)
    with quietly(), pytest.raises(AdapterError, match=rf"called '{name}' on this model.*such as '{name}-adapter'"):
        wrapper.load_adapter(adapter(tmp_path / "new"), name)
    same(before, snapshot(wrapper.model))


@pytest.mark.parametrize("name", ["0", "lora_A"])
def test_nothing_is_saved_beside_an_adapter_that_plain_peft_called_as_a_module(tmp_path, name):
    wrapper = SteeringWrapper(tiny_lora(tiny_model(), name))
    wrapper.load_adapter(adapter(tmp_path / "b"), "b")
    with pytest.raises(AdapterError, match=f"no adapter can be called '{name}'"):
        saved(wrapper, "b", tmp_path / "saved")


def test_an_empty_file_is_refused(wrapper, tmp_path):
    folder = adapter(tmp_path / "new")
    write(folder, {})
    refuse(wrapper, folder, "holds nothing for 16 of the tensors")


# Files


def pointer(path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n")


DAMAGE = {
    "weights are a pointer": (lambda f: pointer(f / "adapter_model.safetensors"), "git lfs pull"),
    "config is a pointer": (lambda f: pointer(f / "adapter_config.json"), "git lfs pull"),
    "weights cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-40]),
        "is damaged .Error while deserializing header",
    ),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no weights of an adapter"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter of PEFT"),
    "config cut short": (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LO'), "is damaged"),
    "config no object": (lambda f: (f / "adapter_config.json").write_text("[]"), "is damaged"),
    "record cut short": (lambda f: (f / "caa.json").write_text('{"base"'), "is damaged"),
    "unknown kind": (lambda f: edit(f, peft_type="TELEPATHY"), "kind TELEPATHY"),
    "unknown word": (lambda f: edit(f, target_modules=7), "is damaged .it: target_modules should be"),
}


def edit(folder, **words) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | words))


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_is_not_whole_is_one_line(wrapper, tmp_path, case):
    folder = adapter(tmp_path / "new")
    damage, match = DAMAGE[case]
    damage(folder)
    refuse(wrapper, folder, match)


def test_behind_an_adapter_that_trains_tokens_the_order_is_told(tmp_path):
    tokens, plain = adapter(tmp_path / "a", "LoRA, trainable_token_indices"), adapter(tmp_path / "b")
    wrapper = SteeringWrapper(tiny_model())
    wrapper.load_adapter(tokens, "tokens")
    try:
        wrapper.load_adapter(plain, "plain")
    except AdapterError as error:
        assert "load this one first" in str(error)  # noqa: PT017
        wrapper = SteeringWrapper(tiny_model())
        wrapper.load_adapter(plain, "plain")
        wrapper.load_adapter(tokens, "tokens")
    with quietly():
        for name, kind in (("tokens", "LoRA, trainable_token_indices"), ("plain", "LoRA")):
            with wrapper.finetune(name):
                assert close(logits(wrapper), logits(trained(KINDS[kind], tmp_path / "c", 1)))


def test_an_alora_begins_at_its_own_tokens_whatever_was_loaded_after_it(tmp_path):
    """PEFT looks for them in another place than the one that says which adapters are active."""
    kinds = {"al": "LoRA, aLoRA", "other": "LoRA, aLoRA", "plain": "LoRA"}
    wrapper, expected = SteeringWrapper(tiny_model()), {}
    for seed, (name, kind) in enumerate(kinds.items(), 1):
        settings = KINDS[kind].settings | (
            {"alora_invocation_tokens": [int(KIND_IDS[0, 5])]} if name == "other" else {}
        )
        with quietly():
            expected[name] = logits(trained(replace(KINDS[kind], settings=settings), tmp_path / name, seed))
        wrapper.load_adapter(tmp_path / name, name)
    for name in (*kinds, "al"):
        with wrapper.finetune(name):
            assert close(logits(wrapper), expected[name]), name
        assert close(logits(wrapper), expected["plain"]), f"not what was active before {name}"
    with wrapper.finetune("al"):
        folder = wrapper.save_pretrained(tmp_path / "steered", finetunes=["al", "plain"])
    assert close(logits(SteeringWrapper.from_pretrained(folder, tiny_model())), expected["al"])


# What reads see


@pytest.mark.parametrize("kind", ["Prompt tuning", "Prefix tuning", "P-tuning", "LoRA, aLoRA"])
def test_what_acts_outside_of_the_decoder_is_refused_by_every_read(tmp_path, kind):
    with quietly():
        model = trained(KINDS[kind], tmp_path, 1)
    for read in (
        lambda: extract(model, TOKENIZER, PAIRS, [2]),
        lambda: extract(model, TOKENIZER, PAIRS, [2], token="last"),
        lambda: record_activations(model, IDS),
        lambda: stream_norms(model, TOKENIZER, [[5, 6, 7]], [2]),
        lambda: log_probabilities(SteeringWrapper(model), [Continued([5, 6], ([7], [8]), 0)], [()]),
    ):
        with pytest.raises(ValueError, match="acts outside of the decoder's layers"):
            read()
    with SteeringWrapper(model).finetune(None):
        assert torch.equal(extract(model, TOKENIZER, PAIRS, [2]).at(2), extract(frozen(), TOKENIZER, PAIRS, [2]).at(2))


def frozen():
    """PEFT freezes the base, and torch multiplies frozen matrices by another kernel."""
    return tiny_model().requires_grad_(False)


@pytest.mark.parametrize("kind", ["LoRA", "LoRA, DoRA", "LoRA, modules_to_save", "IA3"])
def test_a_read_is_of_what_is_worn(tmp_path, kind):
    wrapper = SteeringWrapper(frozen())
    wrapper.load_adapter(adapter(tmp_path, kind), "sft")
    vector_worn = extract(wrapper.model, TOKENIZER, PAIRS, [2])
    with quietly():
        alone = trained(KINDS[kind], tmp_path / "alone", 1)
    assert vector_worn.source.adapter == "sft"
    torch.testing.assert_close(vector_worn.at(2), extract(alone, TOKENIZER, PAIRS, [2]).at(2), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(vector_worn.at(2), extract(frozen(), TOKENIZER, PAIRS, [2]).at(2), atol=1e-2)


# What PEFT left on the model


def test_a_merged_model_is_neither_base_nor_adapter_and_says_so(tmp_path):
    model = tiny_lora(tiny_model())
    wrapper = SteeringWrapper(model)
    known, worn = fingerprint(model), wrapper(IDS).logits
    model.merge_adapter()
    assert merged_adapters(model) == ["sft"]
    grid = EvalGrid(
        behavior=Behavior("patience", ab_questions=(QUESTION,)),
        vector=vector(),
        layers=[2],
        finetunes=["sft"],
        tasks=["ab"],
    )
    for act in (
        lambda: save_adapter(model, "sft", tmp_path),
        lambda: wrapper.save_pretrained(tmp_path / "steered"),
        lambda: wrapper.unload_adapters(),
        lambda: wrapper.finetune(None).__enter__(),
        lambda: wrapper.finetune("sft").__enter__(),
        lambda: to_peft(steered(wrapper), tmp_path / "peft"),
        lambda: to_merged(steered(wrapper), TOKENIZER, tmp_path / "merged"),
        lambda: fingerprint(model),
        lambda: extract(model, TOKENIZER, PAIRS, [2]),
        lambda: wrapper.load_adapter(adapter(tmp_path / "other"), "other"),
        lambda: wrapper.unsteer() or grid.run(wrapper, TOKENIZER, tmp_path / "run", progress=False),
    ):
        with pytest.raises(ValueError, match=r"PEFT has merged sft into the base's weights"):
            act()
    assert merged_adapters(model) == ["sft"], "what the user did stays"
    wrapper.unsteer()
    assert torch.allclose(wrapper(IDS).logits, worn, atol=1e-4)
    model.unmerge_adapter()
    assert len(known) == len(fingerprint(model))
    wrapper.unload_adapters()
    assert torch.allclose(wrapper(IDS).logits, tiny_model()(IDS).logits, atol=1e-4)


def steered(wrapper: SteeringWrapper) -> SteeringWrapper:
    wrapper.unsteer()
    wrapper.steer(Intervention(vector(), 2, 1.0, where=everywhere))
    return wrapper


def test_adapters_that_transformers_put_on_are_told(tmp_path):
    from peft import LoraConfig

    model = tiny_model()
    known = fingerprint(model)
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "native")
    assert active_adapters(model) == ["native"]
    assert has_fingerprint(model, known)
    with pytest.raises(ValueError, match=r"transformers itself has put native on this model"):
        SteeringWrapper(model).finetune(None).__enter__()
    with pytest.raises(ValueError, match=r"transformers itself has put native on this model"):
        SteeringWrapper(model).load_adapter(adapter(tmp_path), "sft")
    model.disable_adapters()
    assert active_adapters(model) == []


@pytest.mark.parametrize("kind", ["IA3", "OFT", "LoHa", "VeRA", "VB-LoRA", "LN tuning", "FourierFT", "HRA"])
def test_a_base_is_known_under_adapters_of_any_kind(tmp_path, kind):
    with quietly():
        assert fingerprint(trained(KINDS[kind], tmp_path, 1)) == fingerprint(tiny_model())


@pytest.mark.parametrize("tied", [False, True])
def test_a_base_is_known_where_its_weights_lie_on_the_disk(tmp_path, tied):
    from accelerate import disk_offload

    model = tied_model() if tied else tiny_model()
    known, plain = fingerprint(model), model(IDS).logits
    offloaded = disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert fingerprint(offloaded) == known
    assert torch.equal(offloaded(IDS).logits, plain)


def tied_model():
    model = tiny_model()
    config = type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": True})
    torch.manual_seed(0)
    return type(model)(config).eval()


# Quantized bases


def quantized(bits: int):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    from torchao.quantization.granularity import PerGroup

    # torchao's Int4WeightOnlyConfig runs on cards alone.
    int4 = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16))
    model = tiny_model()
    quantization.quantize_(model, {8: quantization.Int8WeightOnlyConfig(), 4: int4}[bits])
    return model


def dequantized(model):
    """A plain model of the numbers that a quantized one stands for."""
    plain = tiny_model()
    for name, tensor in model.state_dict().items():
        numbers = tensor.dequantize() if len(plain_parts(tensor)) > 1 else tensor
        plain.get_parameter(name).data.copy_(numbers)
    return plain


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_base_of_torchao_is_known_steered_read_and_wears_adapters(tmp_path, bits):
    model = quantized(bits)
    known, plain = fingerprint(model), model(IDS).logits
    assert known == fingerprint(quantized(bits))
    assert fingerprint(tiny_model()) != known, "quantized weights are no part of it"
    read = extract(model, TOKENIZER, PAIRS, [2])
    alone = extract(dequantized(model), TOKENIZER, PAIRS, [2]).at(2)
    torch.testing.assert_close(read.at(2), alone, atol=0.05, rtol=0)
    assert not torch.allclose(alone, extract(tiny_model(), TOKENIZER, PAIRS, [2]).at(2), atol=0.1)
    wrapper = SteeringWrapper(model)
    with wrapper.steer(Intervention(vector(), 2, 1.0)):
        assert not torch.allclose(wrapper(IDS).logits, plain, atol=1e-2)
    with quietly():
        wrapper.load_adapter(adapter(tmp_path / "new"), "sft")
        assert fingerprint(wrapper.model) == known
        refuse_pissa = adapter(tmp_path / "pissa", "LoRA, PiSSA")
    assert torch.equal(
        wrapper(IDS).logits, PeftModel.from_pretrained(quantized(bits), tmp_path / "new").eval()(IDS).logits
    )
    (tmp_path / "saved").mkdir()
    save_adapter(wrapper.model, "sft", tmp_path / "saved")
    assert all(map(torch.equal, tensors_of(tmp_path / "saved").values(), tensors_of(tmp_path / "new").values()))
    with wrapper.finetune(None):
        assert torch.equal(wrapper(IDS).logits, plain)
    refuse(wrapper, refuse_pissa, "changes the base")
    with pytest.raises(ValueError, match="quantized"):
        to_merged(steered(wrapper), TOKENIZER, tmp_path / "merged")
    tiny_model().save_pretrained(tmp_path / "full")
    with pytest.raises(
        ValueError, match="is no adapter, and a full checkpoint cannot take the place of this quantized"
    ):
        wrapper.load_finetune(tmp_path / "full", "full")
    wrapper.unsteer()
    wrapper.unload_adapters()
    assert torch.equal(wrapper(IDS).logits, plain)


# What PEFT changes on a model that wears adapters


@pytest.fixture
def worn(tmp_path) -> SteeringWrapper:
    """A base that holds the adapters a and b, whose folders are `tmp_path / name`; a has a record."""
    for seed, name in enumerate("ab", 1):
        adapter(tmp_path / name, seed=seed)
    record = {"base": "tiny", "base_fingerprint": fingerprint(tiny_model()), "behavior": "patience"}
    (tmp_path / "a" / "caa.json").write_text(json.dumps(record))
    wrapper = SteeringWrapper(tiny_model())
    for name in "ba":
        wrapper.load_adapter(tmp_path / name, name)
    return wrapper


def saved(wrapper: SteeringWrapper, name: str, folder) -> torch.Tensor:
    """What plain PEFT computes with what is saved of an adapter."""
    folder.mkdir()
    save_adapter(wrapper.model, name, folder)
    with quietly():
        return PeftModel.from_pretrained(tiny_model(), folder).eval()(IDS).logits


@pytest.mark.parametrize("frozen_part", ["", "model.layers.1."])
def test_the_base_is_trained_after_unloading_as_it_was_before(worn, tmp_path, frozen_part):
    wrapper = SteeringWrapper(tiny_model())
    for key, parameter in wrapper.model.named_parameters():
        parameter.requires_grad = not (frozen_part and key.startswith(frozen_part))
    before = {key: parameter.requires_grad for key, parameter in wrapper.model.named_parameters()}
    for name in "ab":
        wrapper.load_adapter(tmp_path / name, name)
    wrapper.unload_adapters()
    assert {key: parameter.requires_grad for key, parameter in wrapper.model.named_parameters()} == before


def unloaded_is_base(wrapper: SteeringWrapper) -> None:
    assert fingerprint(wrapper.model) == fingerprint(tiny_model())
    wrapper.unsteer()
    wrapper.unload_adapters()
    assert torch.equal(wrapper(IDS).logits, frozen()(IDS).logits)


@pytest.mark.parametrize("scale", ["set_scale", "scale_layer"])
def test_a_scaled_adapter_is_worn_and_exported_as_it_is_and_not_saved_as_another(worn, tmp_path, scale):
    halved = added_by_hand(worn, {"a": 0.5})
    for layer in worn.model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("a", 0.5) if scale == "set_scale" else layer.scale_layer(0.5)
    torch.testing.assert_close(worn(IDS).logits, halved, atol=1e-4, rtol=1e-4)
    assert adapter_record(worn.model, "a") == {}, "nothing is known of the scaled one"
    for save in (lambda: saved(worn, "a", tmp_path / "s"), lambda: steered(worn).save_pretrained(tmp_path / "steered")):
        with pytest.raises(ValueError, match=r"was scaled on the model .* in place of .*set_scale\('a', 1\)"):
            save()
    with quietly():
        to_merged(steered(worn), TOKENIZER, tmp_path / "merged")  # compares what it wrote with the hook
        to_peft(steered(worn), tmp_path / "peft")
        exported = PeftModel.from_pretrained(tiny_model(), tmp_path / "peft").eval()
    torch.testing.assert_close(exported(IDS).logits, worn(IDS).logits, atol=1e-4, rtol=1e-4)
    unloaded_is_base(worn)


def test_an_adapter_that_was_swapped_in_place_is_the_new_one_without_the_record_of_the_old(worn, tmp_path):
    from peft.utils.hotswap import hotswap_adapter

    assert adapter_record(worn.model, "a")["behavior"] == "patience"
    with worn.finetune("b"):
        expected = worn(IDS).logits
    hotswap_adapter(worn.model, str(tmp_path / "b"), "a", torch_device="cpu")
    torch.testing.assert_close(worn(IDS).logits, expected)
    assert adapter_record(worn.model, "a") == {}
    torch.testing.assert_close(saved(worn, "a", tmp_path / "s"), expected)
    unloaded_is_base(worn)


@pytest.mark.parametrize("combination", ["cat", "linear", "svd"])
def test_a_weighted_combination_is_an_adapter_of_its_own(worn, tmp_path, combination):
    worn.model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type=combination)
    assert worn.adapters == ["b", "a", "both"]
    with worn.finetune("both"):
        combined = worn(IDS).logits
        if combination == "cat":
            torch.testing.assert_close(combined, added_by_hand(worn, {"a": 0.7, "b": 0.3}), atol=1e-4, rtol=1e-4)
        with quietly():
            to_merged(steered(worn), TOKENIZER, tmp_path / "merged")
        worn.unsteer()
    torch.testing.assert_close(saved(worn, "both", tmp_path / "s"), combined)
    unloaded_is_base(worn)


@torch.no_grad()
def added_by_hand(wrapper: SteeringWrapper, shares: dict[str, float]) -> torch.Tensor:
    """Of a base to whose matrices the shares of B A alpha / r are added."""
    plain = tiny_model()
    for key, layer in wrapper.model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = plain.get_submodule(key.removeprefix("base_model.model.")).weight
            for name, share in shares.items():
                weight += share * layer.scaling[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight
    return plain(IDS).logits


# A folder as a model


@pytest.fixture
def base_folder(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_the_folder_of_an_adapter_is_its_base_wearing_it(base_folder, tmp_path):
    folder = adapter(tmp_path / "kind.v1")
    edit(folder, base_model_name_or_path=str(base_folder))
    model, tokenizer = load_model(str(folder))
    wrapper = SteeringWrapper(model)
    assert wrapper.adapters == active_adapters(model) == ["kind-v1"]
    assert tokenizer("a").input_ids == TOKENIZER("a").input_ids
    with quietly():
        assert close(logits(wrapper), logits(trained(KINDS["LoRA"], tmp_path / "again", 1)))
    with wrapper.finetune(None):
        assert torch.equal(wrapper(IDS).logits, frozen()(IDS).logits)
    assert extract(model, tokenizer, PAIRS, [2]).source.adapter == "kind-v1"


def test_a_folder_that_is_no_model_says_what_it_is(base_folder, tmp_path):
    folder = adapter(tmp_path / "sft")
    edit(folder, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="is an adapter that does not say its base"):
        load_model(str(folder))
    edit(folder, base_model_name_or_path=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"is an adapter, and its base cannot be loaded: no model"):
        load_model(str(folder))
    wrapper = SteeringWrapper(tiny_lora(tiny_model()), Intervention(vector(), 2, 1.0))
    with pytest.raises(ValueError, match=r"is a steered adapter and no model: .*SteeringWrapper.from_pretrained"):
        load_model(str(wrapper.save_pretrained(tmp_path / "steered")))


# Tied embeddings


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
        {"target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_an_export_of_a_tied_model_is_what_the_hook_gives(tmp_path, settings):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    with quietly():
        model = get_peft_model(tied_model(), LoraConfig(r=2, task_type="CAUSAL_LM", **settings)).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        wrapper = steered(SteeringWrapper(model))
        folder = to_merged(wrapper, TOKENIZER, tmp_path / "merged")
        exported = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(exported(IDS).logits, wrapper(IDS).logits, atol=1e-3, rtol=1e-4)
    changes_an_end = settings != {"target_modules": ["q_proj"]}
    assert exported.config.tie_word_embeddings is not changes_an_end
    assert model.get_base_model().config.tie_word_embeddings, "the model itself stays tied"


# A table over strangers' adapters

QUESTION = Question("Wait 11?\n (A) Yes\n (B) No", "(A)", "(B)")
QUESTIONS = (QUESTION, Question("Take 3 pearls?\n (A) Now\n (B) Later, all of them", "(B)", "(A)"))
STRANGERS = {
    "plain": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"r": 4, "target_modules": ["up_proj", "o_proj"], "use_dora": True},
    "norms": {"r": 4, "target_modules": ["k_proj"], "use_rslora": True, "modules_to_save": ["norm"]},
}


def worn_by_plain_peft(*names: str):
    from peft import LoraConfig, get_peft_model

    model = None
    with quietly():
        for name in names:
            config = LoraConfig(task_type="CAUSAL_LM", **STRANGERS[name])
            torch.manual_seed(len(name))
            if model is None:
                model = get_peft_model(tiny_model(), config, adapter_name=name)
            else:
                model.add_adapter(name, config)
            generator = torch.Generator().manual_seed(len(name))
            for key, parameter in model.named_parameters():
                if f".{name}." in f"{key}.":
                    parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def share_by_hand(model, question: Question, multiplier: float) -> float:
    """p(matching letter) / (p(A) + p(B)) behind "(", one text, a plain hook, the definition of softmax."""
    from caa.models.blocks import decoder_blocks

    prompt = TOKENIZER(f"<s>[{question.text}]", add_special_tokens=False).input_ids
    ids = TOKENIZER(f"<s>[{question.text}] (", add_special_tokens=False).input_ids

    def hook(module, args, output):
        resid = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        resid[:, len(prompt) - 1 :] += multiplier * vector().at(2)
        return resid if isinstance(output, torch.Tensor) else (resid, *output[1:])

    handle = decoder_blocks(model)[2].register_forward_hook(hook)
    try:
        weights = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    finally:
        handle.remove()
    matching, opposite = (weights[TOKENIZER.convert_tokens_to_ids(answer[1])] for answer in question.answers)
    return (matching / (matching + opposite)).item()


def test_every_cell_of_a_table_over_strangers_adapters_is_the_slow_definition(tmp_path):
    multipliers = [-1.0, 0.0, 1.0]
    behavior = Behavior("patience", ab_questions=QUESTIONS)
    grid = EvalGrid(
        behavior=behavior,
        vector=vector(),
        layers=[2],
        multipliers=multipliers,
        finetunes=[None, *STRANGERS],
        tasks=["ab"],
    )
    grid.run(SteeringWrapper(worn_by_plain_peft(*STRANGERS)), TOKENIZER, tmp_path, progress=False)
    scores = {
        (row.cell.finetune, row.cell.multiplier, row.question): row.score for row in read_rows(tmp_path / "rows.jsonl")
    }
    assert len(scores) == 4 * 3 * 2
    for name, multiplier, question in product([None, *STRANGERS], multipliers, QUESTIONS):
        alone = tiny_model() if name is None else worn_by_plain_peft(name)
        expected = share_by_hand(alone, question, multiplier)
        assert scores[name, multiplier, question.id] == pytest.approx(expected, abs=1e-5), (name, multiplier)


def test_saving_never_asks_the_hub_and_writes_its_keys_in_order(tmp_path, monkeypatch):
    def ask(*args, **options):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", ask)
    model = tiny_lora(tiny_model())
    model.peft_config["sft"].base_model_name_or_path = "you/base"
    save_adapter(model, "sft", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert list(config) == sorted(config)
    assert config["target_modules"] == sorted(config["target_modules"])
