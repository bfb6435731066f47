"""Exports: loaded by their consumers in a process without caa, they equal the hook; what they cannot say is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from tiny import random_ids, tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.cli import main
from caa.data.chat import ChatFormat
from caa.exports import merged as merging
from caa.exports.alora import to_alora
from caa.exports.llama import as_llama
from caa.exports.merged import to_merged
from caa.exports.peft import to_peft
from caa.exports.targets import TARGETS
from caa.steering.checkpoint.manifest import check_seal, read_manifest
from caa.steering.gates import Gate
from caa.steering.scopes import SCOPES, after_prompt, everywhere
from caa.vectors.vector import Provenance

IDS = random_ids(2, 7)
GROUPED = {"num_key_value_heads": 2}
tiny._OWN |= {
    "Granite": GROUPED | {"residual_multiplier": 0.3, "attention_multiplier": 0.5, "logits_scaling": 1.5},
    "SmolLM3": GROUPED,
    "Phi": {},
    "Starcoder2": GROUPED | {"sliding_window": None},
    "StableLm": GROUPED,
    "Cohere": GROUPED | {"logit_scale": 1.0},
    "GPTJ": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "rotary_dim": 4, "n_inner": 48},
    "Falcon": {},
    "Gemma": GROUPED | {"head_dim": 8},
    "Olmo": GROUPED,
}
MERGED = [
    "Llama",
    "Granite",
    "SmolLM3",
    "Qwen2",
    "Mistral",
    "GPT2",
    "GPTNeoX",
    "OPT",
    "Phi",
    "Bloom",
    "GPTJ",
    "Starcoder2",
]
BIASED = [*MERGED, "Qwen3", "Phi3", "StableLm", "Cohere", "Falcon", "Gemma", "Olmo"]
OWN = ("peft", "peft-alora", "merged")
BARE = [("Llama", False), ("GPT2", False), ("Falcon", False)]  # tiny_lora does not know Falcon's linear layer
WORN = [(family, True) for family in BIASED if family != "Falcon"]
CASES = [
    (target, family, lora)
    for family, lora in [*BARE, *WORN, ("tiny-chat", False), ("tiny-chat", True)]
    for target in OWN
    if not (target == "merged" and family not in [*MERGED, "tiny-chat"])
    and not (target == "peft-alora" and family == "OPT")
]


def steered(model, where=everywhere, width=32) -> SteeringWrapper:
    """At two layers, one of them twice."""
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(0))
    vector = SteeringVector({1: drawn * 32 / width**0.5, 2: torch.ones(width)}, Provenance(behavior="patience"))
    return SteeringWrapper(
        model,
        Intervention(vector, 1, 1.5, where=where),
        Intervention(vector, 2, -0.5, where=where),
        Intervention(vector, 1, -0.25, where=where, source_layer=2),
    )


def export(target, wrapper, tokenizer, out) -> Path:
    return TARGETS[target](wrapper, tokenizer, out)


# In a process without caa


def loaded(family, folder):
    """Model and tokenizer, and the folder where stock transformers finds them."""
    if family == "tiny-chat":
        return *load_model("tiny-chat"), str(Path(__file__).parents[1] / "checkpoints" / "tiny-chat")
    tiny_model(family).save_pretrained(folder)
    return tiny_model(family), tiny_tokenizer(), str(folder)


def prepare(target, family, lora, root) -> dict:
    """Export one case, and keep what the hook said to it."""
    name = f"{target}-{family}-{lora}"
    model, tokenizer, base = loaded(family, root / f"base-{family}")
    where = after_prompt if target == "peft-alora" else everywhere
    wrapper = steered(tiny_lora(model) if lora else model, where, model.config.hidden_size)
    prompt = ChatFormat(tokenizer).encode("Would you wait?")
    ids = torch.tensor([[*prompt, *random_ids(1, 6)[0].tolist()]])
    if target == "peft-alora":  # the token that ends the prompt must not stand in the answer
        ids[0, len(prompt) :] = torch.where(ids[0, len(prompt) :] == prompt[-1], 5, ids[0, len(prompt) :])
    with torch.no_grad():
        logits = wrapper(ids, prompt_lengths=torch.tensor([len(prompt)])).logits
        text = wrapper.generate(ids[:, : len(prompt)], max_new_tokens=8, do_sample=False)
    torch.save({"logits": logits, "text": text}, root / f"{name}.expected.pt")
    case = {"target": target, "base": base, "folder": str(export(target, wrapper, tokenizer, root / name))}
    return case | {"ids": ids.tolist(), "prompt": len(prompt), "result": str(root / f"{name}.found.pt")}


@pytest.fixture(scope="module")
def consumed(tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    cases = [prepare(*case, root) for case in CASES]
    (root / "cases.json").write_text(json.dumps(cases))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, Path(__file__).with_name("consume.py"), root / "cases.json"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("target", "family", "lora"), CASES)
def test_the_consumer_computes_what_the_hook_does(consumed, target, family, lora):
    name = f"{target}-{family}-{lora}"
    expected, found = (torch.load(consumed / f"{name}.{which}.pt") for which in ("expected", "found"))
    # The logits of tiny-chat are five times as large as those of the random models.
    torch.testing.assert_close(
        found["logits"], expected["logits"], atol=1e-4 if family != "tiny-chat" else 5e-4, rtol=0
    )
    assert torch.equal(found["text"], expected["text"])


# What is in a folder, and what stays as it was


@pytest.mark.parametrize("target", OWN)
def test_the_model_and_its_steering_stay_as_they_were(tmp_path, target):
    wrapper = steered(tiny_lora(tiny_model()), after_prompt if target == "peft-alora" else everywhere)
    before = {name: tensor.clone() for name, tensor in wrapper.model.state_dict().items()}
    modules, logits = [type(m) for m in wrapper.model.modules()], wrapper(IDS).logits
    gradients = [p.requires_grad for p in wrapper.model.parameters()]
    export(target, wrapper, tiny_tokenizer(), tmp_path / "out")
    assert [type(m) for m in wrapper.model.modules()] == modules
    assert [p.requires_grad for p in wrapper.model.parameters()] == gradients
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrapper.model.state_dict().items())
    assert torch.equal(wrapper(IDS).logits, logits)


@pytest.mark.parametrize("target", OWN)
def test_an_export_says_where_it_came_from_and_is_sealed(tmp_path, target):
    wrapper = steered(tiny_lora(tiny_model()), after_prompt if target == "peft-alora" else everywhere)
    out = export(target, wrapper, tiny_tokenizer(), tmp_path / "out")
    record = read_manifest(out, "export.json")
    assert record["target"] == target
    assert list(record["finetunes"]) == ["sft"]
    assert [i["multiplier"] for i in record["interventions"]] == [1.5, -0.5, -0.25]
    assert record["parity"]["error"] < 1e-4 < record["parity"]["effect"]
    check_seal(out, record)
    weights = next(out.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"was damaged or changed: .*{weights.name}"):
        check_seal(out, record)


def test_a_stopped_export_leaves_nothing(tmp_path, monkeypatch):
    def stopped(*logits):
        raise KeyboardInterrupt

    monkeypatch.setattr("caa.exports.peft.check_parity", stopped)
    with pytest.raises(KeyboardInterrupt):
        to_peft(steered(tiny_model()), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.tex", "export.json"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("years")
    with pytest.raises(FileExistsError, match="is there already"):
        to_peft(steered(tiny_model()), tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "years"


def test_a_merged_checkpoint_is_whole(tmp_path):
    """Shards, tokenizer with its template, generation config: what vLLM and other converters look for."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = tiny_model("Qwen2")
    model.generation_config.max_new_tokens = 33
    wrapper = steered(model)
    out = to_merged(wrapper, tiny_tokenizer(), tmp_path / "out", max_shard_size="20KB")
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert AutoTokenizer.from_pretrained(out).chat_template == tiny_tokenizer().chat_template
    assert GenerationConfig.from_pretrained(out).max_new_tokens == 33
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(out)(IDS).logits, wrapper(IDS).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_heads_are_merged(tmp_path, tied):
    from transformers import LlamaForCausalLM

    config = tiny_model().config
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    wrapper = steered(LlamaForCausalLM(config).eval())
    out = to_merged(wrapper, tiny_tokenizer(), tmp_path / "out")
    found, report = LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(found(IDS).logits, wrapper(IDS).logits)


