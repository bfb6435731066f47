"""A steered model in, a folder that another tool steers with out: its vector file, the LoRA, the command to run it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caa.callables import name_of
from caa.exports.folder import describe_export, new_export
from caa.exports.interventions import check_interventions, push_of
from caa.hashing import tensors_digest
from caa.models.adapter_state import active_adapters
from caa.models.adapters import save_adapter
from caa.models.blocks import decoder_blocks, text_config
from caa.models.names import model_name
from caa.steering.scopes import Scope, after_prompt, everywhere
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.formats.gguf import read_gguf, write_gguf
from caa.vectors.formats.torch_files import read_torch, write_lm_eval
from caa.vectors.vector import SteeringVector

VECTOR, LORA = "control-vector.gguf", "lora"
_OTHERWISE = "Nearest: `--scope everywhere` steers the prompt too, another model"
_INSTEAD = f"{_OTHERWISE}; `--to easysteer` can begin at the answer"


def to_gguf(wrapper: SteeringWrapper, out: str | Path) -> Path:
    """llama.cpp: a GGUF control vector, the multiplier in it. Everywhere only, and not at layer 0."""
    push = push_of(check_interventions(wrapper.interventions, [everywhere], "llama.cpp", _INSTEAD))
    if 0 in push.layers:
        raise ValueError(
            "llama.cpp cannot steer layer 0: it has no place for the output of its first block. Steer a later layer, "
            "or export to repeng, easysteer or lm-eval"
        )
    lora = f" --lora {LORA}.gguf" if active_adapters(wrapper.model) else ""
    convert = f"python convert_lora_to_gguf.py --base BASE --outfile {LORA}.gguf {LORA}\n" if lora else ""
    command = f"{convert}llama-server --model BASE.gguf{lora} --control-vector {VECTOR}"
    with _export(out, "gguf", wrapper, command) as folder:
        _write_gguf(push, folder / VECTOR, wrapper.model)
    return Path(out)


def to_repeng(wrapper: SteeringWrapper, out: str | Path) -> Path:
    """repeng: the same file, for `ControlVector.import_gguf`. Everywhere only; any layer."""
    push = push_of(check_interventions(wrapper.interventions, [everywhere], "repeng", _INSTEAD))
    _check_repeng(wrapper.model)
    lora = f'model = PeftModel.from_pretrained(model, "{LORA}").get_base_model()\n'
    command = (
        f"{lora if active_adapters(wrapper.model) else ''}model = ControlModel(model, {push.layers})\n"
        f'model.set_control(ControlVector.import_gguf("{VECTOR}"))'
    )
    with _export(out, "repeng", wrapper, command) as folder:
        _write_gguf(push, folder / VECTOR, wrapper.model)
    return Path(out)


def to_lm_eval(wrapper: SteeringWrapper, out: str | Path) -> Path:
    """lm-evaluation-harness: a file for its `steered` model, with this model's names of its blocks. Everywhere only."""
    push = push_of(check_interventions(wrapper.interventions, [everywhere], "lm-evaluation-harness", _INSTEAD))
    pushes = {hookpoint(wrapper.model, layer): push.at(layer) for layer in push.layers}
    lora = f",peft={LORA}" if active_adapters(wrapper.model) else ""
    command = f"lm_eval --model steered --model_args pretrained=BASE{lora},steer_path=steer.pt --tasks ..."
    with _export(out, "lm-eval", wrapper, command) as folder:
        _check_written(read_torch(write_lm_eval(pushes, folder / "steer.pt")).directions, push)
    return Path(out)


def to_easysteer(wrapper: SteeringWrapper, out: str | Path) -> Path:
    """EasySteer (vLLM): a GGUF file for each scope and a steering spec. Everywhere, or after the prompt; any layer."""
    interventions = check_interventions(wrapper.interventions, tuple(_EASYSTEER), "EasySteer", _OTHERWISE)
    groups = {scope: [i for i in interventions if i.where is scope] for scope in _EASYSTEER}
    pushes = {name_of(scope): push_of(group) for scope, group in groups.items() if group}
    clauses = [
        (name, clause) for scope, group in _EASYSTEER.items() for clause in group if (name := name_of(scope)) in pushes
    ]
    vectors = [_easysteer(name, pushes[name].layers, clause) for name, clause in clauses]
    spec = {"vectors": vectors, "conflict": "sequential"}
    lora = f" --enable-lora --lora-modules {LORA}={LORA}" if active_adapters(wrapper.model) else ""
    command = f"vllm serve BASE{lora} --enable-steer-vector --enforce-eager --steering-config spec.json"
    with _export(out, "easysteer", wrapper, command) as folder:
        for name, push in pushes.items():
            _write_gguf(push, folder / f"{name}.gguf", wrapper.model)
        (folder / "spec.json").write_text(json.dumps(spec, indent=2), encoding="utf-8")
    return Path(out)


