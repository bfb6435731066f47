"""Steered models for other tools: what the tool adds is what the hook adds, and what it cannot say is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, random_ids, tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.exports.targets import TARGETS
from caa.exports.tools import hookpoint
from caa.models.blocks import decoder_blocks
from caa.models.names import model_name
from caa.steering.scopes import everywhere
from caa.vectors.formats.content import Content
from caa.vectors.formats.gguf import read_gguf
from caa.vectors.vector import Provenance

IDS = random_ids(2, 7)
TOOLS = ("gguf", "repeng", "lm-eval", "easysteer")
CONSUMERS = os.environ.get("CAA_CONSUMERS_PYTHON", sys.executable)
"""A Python that has lm_eval, repeng or xllamacpp; their pins are not this project's, so they live apart."""


def steered(model, layers=(1, 2), where=everywhere) -> SteeringWrapper:
    generator = torch.Generator().manual_seed(0)
    v = SteeringVector({i: torch.randn(32, generator=generator) for i in range(4)}, Provenance(behavior="patience"))
    first, second = layers
    return SteeringWrapper(
        model,
        Intervention(v, first, -1.5, where=where),
        Intervention(v, first, 0.5, where=where, source_layer=3),
        Intervention(v, second, 2.0, where=where),
        Intervention(v, second, 0.0),
    )


def export(target, wrapper, out) -> Path:
    return TARGETS[target](wrapper, None, out)


def logits_with(modules, ids, model):
    """By hand: module -> what is added to its output, [row, position, d_model] or [d_model]."""

    def adding(push):
        return lambda module, args, output: (
            output + push if isinstance(output, torch.Tensor) else (output[0] + push, *output[1:])
        )

    handles = [module.register_forward_hook(adding(push)) for module, push in modules.items()]
    try:
        return model(ids).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_lm_eval_finds_the_blocks_and_adds_what_the_hook_adds(family, lora, tmp_path):
    """As hf_steered.py does it: every name looked up in `model.base_model`, the coefficient times the vector added."""
    model = tiny_lora(tiny_model(family)) if lora else tiny_model(family)
    wrapper = steered(model)
    expected, plain = wrapper(IDS).logits, SteeringWrapper(model).model
    out = export("lm-eval", wrapper, tmp_path / "out")
    wrapper.unsteer()
    config = torch.load(out / "steer.pt", weights_only=True)
    named = dict(model.base_model.named_modules())
    modules = {named[name]: entry["steering_vector"] * entry["steering_coefficient"] for name, entry in config.items()}
    assert list(modules) == [decoder_blocks(model)[1], decoder_blocks(model)[2]]
    assert (plain(IDS).logits - expected).abs().max() > 0.1, "the steering does nothing here"
    torch.testing.assert_close(logits_with(modules, IDS, model), expected, atol=1e-4, rtol=0)
    assert (out / "lora" / "adapter_model.safetensors").exists() == lora


@pytest.mark.parametrize("target", ["gguf", "repeng"])
def test_a_control_vector_on_block_n_is_the_hook_on_layer_n(target, tmp_path):
    model = tiny_model()
    wrapper = steered(model)
    expected = wrapper(IDS).logits
    vector = read_gguf(export(target, wrapper, tmp_path / "out") / "control-vector.gguf")
    wrapper.unsteer()
    modules = {model.model.layers[layer]: push for layer, push in vector.directions.items()}
    torch.testing.assert_close(logits_with(modules, IDS, model), expected, atol=1e-4, rtol=0)
    assert vector.source.history == (
        "patience x -1.5, layer 1, everywhere",
        "patience x +0.5, layer 1, everywhere, source layer 3",
        "patience x +2, layer 2, everywhere",
    )