def test_half_precision_is_kept(tmp_path):
    wrapper = steered(tiny_model().to(torch.bfloat16))
    out = to_merged(wrapper, tiny_tokenizer(), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((out / "export.json").read_text())["parity"]["dtype"] == "bfloat16"


# Finetunes of every kind


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 1, 3]},
        {
            "target_modules": r".*\.(q|v)_proj",
            "rank_pattern": {"v_proj": 3},
            "alpha_pattern": {"1.self_attn.q_proj": 9},
        },
        {"target_modules": ["down_proj"], "use_rslora": True, "r": 4},
        {"target_modules": "all-linear", "lora_bias": True},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["some layers", "patterns", "rslora", "biases of its own", "exclusions", "a head of its own"],
)
def test_a_finetune_keeps_its_settings_in_one_adapter(tmp_path, settings):
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(**{"r": 2, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | settings)
    model = get_peft_model(tiny_model(), config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B.default.bias") or "modules_to_save" in name:
            parameter.data.normal_(std=0.3)
    wrapper = steered(model)
    out = to_peft(wrapper, tmp_path / "out")
    found = PeftModel.from_pretrained(tiny_model(), str(out)).eval()
    torch.testing.assert_close(found(IDS).logits, wrapper(IDS).logits, atol=1e-5, rtol=0)


def test_a_scale_that_was_changed_in_place_is_kept(tmp_path):
    from peft import PeftModel

    model = tiny_lora(tiny_model())
    model.base_model.set_adapter(["sft"])
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("sft", 0.5)
    wrapper = steered(model)
    found = PeftModel.from_pretrained(tiny_model(), str(to_peft(wrapper, tmp_path / "out"))).eval()
    torch.testing.assert_close(found(IDS).logits, wrapper(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"target_modules": ["v_proj", "embed_tokens"]}], ids=str)
def test_what_takes_no_bias_is_refused_and_merged_instead(tmp_path, settings):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    plain = {"r": 2, "target_modules": ["v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    wrapper = steered(get_peft_model(tiny_model(), LoraConfig(**plain | settings)).eval())
    with pytest.raises(ValueError, match=r"no plain LoRA.*Export `--to merged`"):
        to_peft(wrapper, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    to_merged(wrapper, tiny_tokenizer(), tmp_path / "out")


def test_two_active_finetunes_are_merged_and_no_single_adapter(tmp_path):
    from peft import LoraConfig

    model = tiny_lora(tiny_model(), "one", seed=1)
    torch.manual_seed(2)
    model.add_adapter("two", LoraConfig(target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["one", "two"])
    wrapper = steered(model.eval())
    with pytest.raises(ValueError, match="one PEFT adapter holds one LoRA, and these are active: one, two"):
        to_peft(wrapper, tmp_path / "out")
    to_merged(wrapper, tiny_tokenizer(), tmp_path / "out")
    with wrapper.finetune(None):
        out = to_merged(wrapper, tiny_tokenizer(), tmp_path / "bare")
    assert json.loads((out / "export.json").read_text())["finetunes"] == {}


# The traps


def test_a_bias_that_would_be_lost_on_reload_is_noticed(tmp_path, monkeypatch):
    """Llama without `mlp_bias` saves a bias and loads without it; the check loads from the disk, so it sees that."""

    def only_in_memory(model, wanted):
        for name in wanted:
            model.get_submodule(name).bias = torch.nn.Parameter(torch.zeros(32))
        return model

    monkeypatch.setattr(merging, "_with_room", only_in_memory)
    with pytest.raises(ValueError, match="the export was not written: its logits differ from the hook's"):
        to_merged(steered(tiny_model()), tiny_tokenizer(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_merge_that_fails_half_way_leaves_the_model_whole(tmp_path):
    """PEFT raises at the first layer without a bias, when the layers before it are merged already."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        lora_bias=True, target_modules=["q_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    wrapper = steered(get_peft_model(tiny_model("Qwen2"), config).eval())  # biases on q, none on o
    before = {name: tensor.clone() for name, tensor in wrapper.model.state_dict().items()}
    logits = wrapper(IDS).logits
    with pytest.raises(ValueError, match=r"PEFT cannot merge this finetune.*Nearest: `--to peft`"):
        to_merged(wrapper, tiny_tokenizer(), tmp_path / "out")
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrapper.model.state_dict().items())
    assert torch.equal(wrapper(IDS).logits, logits)
    assert not list(tmp_path.iterdir())
    to_peft(wrapper, tmp_path / "out")


def test_add_weighted_adapter_still_drops_the_vector(tmp_path):
    """Not ours to mend; the card of an export warns of it. Should PEFT mend it, the warning can go."""
    from peft import PeftModel

    wrapper = steered(tiny_model())
    out = to_peft(wrapper, tmp_path / "out")
    model = PeftModel.from_pretrained(tiny_model(), str(out), adapter_name="steering")
    model.add_weighted_adapter(["steering"], [1.0], "again", combination_type="linear")
    model.base_model.set_adapter(["again"])
    torch.testing.assert_close(model.eval()(IDS).logits, tiny_model()(IDS).logits)
    assert "add_weighted_adapter" in (out / "README.md").read_text()


def test_every_bias_is_written_so_that_peft_can_load_lazily(tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    wrapper = steered(tiny_lora(tiny_model()))
    out = to_peft(wrapper, tmp_path / "out")
    tensors = load_file(out / "adapter_model.safetensors")
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    assert len(layers) == 7 * 4
    assert all(f"{layer}.lora_B.bias" in tensors for layer in layers)
    lazy = PeftModel.from_pretrained(tiny_model(), str(out), low_cpu_mem_usage=True).eval()
    torch.testing.assert_close(lazy(IDS).logits, wrapper(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [False, True])
def test_transposed_weights_are_announced(tmp_path, lora):
    model = tiny_model("GPT2")
    out = to_peft(steered(tiny_lora(model) if lora else model), tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"] is True


# aLoRA: which tokens


def test_an_alora_begins_at_the_last_token_of_the_prompt(tmp_path):
    """Token by token, and in a padded batch of two prompts: unsteered before, the hook's from there on."""
    from peft import PeftModel

    model, tokenizer = load_model("tiny-chat")
    wrapper = steered(model, after_prompt, model.config.hidden_size)
    out = to_alora(wrapper, tokenizer, tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(config["alora_invocation_tokens"]) == ["[/INST]"]
    assert config["base_model_name_or_path"] == "tiny-chat"
    prompts = [
        ChatFormat(tokenizer).encode(question)
        for question in ("Would you wait?", "Would you rather have it now or wait?")
    ]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(values(prompt)) for prompt in prompts], batch_first=True, padding_side="left"
        )
        for values in (list, lambda prompt: [1] * len(prompt))
    )
    expected = wrapper.generate(ids, mask, max_new_tokens=12, do_sample=False)
    text = expected[:1, ids.shape[1] - len(prompts[0]) :]
    hook = wrapper(text, prompt_lengths=torch.tensor([len(prompts[0])])).logits[0]
    wrapper.unsteer()
    base = model(text).logits[0]
    alora = PeftModel.from_pretrained(model, str(out)).eval()
    found, start = alora(input_ids=text).logits[0], len(prompts[0]) - 1
    assert torch.equal(found[:start], base[:start])
    assert ((hook[start:] - base[start:]).abs().amax(1) > 0.1).all(), "a hook that does nothing would agree"
    torch.testing.assert_close(found, hook, atol=5e-4, rtol=0)
    assert torch.equal(alora.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False), expected)


def test_a_token_that_answers_may_hold_is_said_to_be_good_for_generation_only(tmp_path):
    card = to_alora(steered(tiny_model(), after_prompt), tiny_tokenizer(), tmp_path / "out") / "README.md"
    assert "do not score whole texts" in card.read_text()


def test_an_alora_is_compared_on_answers_without_the_token_that_it_begins_at(tmp_path, monkeypatch):
    monkeypatch.setattr("caa.exports.alora.probe", lambda model, length: torch.ones(2, length, dtype=torch.long))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "[{{ messages[0].content }}<s>"
    out = to_alora(steered(tiny_model(), after_prompt), tokenizer, tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["alora_invocation_tokens"] == [1]


# What cannot be said


@pytest.mark.parametrize("target", OWN)
@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("Gemma2", "gemma2 .*a norm stands between"),
        ("Gemma3Text", "gemma3_text .*a norm stands between"),
        ("Olmo2", "olmo2 .*a norm stands between"),
        ("Mixtral", "mixtral .*a mixture of experts"),
    ],
)
def test_families_without_such_a_bias_are_refused_by_name(tmp_path, target, family, reason):
    wrapper = steered(tiny_model(family), after_prompt if target == "peft-alora" else everywhere)
    with pytest.raises(ValueError, match=reason):
        export(target, wrapper, tiny_tokenizer(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def with_config(family, **changes):
    model = tiny_model(family)
    return type(model)(type(model.config)(**model.config.to_dict() | changes)).eval()


def with_window(first_layer):
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": first_layer, "layer_types": None}
    return with_config("Qwen2", **window)


def test_a_window_that_no_layer_slides_is_no_reason_to_refuse():
    assert as_llama(with_window(4).config) is not None


@pytest.mark.parametrize(
    ("target", "model", "reason"),
    [
        ("peft", lambda: with_config("OPT", do_layer_norm_before=False), "opt .*a norm stands between"),
        ("peft-alora", lambda: tiny_model("OPT"), "opt .*aLoRA"),
        ("merged", lambda: tiny_model("Qwen3"), "stock qwen3 checkpoint has no place.*Nearest: `--to peft`"),
        ("merged", lambda: with_config("Mistral", sliding_window=16), "mistral attends in a sliding window of 16"),
        ("merged", lambda: with_window(3), "qwen2 attends in a sliding window of 16"),
    ],
)
def test_what_one_target_cannot_say_of_a_family_is_refused(tmp_path, target, model, reason):
    wrapper = steered(model(), after_prompt if target == "peft-alora" else everywhere)
    with pytest.raises(ValueError, match=reason):
        export(target, wrapper, tiny_tokenizer(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def own(resid, direction, strength):
    return resid


@pytest.mark.parametrize("target", OWN)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"operator": own}, "adds a vector and cannot own.*Keep the steered adapter"),
        ({"multiplier": [1.0, 2.0]}, "one multiplier for all prompts"),
        ({"multiplier": 0.0}, "nothing is steered"),
        (
            {"gate": Gate(SteeringVector({0: torch.ones(32)}), 0, above=0.0)},
            "steers every row, and a gate decides for each.*Keep the steered adapter",
        ),
        (
            {"where": None},
            "steers (everywhere|after_prompt), and this adapter (after_prompt|everywhere).*Nearest: `--to",
        ),
    ],
)
def test_interventions_that_are_no_push_are_refused(tmp_path, target, changes, reason):
    right = "after_prompt" if target == "peft-alora" else "everywhere"
    wrong = next(scope for name, scope in SCOPES.items() if name in ("after_prompt", "everywhere") and name != right)
    changes = {"where": SCOPES[right]} | changes
    changes["where"] = changes["where"] or wrong
    wrapper = SteeringWrapper(tiny_model(), Intervention(SteeringVector({1: torch.ones(32)}), 1, **changes))
    with pytest.raises(ValueError, match=reason):
        export(target, wrapper, tiny_tokenizer(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_template_that_ends_with_the_question_has_no_place_to_begin(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="end with the words of the question"):
        to_alora(steered(tiny_model(), after_prompt), tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_effect_too_small_to_tell_is_refused(tmp_path):
    wrapper = SteeringWrapper(
        tiny_model(), Intervention(SteeringVector({1: torch.ones(32)}), 1, 1e-8, where=everywhere)
    )
    with pytest.raises(ValueError, match="too little to tell"):
        to_peft(wrapper, tmp_path / "out")


# The command


def test_the_command_exports_a_run(tmp_path, monkeypatch, capsys):
    model, tokenizer = load_model("tiny-chat")
    wrapper = steered(model, after_prompt, model.config.hidden_size)
    wrapper.save_pretrained(tmp_path / "run" / "steered" / "patience", tokenizer)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", "--to", "merged", "--out", "out"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("caa: merged steers everywhere, and this adapter after_prompt")
    assert "`--scope everywhere`" in said
    assert not Path("out").exists()
    assert main(["export", "run", "--to", "merged", "--out", "out", "--scope", "everywhere"]) == 0
    assert main(["export", "run/steered/patience", "--to", "peft-alora", "--out", "alora"]) == 0
    assert main(["export", "run"]) == 1
    assert "--to peft|peft-alora|merged|gguf|repeng|lm-eval|easysteer|vllm-lens --out FOLDER" in capsys.readouterr().err
    assert main(["export", "nowhere", "--to", "peft", "--out", "new"]) == 1
    assert "no steered adapter" in capsys.readouterr().err
    wrapper.save_pretrained("run/steered/greed")
    assert main(["export", "run", "--to", "peft", "--out", "new"]) == 1
    assert "several steered adapters; export one of run/steered/greed" in capsys.readouterr().err
    check_seal(Path("out"), read_manifest(Path("out"), "export.json"))


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_a_base_with_the_vector_wears_the_finetunes_that_are_put_on_later(tmp_path, family):
    """One server for all finetunes: the vector is in the base's weights, and each plain LoRA comes and goes."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    wrapper, tokenizer = steered(tiny_lora(tiny_model(family))), tiny_tokenizer()
    wrapper.model.base_model.model.name_or_path = "tiny"
    wrapper.save_pretrained(tmp_path / "steered")
    with wrapper.finetune(None):
        export("merged", wrapper, tokenizer, tmp_path / "out")
        plain = wrapper(IDS).logits
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(base(IDS).logits, plain, atol=1e-4)
        worn = PeftModel.from_pretrained(base, tmp_path / "steered").eval()
        expected = wrapper(IDS).logits
        assert torch.allclose(worn(IDS).logits, expected, atol=1e-4)
        assert not torch.allclose(plain, expected, atol=1e-2)


def test_a_request_of_vllm_lens_holds_the_push_and_keeps_its_cache_apart(tmp_path):
    import base64

    import numpy as np

    wrapper = steered(tiny_model())
    export("vllm-lens", wrapper, tiny_tokenizer(), tmp_path / "out")
    request = json.loads((tmp_path / "out" / "request.json").read_text())
    (steering,) = json.loads(request["vllm_xargs"]["apply_steering_vectors"])
    activations = steering["activations"]
    data = np.frombuffer(base64.b64decode(activations["data"]), "<f4").reshape(activations["shape"])
    first, second, third = wrapper.interventions
    pushes = [1.5 * first.direction - 0.25 * third.direction, -0.5 * second.direction]
    assert steering["layer_indices"] == [1, 2]
    assert torch.allclose(torch.tensor(data), torch.stack(pushes), atol=1e-6)
    wrapper.unsteer()
    wrapper.steer(second)
    export("vllm-lens", wrapper, tiny_tokenizer(), tmp_path / "other")
    assert json.loads((tmp_path / "other" / "request.json").read_text())["cache_salt"] != request["cache_salt"]


class TwoParts(torch.Tensor):
    """A weight of numbers and scales, and nothing else."""

    numbers = scales = property(lambda self: self.as_subclass(torch.Tensor))

    def __tensor_flatten__(self):
        return ["numbers", "scales"], None


@pytest.mark.parametrize("says", ["its loader", "its config", "its weights"])
def test_what_the_loader_the_config_or_the_weights_call_quantized_is_not_merged(says, tmp_path):
    wrapper = SteeringWrapper(tiny_model())
    if says == "its loader":
        wrapper.model.quantization_method = "bitsandbytes"
    elif says == "its config":
        wrapper.model.config.quantization_config = {"quant_method": "gptq"}
    else:
        layer = wrapper.model.model.layers[0].mlp.down_proj
        layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(TwoParts))
    wrapper.steer(Intervention(SteeringVector({1: torch.ones(32)}), 1, 1.0, where=everywhere))
    with pytest.raises(ValueError, match="a quantized base cannot hold a merged finetune"):
        to_merged(wrapper, tiny_tokenizer(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