def to_vllm_lens(wrapper: SteeringWrapper, out: str | Path) -> Path:
    """vllm-lens: what a request to a stock vLLM with this plugin says to be steered. Everywhere only; any layer."""
    push = push_of(check_interventions(wrapper.interventions, [everywhere], "vllm-lens", _INSTEAD))
    stacked = torch.stack([push.at(layer) for layer in push.layers])
    data = stacked.numpy().astype("<f4").tobytes()
    activations = {"data": base64.b64encode(data).decode(), "dtype": "float32", "original_dtype": "torch.float32"}
    steering = {
        "activations": activations | {"shape": list(stacked.shape)},
        "layer_indices": push.layers,
        "scale": 1.0,
        "norm_match": False,
        "position_indices": None,
    }
    lora = f" --enable-lora --lora-modules {LORA}={LORA}" if active_adapters(wrapper.model) else ""
    command = f"vllm serve BASE --enforce-eager{lora}    # with vllm-lens; each request holds what is in request.json"
    # A cache of prompts that another steering has read would serve this one too: the salt keeps them apart.
    xargs = {"apply_steering_vectors": json.dumps([steering])}
    request = {"cache_salt": tensors_digest([("push", stacked)]), "vllm_xargs": xargs}
    with _export(out, "vllm-lens", wrapper, command) as folder:
        (folder / "request.json").write_text(json.dumps(request, indent=2), encoding="utf-8")
    return Path(out)


def hookpoint(model: Any, layer: int) -> str:
    """What lm-evaluation-harness calls a block: its name in `model.base_model`, another one when PEFT is around it."""
    block = decoder_blocks(model)[layer]
    return next(str(name) for name, module in model.base_model.named_modules() if module is block)


def _check_repeng(model: Any) -> None:
    """repeng looks for the blocks in two places (control.py, model_layer_list)."""
    blocks = decoder_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks).removeprefix("base_model.model.")
    if path not in ("model.layers", "transformer.h"):
        raise ValueError(
            f"repeng cannot steer this model: its blocks are {path!r}, not 'model.layers' or 'transformer.h'"
        )


# What an EasySteer clause can say of the tokens. `positions` counts from the prompt's end and would leave out every
# generated token, so CAA's scope is two clauses of one vector.
_EASYSTEER: dict[Scope, list[dict[str, Any]]] = {
    everywhere: [{"phases": ["prompt", "generation"]}],
    after_prompt: [{"phases": ["prompt"], "positions": [-1]}, {"phases": ["generation"]}],
}


def _easysteer(name: str, layers: list[int], clause: dict[str, Any]) -> dict[str, Any]:
    """The path is relative, so that the folder can move: the server is started in it."""
    return {"source": f"{name}.gguf", "algorithm": "direct", "scale": 1.0, "layers": layers, "apply": clause}


def _write_gguf(push: SteeringVector, path: Path, model: Any) -> None:
    _check_written(read_gguf(write_gguf(push, path, text_config(model).model_type)).directions, push)


def _check_written(written: Mapping[int, Tensor], push: SteeringVector) -> None:
    """What another tool will read is, to the bit, what the hook adds."""
    if list(written) != push.layers or not all(torch.equal(written[layer], push.at(layer)) for layer in push.layers):
        raise RuntimeError("the file that was written does not hold what the hook adds; nothing was exported")


@contextmanager
def _export(out: str | Path, target: str, wrapper: SteeringWrapper, command: str) -> Iterator[Path]:
    """A new folder with the plain LoRA, if one is worn, and a model card; it appears when all is in it."""
    interventions = [i for i in wrapper.interventions if i.strengths.any()]
    with new_export(out) as folder:
        if active_adapters(wrapper.model):
            _save_lora(folder / LORA, wrapper.model)
        yield folder
        use = _USE.format(base=model_name(wrapper.model), command=command)
        describe_export(folder, target, wrapper.model, interventions, None, use)


def _save_lora(folder: Path, model: Any) -> None:
    active = active_adapters(model)
    if len(active) > 1:
        raise ValueError(f"one LoRA can be exported; these are active: {active}. Choose with `finetune(name)`")
    folder.mkdir()
    save_adapter(model, active[0], folder)


_USE = """\
The multipliers are in the vectors. BASE is `{base}`. Run in this folder:

```
{command}
```
"""
