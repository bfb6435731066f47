"""A steered model in, one plain PEFT adapter out: the LoRA, and the vector as the bias of a LoRA layer of rank 1."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caa.exports.biases import base_model, biases
from caa.exports.folder import describe_export, new_export
from caa.exports.interventions import check_interventions
from caa.exports.parity import Parity, check_parity, probe
from caa.models.adapter_state import active_adapters
from caa.models.adapters import make_portable
from caa.models.copies import plain_shell, shell
from caa.steering.scopes import everywhere
from caa.steering.wrapper import SteeringWrapper

USE = """```python
from peft import PeftModel

model = PeftModel.from_pretrained(base, "this folder")  # base: as AutoModelForCausalLM loads it
```

It steers every token, those of the prompt too. PEFT's `add_weighted_adapter` drops the bias and with it the vector;
`merge_and_unload` needs a base with biases. vLLM refuses adapters with `lora_bias`: for it export `--to merged`."""
_INSTEAD = (
    "Nearest: `--to peft-alora` starts after the prompt; `--scope everywhere` steers the prompt too, another model"
)


def to_peft(wrapper: SteeringWrapper, out: str | Path) -> Path:
    """Write what the wrapper wears and is steered by as a folder that `PeftModel.from_pretrained` loads.

    ValueError, before anything is written, for what a bias cannot do: other scopes than everywhere, other operators
    than add, families with a norm or experts behind the last linear layer, and finetunes that are no plain LoRA.
    """
    interventions = check_interventions(wrapper.interventions, [everywhere], "peft", _INSTEAD)
    wanted = biases(wrapper.model, interventions)
    config, tensors = _combined(wrapper.model, _active(wrapper.model), wanted)
    with new_export(out) as scratch, torch.no_grad():
        write_adapter(scratch, wrapper.model, config, tensors)
        parity = _compare(wrapper, scratch)
        describe_export(scratch, "peft", wrapper.model, interventions, parity, USE)
    return Path(out)


def _active(model: Any) -> str:
    active = active_adapters(model)
    if len(active) > 1:
        raise ValueError(
            f"one PEFT adapter holds one LoRA, and these are active: {', '.join(active)}. Choose one with "
            "`finetune(name)`, or export `--to merged`, which takes them all"
        )
    return active[0] if active else ""


def _combined(model: Any, adapter: str, wanted: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The config and tensors of the adapter, "" for none, with the biases added."""
    from peft import LoraConfig, get_peft_model_state_dict

    if not adapter:
        return bias_config(model, wanted), bias_tensors(model, wanted)
    layers = _plain_layers(model, adapter)
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    tensors |= bias_tensors(model, {name: push for name, push in wanted.items() if name not in layers})
    for name, layer in layers.items():
        key = f"base_model.model.{name}.lora_B.bias"
        push = wanted[name] / layer.scaling[adapter] if name in wanted else torch.zeros(layer.out_features)
        # PEFT with low_cpu_mem_usage fails on a bias that is missing, so those that are zero are written too.
        tensors[key] = (tensors[key] + push.to(tensors[key].device)) if key in tensors else push
    config: LoraConfig = copy.deepcopy(model.peft_config[adapter])
    _spell_out(config, adapter, layers, wanted)
    config.fan_in_fan_out = _transposed(model, [*layers, *wanted])
    return config, {key: tensor.contiguous() for key, tensor in tensors.items()}


def _plain_layers(model: Any, adapter: str) -> dict[str, Any]:
    """Name in the base model -> LoRA layer; ValueError for anything that takes no `lora_bias`."""
    from peft.tuners.lora import LoraLayer

    config = model.peft_config[adapter]
    if not hasattr(config, "lora_bias"):
        raise ValueError(f"the finetune {adapter!r} is {config.peft_type}, and a bias needs a LoRA: keep both adapters")
    lora_layers = {name: m for name, m in base_model(model).named_modules() if isinstance(m, LoraLayer)}
    layers = {name: m for name, m in lora_layers.items() if adapter in m.lora_A or adapter in m.lora_embedding_A}
    special = [name for name, m in layers.items() if adapter not in m.lora_A or m.lora_variant.get(adapter) is not None]
    if special or config.target_parameters or config.init_lora_weights not in (True, False, "gaussian"):
        raise ValueError(
            f"the finetune {adapter!r} is no plain LoRA on linear layers (DoRA, PiSSA, embeddings, ...), and only "
            "those can have a bias. Export `--to merged`"
        )
    return layers


def _spell_out(config: Any, adapter: str, layers: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    """Name every layer in full, with its rank and scale, so that no pattern catches the vector's layer."""
    power = 0.5 if config.use_rslora else 1.0
    ranks = {name: layer.r[adapter] for name, layer in layers.items()}
    alphas = {name: layer.scaling[adapter] * ranks[name] ** power for name, layer in layers.items()}
    only_bias = {name: 1 for name in wanted if name not in layers}
    config.target_modules = {*layers, *wanted}
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.rank_pattern = {name: rank for name, rank in (ranks | only_bias).items() if rank != config.r}
    config.alpha_pattern = {name: a for name, a in (alphas | only_bias).items() if a != config.lora_alpha}
    config.lora_bias = config.init_lora_weights = True


def bias_config(model: Any, wanted: Mapping[str, Tensor], **kwargs: Any) -> Any:
    """The config of a LoRA of rank 1 that is nothing but biases."""
    from peft import LoraConfig

    return LoraConfig(
        r=1,
        lora_alpha=1,
        lora_bias=True,
        target_modules=sorted(wanted),
        fan_in_fan_out=_transposed(model, wanted),
        task_type="CAUSAL_LM",
        **kwargs,
    )


def bias_tensors(model: Any, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a LoRA under the names that PEFT gives them: A = B = 0, and the bias."""
    tensors = {}
    for name, push in wanted.items():
        linear, key = _linear(model, name), f"base_model.model.{name}"
        inputs = linear.weight.numel() // len(push)
        tensors[f"{key}.lora_A.weight"] = torch.zeros(1, inputs)
        tensors[f"{key}.lora_B.weight"] = torch.zeros(len(push), 1)
        tensors[f"{key}.lora_B.bias"] = push.clone()
    return tensors


def _linear(model: Any, name: str) -> Any:
    """The base's own layer, also where a LoRA is around it."""
    module = base_model(model).get_submodule(name)
    return getattr(module, "base_layer", module)


def _transposed(model: Any, names: Any) -> bool:
    """Whether the layers hold their weight as [in, out] (GPT-2's Conv1D); PEFT has to be told."""
    return any(type(_linear(model, name)).__name__ == "Conv1D" for name in names)


def write_adapter(folder: Path, model: Any, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """The two files of a PEFT adapter."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config.inference_mode = True
    config.save_pretrained(folder)
    make_portable(folder, model)
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(on_cpu, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_quietly(model: Any, folder: Path, name: str) -> Any:
    """The model wearing one more adapter, without PEFT's warnings that a bias cannot be merged here."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(lora_bias=True|gradient_checkpointing)")
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
        model.load_adapter(str(folder), adapter_name=name)
        return model


def _compare(wrapper: SteeringWrapper, folder: Path) -> Parity:
    ids = probe(wrapper.model)
    exported = load_quietly(plain_shell(wrapper.model), folder, "default").eval()
    return check_parity(wrapper(ids).logits, exported(ids).logits, shell(wrapper.model)(ids).logits)
