"""A model in, the LoRA that any family can wear out: its targets are found by structure and one small pass."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from caa.models.blocks import base_model, input_device, ordinary_ids, trying_out
from caa.models.hooks import observing

if TYPE_CHECKING:
    from peft import LoraConfig


ALL_LINEAR = "all-linear"
"""What stands for `linear_targets` and the experts of a mixture."""


def lora_config(model: Any, rank: int, alpha: int, dropout: float = 0.0, targets: str = ALL_LINEAR) -> LoraConfig:
    """PEFT's config of a LoRA on `linear_targets` and on the experts of a mixture, or on the modules that are named.

    PEFT's own "all-linear" takes layers too whose LoRA a family cannot run or that PEFT does not find again when it
    loads it.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    if targets == ALL_LINEAR:
        convert_peft_config_for_transformers(lora, base_model(model), None)  # knows which stacks are experts
        lora.target_parameters = _expert_stacks(model, lora.target_parameters or ())
        lora.target_modules = linear_targets(model)
    return lora


def _expert_stacks(model: Any, names: Iterable[str]) -> list[str] | None:
    """Those that name a stack of matrices; a router is one matrix."""
    stacks = {name for name, parameter in base_model(model).named_parameters() if parameter.ndim == 3}
    return sorted(name for name in names if any(stack.endswith(f".{name}") for stack in stacks)) or None


def linear_targets(model: Any) -> list[str]:
    """Names of all linear layers below the head that return a tensor when the model runs and that PEFT can wrap.

    Left out are the head and the embeddings, routers that return several things, layers whose weight is used without
    calling them, what PEFT refuses for the family, and what PEFT looks for under another name when it loads it again.
    Experts that no token of the pass chose go by those of their kind that were. ValueError where none is left.
    """
    base = base_model(model)
    linears = {name: module for name, module in base.named_modules() if _is_linear(module)}
    output = base.get_output_embeddings()
    tied = {module.weight for module in (output, base.get_input_embeddings()) if hasattr(module, "weight")}
    inner = {name: module for name, module in linears.items() if not any(module.weight is weight for weight in tied)}
    called = _returning_tensors(base, inner)
    kinds = {_kind(name) for name, returned in called.items() if returned}
    refused = {_kind(name) for name, returned in called.items() if not returned}
    targets = [name for name in inner if _kind(name) in kinds - refused and _allowed(base, name)]
    targets = _loadable(base, targets)
    if not targets:
        raise ValueError(
            f"{type(base).__name__} has no linear layer that a LoRA can go on; name some as target_modules"
        )
    return targets


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _kind(name: str) -> str:
    """The name without the numbers of layers and experts.

    >>> _kind("model.layers.3.mlp.experts.0.up_proj")
    'model.layers.#.mlp.experts.#.up_proj'
    """
    return re.sub(r"\d+", "#", name)


def _returning_tensors(base: Any, linears: dict[str, nn.Module]) -> dict[str, bool]:
    """Of those that one pass calls: whether they return a tensor."""
    returned: dict[str, bool] = {}
    ids = torch.tensor([ordinary_ids(base, 16)], device=input_device(base))

    def note(name: str, output: Any) -> None:
        returned[name] = isinstance(output, Tensor) and returned.get(name, True)

    with trying_out(base), observing(linears, note):
        base(input_ids=ids)
    return returned


def _allowed(base: Any, name: str) -> bool:
    """Whether PEFT would put a LoRA there: it refuses some layers of state-space families."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(), base, name.rpartition(".")[2])
    except ValueError:
        return False
    return True


def _loadable(base: Any, names: list[str]) -> list[str]:
    """Those whose LoRA keeps its name when PEFT loads it, which renames some as if they came from an old checkpoint."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    keys = {f"base_model.model.{name}.lora_A.weight": name for name in names}
    state = {key: torch.zeros(1, 1) for key in keys}
    loaded = convert_peft_adapter_state_dict_for_transformers(base, LoraConfig(r=1, target_modules=names), state)
    return [name for key, name in keys.items() if key in loaded]
