"""SteeringWrapper: a causal LM, plain or with LoRA adapters, whose residual stream is edited while it runs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from caa.hub import holds, upload
from caa.models.adapter_state import active_adapters, held_adapters
from caa.models.adapters import active_adapter, adapter_hash, adapter_record, adapters_called, load_adapter, unload
from caa.models.blocks import (
    base_model,
    check_layer,
    decoder,
    decoder_blocks,
    generation_inputs,
    keeps_place,
    position_inputs,
)
from caa.models.capabilities import ignores_pads
from caa.models.checkpoints import Checkpoint, aside, load_alike, read_checkpoint
from caa.models.hooks import Edit, listening, writing
from caa.models.names import ADAPTER_CONFIG, model_name
from caa.models.positions import TokenClock, cache_in, coefficients, one_each, repeat_rows
from caa.models.restore import as_it_was_on_error
from caa.models.sites import BLOCK_OUTPUT, INPUTS, OF_BLOCKS, Site, site_modules, site_width
from caa.models.tensors import FiniteLogits
from caa.steering.checkpoint.steered import load_steered, save_steered
from caa.steering.gates import Decisions, Gate
from caa.steering.intervention import Intervention
from caa.steering.patching import Recording
from caa.steering.state import ModelSteering, Steering
from caa.vectors.vector import Provenance, SteeringVector


class SteeringWrapper(nn.Module):
    """Steers any causal LM of transformers, also a PeftModel, by hooks on its blocks.

    The model stays as it is: the same parameters under the same names, the same adapters, savable and trainable.
    With every multiplier 0 its outputs are bit for bit those of the model without the wrapper on the same tensors; rows
    of a batch of another size agree to rounding, for which products of few rows may take other kernels.

        wrapper = SteeringWrapper(model)
        with wrapper.steer(Intervention(vector, layer=13, multiplier=2)):    # until the block ends
            wrapper.generate(**inputs)
        wrapper.steer(Intervention(vector, layer=13, multiplier=2))          # until wrapper.unsteer()
    """

    def __init__(self, model: Any, *interventions: Intervention) -> None:
        super().__init__()
        self.model = model
        self._waiting: list[Any] = []
        """The model, while a checkpoint runs in its place; in a list, so that torch does not take it for a part."""
        self._checkpoints: dict[str, Checkpoint] = {}
        self._kept: dict[str, Any] | None = None
        decoder_blocks(model)
        self._state = ModelSteering.of(model)
        if interventions and self.interventions:
            edits = "; ".join(map(str, self.interventions))
            warnings.warn(
                f"the model is steered already ({edits}), and this adds to it: `unsteer()` takes all of it off",
                stacklevel=2,
            )
        if interventions:
            self.steer(*interventions)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What is being done to the model now, by this or another wrapper, in the order in which it was asked for."""
        return self._state.interventions

    @property
    def _clock(self) -> TokenClock:
        return self._state.clock

    def __repr__(self) -> str:
        return "\n".join([f"SteeringWrapper({self._described()})", *(f"  {edit}" for edit in self.interventions)])

    def _described(self) -> str:
        """The model, its depth, and its adapters with those that act."""
        acting = active_adapters(self.model)
        adapters = [f"{name} (active)" if name in acting else name for name in self.adapters]
        worn = f", adapters: {', '.join(adapters)}" if adapters else ""
        steered = "steered by" if self.interventions else "not steered"
        base = model_name(self.model) or type(base_model(self.model)).__name__
        return f"{base}, {len(decoder_blocks(self.model))} layers{worn}; {steered}"

    def steer(self, *interventions: Intervention) -> Steering:
        """Edit the residual stream from now on: until the `with` block ends, the result's `close()`, or `unsteer()`.

        Calls add up, in their order, those of other wrappers around the model too. ValueError for a layer that does not
        exist and a vector of another width, TypeError for a vector without a layer, RuntimeError while another thread
        steers the model in a `with` block.
        """
        for intervention in interventions:
            self._check(intervention)
        with self._state.lock, ExitStack() as undo:
            self._state.check_thread()
            steering = Steering()
            self._state.groups[steering] = interventions
            steering.callback(self._take_off, steering)
            undo.callback(steering.close)
            self._install()
            undo.pop_all()
        return steering

    def unsteer(self) -> None:
        """Take every steering off the model, also what another wrapper has put on."""
        for steering in list(self._state.groups):
            steering.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run unsteered for a while; what is put on or taken off meanwhile counts from its end on."""
        with self._state.lock:
            try:
                with self._state.paused():
                    yield
            finally:
                self._install()

    def _take_off(self, steering: Steering) -> None:
        with self._state.lock:
            del self._state.groups[steering]
            self._install()

    def _install(self) -> None:
        """One hook for each place, which makes all its edits in order; none at all where every multiplier is 0."""
        self._state.hooks.close()
        if self._state.pauses:
            return
        active = [intervention for intervention in self.interventions if intervention.strengths.any()]
        if not active:
            return
        gates = self._state.gates(active)
        with ExitStack() as stack:
            stack.callback(listening(decoder(self.model), partial(self._state.tick, gates)).remove)
            for site in sorted({edit.place for edit in active} | ({BLOCK_OUTPUT} if gates else set())):
                read = list(gates.values()) if site == BLOCK_OUTPUT else []
                edits = self._edits([edit for edit in active if edit.place == site], read, gates)
                stack.enter_context(writing(site_modules(self.model, site), edits, inputs=site in INPUTS))
            self._state.hooks = stack.pop_all()

    def _edits(
        self, interventions: Sequence[Intervention], read: Sequence[Decisions], gates: Mapping[Gate, Decisions]
    ) -> dict[int, Edit]:
        """layer -> what the hook of one site does there: all its edits, then what gates `read` of it."""
        edits: dict[int, Edit] = {}
        for layer in sorted({*(edit.layer for edit in interventions), *(decisions.gate.layer for decisions in read)}):
            made_here = [edit for edit in interventions if edit.layer == layer]
            read_here = [decisions for decisions in read if decisions.gate.layer == layer]
            edits[layer] = self._edit(made_here, read_here, gates)
        return edits

    def _check(self, intervention: Intervention) -> None:
        if not isinstance(intervention, Intervention):
            raise TypeError(_not_an_intervention(intervention))
        check_layer(self.model, intervention.layer)
        if intervention.place not in OF_BLOCKS:
            with self.paused():  # the first look for a site is a pass of the plain model
                site_modules(self.model, intervention.place)
        self._check_width(intervention.direction, intervention.vector.source, intervention.place)
        if intervention.gate:
            self._check_width(intervention.gate.direction, intervention.gate.vector.source, BLOCK_OUTPUT)

    def _check_width(self, direction: Tensor, source: Provenance, site: Site) -> None:
        width, needed = direction.shape[-1], site_width(self.model, site)
        if width != needed:
            place = "" if site == BLOCK_OUTPUT else f" at its {site}"
            raise ValueError(
                f"this vector is {width} wide and the model {needed}{place}: it was read in "
                f"{source.model or 'another model'!r}, at the {source.site}. Extract one with this model."
            )

    def _edit(
        self, interventions: Sequence[Intervention], read: Sequence[Decisions], gates: Mapping[Gate, Decisions]
    ) -> Edit:
        strengths = [intervention.strengths for intervention in interventions]
        directions = [intervention.direction for intervention in interventions]

        def edit(resid: Tensor) -> Tensor:
            positions, last_prompt = (places.to(resid.device) for places in self._clock.now())
            if resid.ndim == 2:  # OPT hands its MLP all rows in one
                return edit(resid.unflatten(0, (-1, positions.shape[1]))).flatten(0, 1)
            rows, columns, _ = resid.shape
            for n, intervention in enumerate(interventions):
                directions[n] = directions[n].to(resid.device)  # once, for each model lives on few devices
                direction, chosen = directions[n], intervention.where(positions, last_prompt)
                if isinstance(intervention.vector, Recording):
                    direction, known = intervention.vector.meeting(direction, positions)
                    direction, chosen = repeat_rows(direction, rows), chosen * known
                given = coefficients(strengths[n], len(positions), (rows, columns)).to(resid.device)
                strength = given * repeat_rows(chosen, rows)
                if intervention.gate:
                    strength = strength * gates[intervention.gate].for_rows(rows, resid.device)
                edited = intervention.operator(resid, direction, strength)
                resid = torch.where((strength != 0)[..., None], edited, resid)
            for decisions in read:
                decisions.read(resid, positions, last_prompt, self._clock.begins)
            return resid

        return edit

    def forward(
        self,
        input_ids: Int[Tensor, "row position"],
        attention_mask: Int[Tensor, "row seen"] | Float[Tensor, "row 1 position seen"] | None = None,
        *,
        prompt_lengths: Int[Tensor, " row"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own forward pass, steered.

        `prompt_lengths` counts each row's prompt tokens, for texts that hold an answer too; without it the whole of a
        first pass is prompt, and passes on a filled cache go on with the answer.
        """
        if attention_mask is not None and attention_mask.ndim == 2:
            self._warn_of_pads(attention_mask, stacklevel=5)  # behind two frames of nn.Module
        return self.run_pass(input_ids, attention_mask, prompt_lengths=prompt_lengths, **kwargs)

    def run_pass(
        self,
        input_ids: Int[Tensor, "row position"],
        attention_mask: Tensor | None = None,
        *,
        prompt_lengths: Int[Tensor, " row"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """`forward` for those who know already whether the model may be padded."""
        mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        if mask is not None and "position_ids" not in kwargs:
            for name, tensor in position_inputs(self.model, mask).items():
                kwargs[name] = tensor[:, -input_ids.shape[1] :]
        if prompt_lengths is None and mask is not None and cache_in(kwargs) is None:
            prompt_lengths = mask.sum(1)  # RWKV's decoder is not told of the mask
        lengths = None if prompt_lengths is None else one_each(prompt_lengths, len(input_ids), "prompt lengths")
        with self._prompts(lengths):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "row position"],
        attention_mask: Int[Tensor, "row position"] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, steered; prompts of unequal length are padded on the left.

        Recurrent families (Mamba, RWKV) are steered without their cache, which does not say where in the text it is.
        ValueError where the logits are no numbers any more.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not mask[:, -1].all():
            raise ValueError("generation continues the last column, so pad prompts on the left (padding_side='left')")
        self._warn_of_pads(mask, stacklevel=4)  # behind one of no_grad
        if self.interventions and not keeps_place(self.model):
            kwargs.setdefault("use_cache", False)
        goes_on = cache_in(kwargs) is not None
        kwargs = {**generation_inputs(self.model, mask, goes_on=goes_on), **kwargs}
        kwargs["logits_processor"] = [FiniteLogits(), *(kwargs.get("logits_processor") or ())]
        with self._prompts(mask.sum(1)):
            return self.model.generate(input_ids=input_ids, attention_mask=mask, **kwargs)

    def _warn_of_pads(self, mask: Tensor, stacklevel: int) -> None:
        """Said once: a family in which pads on the left show, also without steering."""
        if mask[:, 0].all():
            return
        if not ignores_pads(self.model, self.paused):
            name = type(base_model(self.model)).__name__
            warnings.warn(
                f"{name} reads pads on the left, steered or not, so a row of this batch is not what it is alone. "
                "Give prompts of equal length, or one at a time.",
                stacklevel=stacklevel,
            )

    @contextmanager
    def _prompts(self, lengths: Tensor | None) -> Iterator[None]:
        with self._state.lock:
            before, self._clock.prompt_lengths = self._clock.prompt_lengths, lengths
            try:
                yield
            finally:
                self._clock.prompt_lengths = before

    # Finetunes: adapters by PEFT, and checkpoints of the same base.

    @property
    def _worn(self) -> Any:
        """The model that wears the adapters, also while a checkpoint runs in its place."""
        return self._waiting[0] if self._waiting else self.model

    @property
    def adapters(self) -> list[str]:
        """The names of the LoRA adapters that the model holds."""
        return held_adapters(self._worn)

    @property
    def finetunes(self) -> list[str]:
        """The names of all finetunes: adapters, then full checkpoints."""
        return [*self.adapters, *self._checkpoints]

    def load_adapter(self, path: str | Path, name: str) -> None:
        """Add a LoRA adapter that PEFT saved, by its folder or name on the Hub; it becomes the active one.

        ValueError if it was made for another base or the name is taken, RuntimeError while a checkpoint runs in the
        base's place.
        """
        self._check_base_runs()
        if name in self._checkpoints:
            raise ValueError(_taken(name))
        with self.paused():  # PEFT puts its layers in place of those that hooks may be on
            self.model = load_adapter(self.model, path, name)

    def load_finetune(self, path: str | Path, name: str) -> None:
        """Add a finetune of any kind: an adapter, or a full checkpoint of the same base, by its folder or its name on
        the Hub (of an adapter also "you/name@revision").

        A checkpoint is looked at and dropped; `finetune(name)` loads it again, and it runs in the base's place.
        ValueError for one of another base or under a name that is taken.
        """
        if name in self.finetunes:
            raise ValueError(_taken(name))
        if holds(path, ADAPTER_CONFIG):
            self.load_adapter(path, name)
        else:
            self._checkpoints[name] = read_checkpoint(path, self._worn)

    def unload_adapters(self) -> None:
        """Take every finetune off: the base is left as it was before the first one was put on.

        RuntimeError while a checkpoint runs in the base's place.
        """
        self._check_base_runs()
        with self.paused():
            self.model = unload(self.model)
        self._checkpoints.clear()
        self.keep_checkpoints(self._kept is not None)

    def _check_base_runs(self) -> None:
        if self._waiting:
            raise RuntimeError(
                "a full checkpoint runs in the base's place, which comes back as it was: put adapters on, and take "
                "finetunes off, behind the end of its `with wrapper.finetune(...)` block"
            )

    def keep_checkpoints(self, keep: bool = True) -> None:
        """From now on a full checkpoint stays loaded once it was, beside the model, where it is asked again and again:
        it is loaded once and takes its memory; with False those that are loaded are let go."""
        self._kept = {} if keep else None

    def holds(self, name: str) -> bool:
        """Whether there is such a finetune, or, for "helpful+positive", all adapters that it names."""
        return name in self.finetunes or set(name.split("+")) <= set(self.adapters)

    def finetune_hash(self, name: str) -> str:
        """16 hex digits of what a finetune does, of each one that the name names."""
        if name in self._checkpoints:
            return self._checkpoints[name].fingerprint
        return "+".join(adapter_hash(self._worn, adapter) for adapter in adapters_called(self._worn, name))

    def finetune_records(self, name: str) -> list[dict[str, Any]]:
        """What is known of how a finetune was made, of each one that the name names; {} of those made elsewhere."""
        if name in self._checkpoints:
            return [self._checkpoints[name].record]
        return [adapter_record(self._worn, adapter) for adapter in adapters_called(self._worn, name)]

    @contextmanager
    def finetune(self, name: str | None) -> Iterator[None]:
        """Run with one finetune, with several adapters ("helpful+positive"), or with none (exactly the base), and go
        back to what was before.

        A full checkpoint is loaded and takes the model's place, `wrapper.model` too, until the block ends.
        """
        worn = self._worn
        if name in self._checkpoints:
            with self._running(name):
                yield
        else:
            with self._exchanged(worn), active_adapter(worn, name):
                yield

    @contextmanager
    def _running(self, name: str) -> Iterator[None]:
        """A checkpoint runs in the base's place, which waits in main memory, but where both are kept."""
        worn, path = self._worn, self._checkpoints[name].path
        if self._kept is None:
            with aside(worn), self._exchanged(load_alike(path, worn)):  # no name holds it when the base comes back
                yield
            return
        if name not in self._kept:
            self._kept[name] = load_alike(path, worn)
        with self._exchanged(self._kept[name]):
            yield

    @contextmanager
    def _exchanged(self, model: Any) -> Iterator[None]:
        """Another model in the wrapper, steered as the one was; nothing to do where it is that one."""
        if model is self.model:
            yield
            return
        before = self.model, self._waiting
        self._put_in(model, [self._worn])
        del model  # the wrapper alone holds it now, also where an error holds this frame
        try:
            yield
        finally:
            self._put_in(*before)

    def _put_in(self, model: Any, waiting: list[Any]) -> None:
        with self._state.lock:
            self._state.hooks.close()
            self.model, self._waiting = model, waiting
            self._state.move_to(model)
            self._install()

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
            folder = Path(scratch) / "steered"
            save_steered(
                folder, self.model, self.interventions, tokenizer, finetunes=finetunes, results=results, where=name
            )
            return upload(folder, name, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, model: nn.Module | None = None, tokenizer: Any = None, **kwargs: Any
    ) -> SteeringWrapper:
        """Load a steered adapter, from a folder or by its name on the Hub, onto `model`, or onto its own base as
        `load_model(base, **kwargs)` gives it. ValueError for a damaged folder, another base or another tokenizer; the
        model is then as it was."""
        with as_it_was_on_error(model) if model is not None else nullcontext():
            return cls(*load_steered(folder, model, tokenizer, **kwargs))


def _taken(name: str) -> str:
    return f"the model already holds a finetune {name!r}; give this one another name"


def _not_an_intervention(given: Any) -> str:
    """What to write in place of what was given to `steer`."""
    if not isinstance(given, SteeringVector | Recording):
        return f"steer takes interventions, this is of type {type(given).__name__}"
    layers = given.layers if isinstance(given, SteeringVector) else sorted(given.residuals)
    return (
        f"steer takes interventions, and this {type(given).__name__} does not say at which of its layers {layers} and "
        f"how strongly: wrapper.steer(Intervention(vector, layer={layers[len(layers) // 2]}, multiplier=1.0))"
    )
