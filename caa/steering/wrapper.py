"""SteeringWrapper: a causal LM, plain or with LoRA adapters, whose residual stream is edited while it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from caa.steering.blocks import check_layer, decoder, decoder_blocks, model_width, position_inputs
from caa.steering.hooks import Edit, TokenClock, repeat_rows, writing
from caa.steering.hub import upload
from caa.steering.intervention import Intervention
from caa.steering.lora import active_adapter, load_adapter, unload
from caa.steering.recording import Recording
from caa.steering.saving import load_steered, save_steered


class SteeringWrapper(nn.Module):
    """Steers any causal LM of transformers, also a PeftModel, by hooks on its blocks.

    The model stays as it is: the same parameters under the same names, the same adapters, savable and trainable.
    With every multiplier 0 its outputs are bit for bit those of the model without the wrapper.

        wrapper = SteeringWrapper(model)
        with wrapper.steer(Intervention(vector, layer=13, multiplier=2)):    # until the block ends
            wrapper.generate(**inputs)
        wrapper.steer(Intervention(vector, layer=13, multiplier=2))          # until wrapper.unsteer()
    """

    def __init__(self, model: Any, *interventions: Intervention) -> None:
        super().__init__()
        self.model = model
        self._clock = TokenClock()
        self._steering: list[tuple[tuple[Intervention, ...], ExitStack]] = []
        decoder_blocks(model)
        if interventions:
            self.steer(*interventions)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What is being done to the model now, in the order in which it was asked for."""
        return tuple(intervention for group, _ in self._steering for intervention in group)

    def steer(self, *interventions: Intervention) -> ExitStack:
        """Edit the residual stream from now on: until the `with` block ends, the result's `close()`, or `unsteer()`.

        Calls add up. ValueError if a layer does not exist or a vector belongs to a model of another width.
        """
        for intervention in interventions:
            self._check(intervention)
        active = [i for i in interventions if i.strengths.any()]
        layers = sorted({i.layer for i in active})
        edits = {layer: self._edit([i for i in active if i.layer == layer]) for layer in layers}
        with ExitStack() as stack:
            stack.callback(self._clock.hooked(decoder(self.model)).remove)
            stack.enter_context(writing(decoder_blocks(self.model), edits))
            handle = stack.pop_all()
        entry = (interventions, handle)
        self._steering.append(entry)
        handle.callback(lambda: self._steering.remove(entry) if entry in self._steering else None)
        return handle

    def unsteer(self) -> None:
        """Take every steering off."""
        for _, handle in list(self._steering):
            handle.close()

    def _check(self, intervention: Intervention) -> None:
        check_layer(self.model, intervention.layer)
        width, needed = intervention.direction.shape[-1], model_width(self.model)
        if width != needed:
            source = intervention.vector.source.model or "another model"
            raise ValueError(
                f"this vector is {width} wide and the model {needed}: it was read in {source!r}. "
                "Extract one with this model."
            )

    def _edit(self, interventions: Sequence[Intervention]) -> Edit:
        strengths = [i.strengths if i.strengths.ndim == 2 else i.strengths[:, None] for i in interventions]
        directions = [i.direction for i in interventions]

        def edit(resid: Tensor) -> Tensor:
            positions, last_prompt = (
                repeat_rows(places.to(resid.device), len(resid), "rows") for places in self._clock.now()
            )
            for n, intervention in enumerate(interventions):
                directions[n] = directions[n].to(resid.device)  # once, for each model lives on few devices
                each = repeat_rows(strengths[n], len(resid), "multipliers").to(resid.device)
                strength, direction = each * intervention.where(positions, last_prompt), directions[n]
                if isinstance(intervention.vector, Recording):
                    direction, known = intervention.vector.meeting(direction, positions)
                    strength = strength * known
                edited = intervention.operator(resid, direction, strength)
                resid = torch.where((strength != 0)[..., None], edited, resid)
            return resid

        return edit

    def forward(
        self,
        input_ids: Int[Tensor, "row position"],
        attention_mask: Int[Tensor, "row position"] | Float[Tensor, "row 1 position position"] | None = None,
        *,
        prompt_lengths: Int[Tensor, " row"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own forward pass, steered.

        `prompt_lengths` counts each row's prompt tokens, for texts that hold an answer too; without it the whole of a
        first pass is prompt, and passes on a filled cache go on with the answer.
        """
        if attention_mask is not None and "position_ids" not in kwargs:
            for name, tensor in position_inputs(self.model, attention_mask).items():
                kwargs[name] = tensor[:, -input_ids.shape[1] :]
        with self._prompts(prompt_lengths):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "row position"],
        attention_mask: Int[Tensor, "row position"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, steered; prompts of unequal length are padded on the left."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not mask[:, -1].all():
            raise ValueError("generation continues the last column, so pad prompts on the left (padding_side='left')")
        with self._prompts(mask.sum(1)):
            return self.model.generate(input_ids=input_ids, attention_mask=mask, **kwargs)

    @contextmanager
    def _prompts(self, lengths: Tensor | None) -> Iterator[None]:
        before, self._clock.prompt_lengths = self._clock.prompt_lengths, lengths
        try:
            yield
        finally:
            self._clock.prompt_lengths = before

    # Finetunes: LoRA adapters by PEFT.

    @property
    def adapters(self) -> list[str]:
        """The names of the LoRA adapters that the model holds."""
        return list(getattr(self.model, "peft_config", {}))

    def load_adapter(self, path: str | Path, name: str) -> None:
        """Add a LoRA adapter that PEFT saved; it becomes the active one. ValueError if it was made for another base."""
        self.model = load_adapter(self.model, path, name)

    def unload_adapters(self) -> None:
        """Take every LoRA adapter off: the base is left as it was before the first one was put on."""
        self.model = unload(self.model)

    @contextmanager
    def finetune(self, name: str | None) -> Iterator[None]:
        """Run with one adapter active, or with none (exactly the base), and go back to what was active before."""
        with active_adapter(self.model, name):
            yield

    def save_pretrained(
        self, folder: str | Path, tokenizer: Any = None, *, finetunes: Sequence[str] | None = None, results: str = ""
    ) -> Path:
        """Write a steered adapter: LoRAs as plain PEFT has them, the interventions, and where all came from.

        `finetunes` names the LoRAs to keep (default: the active one); with `tokenizer`, loading with another one is
        refused; `results` is Markdown with what was measured, for the model card.
        """
        return save_steered(folder, self.model, self.interventions, tokenizer, finetunes=finetunes, results=results)

    def push_to_hub(
        self,
        name: str,
        tokenizer: Any = None,
        *,
        finetunes: Sequence[str] | None = None,
        results: str = "",
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Save a steered adapter on the Hugging Face Hub as `name` ("you/steered"); the address of what was uploaded.

        The other arguments are those of `save_pretrained`. Without `token` the one of `hf auth login` is used.
        """
        with tempfile.TemporaryDirectory() as scratch:
            what = (Path(scratch) / "steered", self.model, self.interventions, tokenizer)
            folder = save_steered(*what, finetunes=finetunes, results=results, where=name)
            return upload(folder, name, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, model: nn.Module | None = None, tokenizer: Any = None, **kwargs: Any
    ) -> SteeringWrapper:
        """Load a steered adapter, from a folder or by its name on the Hub, onto `model`, or onto its own base as
        `load_model(base, **kwargs)` gives it. ValueError for a damaged folder, another base or another tokenizer."""
        return cls(*load_steered(folder, model, tokenizer, **kwargs))