def chosen(clause, prompt: int, length: int) -> torch.Tensor:
    """EasySteer's where-clause (api.py, SelectSpec): positions, if given, within the phases; -1 ends the prompt."""
    phases = torch.tensor(
        [("prompt" if place < prompt else "generation") in clause["phases"] for place in range(length)]
    )
    if clause.get("positions") is None:
        return phases
    return phases & torch.tensor([place - prompt in clause["positions"] for place in range(length)])


@pytest.mark.parametrize("scope", ["after_prompt", "everywhere", "both"])
def test_an_easysteer_spec_chooses_the_tokens_that_the_hook_chooses(scope, tmp_path):
    model, prompt = tiny_model(), 3
    wrapper = steered(model, where=everywhere) if scope != "after_prompt" else SteeringWrapper(model)
    if scope != "everywhere":
        ones = SteeringVector({0: torch.ones(32)})
        wrapper.steer(Intervention(ones, 0, 2.0), Intervention(ones, 1, -3.0, source_layer=0))
    expected = wrapper(IDS, prompt_lengths=torch.tensor([prompt, prompt])).logits
    out = export("easysteer", wrapper, tmp_path / "out")
    wrapper.unsteer()
    spec = json.loads((out / "spec.json").read_text())
    pushes: dict = {}
    for vector in spec["vectors"]:
        assert set(vector) == {"source", "algorithm", "scale", "layers", "apply"}
        where, directions = chosen(vector["apply"], prompt, IDS.shape[1]), read_gguf(out / vector["source"]).directions
        for layer in vector["layers"]:
            push = vector["scale"] * where[:, None] * directions[layer]
            pushes[model.model.layers[layer]] = pushes.get(model.model.layers[layer], 0) + push
    assert spec["conflict"] == "sequential"
    torch.testing.assert_close(logits_with(pushes, IDS, model), expected, atol=1e-4, rtol=0)


def test_the_lora_beside_it_is_plain_peft(tmp_path):
    from peft import PeftModel

    wrapper = steered(tiny_lora(tiny_model()))
    out = export("gguf", wrapper, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "control-vector.gguf", "export.json", "lora"]
    assert "--lora lora.gguf --control-vector control-vector.gguf" in (out / "README.md").read_text()
    wrapper.unsteer()
    plain = PeftModel.from_pretrained(tiny_model(), str(out / "lora")).eval()
    assert torch.equal(plain(IDS).logits, wrapper.model(IDS).logits)


def wrapping(*interventions) -> SteeringWrapper:
    return SteeringWrapper(tiny_model(), *interventions)


V = SteeringVector({0: torch.ones(32), 2: torch.ones(32)}, Provenance(behavior="patience"))


