"""SteeringCallback: interventions in, a training run whose steps are steered. TRL's trainers and Lightning's alike."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback
from torch import Tensor, nn
from transformers import TrainerCallback

from caa.models.hooks import listening
from caa.steering.intervention import Intervention
from caa.steering.scopes import everywhere
from caa.steering.wrapper import SteeringWrapper


class SteeringCallback(TrainerCallback, Callback):
    """Steers while a model learns, and never else: preventative steering (Chen et al. 2025, "Persona Vectors").

    A model that is pushed towards a behavior during training need not move there itself, and is without it once the
    push is gone. Gradients flow through the edit. Steered are the forward and backward passes of training steps, with
    gradient checkpointing too; evaluation within a run, checkpoints, and the model afterwards are not.

        with SteeringCallback(Intervention(vector, layer=13, multiplier=2, where=everywhere)) as steering:
            SFTTrainer(model, ..., callbacks=[steering]).train()

    The `with` block ends the steering whatever happens. Lightning tells its callbacks of an exception, so with its
    Trainer `callbacks=[SteeringCallback(...)]` does as well; transformers does not.

    The scope "after the prompt" begins at the token before the first label, of a text without labels at its start.
    """

    def __init__(self, *interventions: Intervention) -> None:
        self.interventions = interventions
        self._steering = ExitStack()
        self._last_prompt: Tensor | None = None

    def __enter__(self) -> SteeringCallback:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the steering off."""
        self._steering.close()

    # transformers: one optimizer step is steered from its first forward pass to its last backward pass.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if getattr(args, "torch_compile", False):
            raise ValueError(
                "steering begins and ends with each step, and a compiled model would be compiled anew each time: train "
                "with torch_compile=False"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._steer(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    # Lightning

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._steer(language_model(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.close()

    # both

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.close()

    def _steer(self, model: Any) -> None:
        self.close()
        with ExitStack() as stack:
            stack.callback(listening(model, self._listen).remove)
            stack.enter_context(SteeringWrapper(model).steer(*map(self._by_labels, self.interventions)))
            self._steering = stack.pop_all()

    def _by_labels(self, intervention: Intervention) -> Intervention:
        """The same edit, which learns from the labels where prompts end; ValueError for a gated one."""
        if intervention.gate is not None:
            raise ValueError(f"a gate decides where a prompt ends, which training does not tell it ({intervention})")

        def where(positions: Tensor, last_prompt: Tensor) -> Tensor:
            known = last_prompt if self._last_prompt is None else self._last_prompt.to(positions.device)
            return intervention.where(positions, known)

        return replace(intervention, where=where)

    def _listen(self, inputs: Mapping[str, Any]) -> None:
        packed = inputs.get("position_ids") is not None and inputs.get("attention_mask") is None
        if packed and any(intervention.where is not everywhere for intervention in self.interventions):
            raise ValueError("packed texts share a row, which has no one place where its prompt ends: use everywhere")
        labels = inputs.get("labels")
        lengths = torch.zeros(1) if labels is None else prompt_lengths(labels, inputs.get("attention_mask"))
        self._last_prompt = lengths[:, None] - 1


def prompt_lengths(labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """How many tokens of each row stand before its first label, pads not counted: int [row].

    >>> prompt_lengths(torch.tensor([[-100, -100, 7, 8], [-100, -100, -100, 7]]), torch.tensor([[1] * 4, [0, 1, 1, 1]]))
    tensor([2, 2])
    """
    before = (labels != -100).cumsum(1) == 0
    return (before if attention_mask is None else before & attention_mask.bool()).sum(1)


def language_model(module: nn.Module) -> Any:
    """The causal LM inside a LightningModule: the outermost one of its modules that has a decoder."""
    part = next((part for part in module.modules() if hasattr(part, "get_decoder")), None)
    if part is None:
        raise TypeError(f"{type(module).__name__} holds no causal language model, so there is nothing to steer")
    return part