@pytest.mark.parametrize(
    ("target", "intervention", "says"),
    [
        ("gguf", Intervention(V, 0, 1.0, where=everywhere), "llama.cpp cannot steer layer 0"),
        *(
            (
                target,
                Intervention(V, 2, 1.0),
                r"steers everywhere, and this adapter after_prompt \(patience x \+1, layer 2\)\. Nearest: `--scope",
            )
            for target in ("gguf", "repeng", "lm-eval")
        ),
        *((t, Intervention(V, 2, [1.0, 2.0], where=everywhere), "one multiplier for all prompts") for t in TOOLS),
        *(
            (
                t,
                Intervention(V, 2, 1.0, lambda r, d, s: r, everywhere),
                r"adds a vector and cannot <lambda> \(.*Keep the steered adapter",
            )
            for t in TOOLS
        ),
        *(
            (t, Intervention(V, 2, 1.0, where=lambda p, last: p > 1), r"and this adapter <lambda> \(.*Nearest")
            for t in TOOLS
        ),
        *((t, Intervention(V, 2, 0.0), "nothing is steered") for t in TOOLS),
    ],
)
def test_what_a_target_cannot_say_is_refused_before_anything_is_written(target, intervention, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        export(target, wrapping(intervention), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_repeng_looks_for_blocks_in_two_places_only(tmp_path):
    export("repeng", steered(tiny_lora(tiny_model("GPT2"))), tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"its blocks are 'gpt_neox\.layers', not 'model\.layers' or 'transformer\.h'"):
        export("repeng", steered(tiny_model("GPTNeoX")), tmp_path / "neox")


@pytest.mark.parametrize("target", TOOLS)
def test_the_lora_beside_it_names_the_base_and_no_path_and_its_readme_says_each_scope_once(target, tmp_path):
    wrapper = steered(tiny_lora(tiny_model()))
    wrapper.model.peft_config["sft"].base_model_name_or_path = "/home/somebody/base"
    out = export(target, wrapper, tmp_path / "out")
    config = json.loads((out / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model_name(wrapper.model) != "/home/somebody/base"
    assert "everywhere, everywhere" not in (out / "README.md").read_text()


@pytest.mark.parametrize("target", TOOLS)
def test_an_export_is_whole_or_not_there_and_replaces_nothing(target, tmp_path, monkeypatch):
    out = export(target, steered(tiny_model()), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match="is there already"):
        export(target, steered(tiny_model(), (2, 3)), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.setattr("caa.exports.tools.read_gguf", lambda path: V)
    monkeypatch.setattr("caa.exports.tools.read_torch", lambda path: Content("", V.directions))
    with pytest.raises(RuntimeError, match="does not hold what the hook adds"):
        export(target, steered(tiny_model()), tmp_path / "other")
    assert list(tmp_path.iterdir()) == [out]


def consumed(script: str, *arguments: object) -> torch.Tensor:
    """The logits that a consumer leaves in the last argument."""
    run_consumer(script, *arguments)
    return torch.load(str(arguments[-1]))


def run_consumer(script: str, *arguments: object) -> None:
    """In a process of its own without caa."""
    path = Path(__file__).parent / "consumers" / script
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [CONSUMERS, path, *map(str, arguments)], check=False, capture_output=True, text=True, env=clean
    )
    assert done.returncode == 0, done.stderr[-3000:]


def needs(package: str) -> None:
    found = subprocess.run(
        [CONSUMERS, "-c", f"import importlib.util as u; assert u.find_spec('{package}')"], check=False
    )
    if found.returncode:
        pytest.skip(f"{package} is not installed; point CAA_CONSUMERS_PYTHON to a Python that has it")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("target", "package", "script", "file"),
    [
        ("lm-eval", "lm_eval", "lm_eval_logits.py", "steer.pt"),
        ("repeng", "repeng", "repeng_logits.py", "control-vector.gguf"),
        ("gguf", "xllamacpp", "llama_cpp_logits.py", "control-vector.gguf"),
    ],
)
def test_the_consumer_itself_gives_the_logits_of_the_hook(target, package, script, file, lora, tmp_path):
    needs(package)
    if lora and target == "gguf":
        pytest.skip("llama.cpp reads a LoRA after its own converter, which is no part of any package")
    model, ids = tiny_model(), IDS[:1]
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    wrapper = steered(tiny_lora(model) if lora else model)
    out = export(target, wrapper, tmp_path / "out")
    torch.save(ids, tmp_path / "ids.pt")
    adapter = out / "lora" if lora else ""
    found = consumed(script, tmp_path / "base", adapter, out / file, tmp_path / "ids.pt", tmp_path / "logits.pt")
    expected = wrapper(ids).logits[..., : found.shape[-1]]  # lm_eval cuts the vocabulary to the tokenizer's for a LoRA
    wrapper.unsteer()
    assert (wrapper(ids).logits[..., : found.shape[-1]] - expected).abs().max() > 0.1, "the steering does nothing here"
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=0)


def test_a_hookpoint_is_the_blocks_name_with_and_without_peft():
    assert hookpoint(tiny_model(), 2) == "layers.2"
    assert hookpoint(tiny_lora(tiny_model()), 2) == "model.model.layers.2"
    assert hookpoint(tiny_model("OPT"), 2) == "decoder.layers.2"
