"""Token ids in, a Recording out: what a run left in the residual stream, token by token, to put into another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from caa.models.adapter_state import active_adapters, check_readable
from caa.models.blocks import check_layer, decoder, decoder_blocks, evaluating, position_inputs
from caa.models.hooks import reading
from caa.models.names import model_name
from caa.models.positions import one_each
from caa.vectors.vector import Provenance


@dataclass(frozen=True, eq=False)
class Recording:
    """One vector for each token of a text, where a `SteeringVector` has one for all: an Intervention takes either.

    With the operator `replace` it is activation patching. A token of the steered run meets the recorded one of the same
    position, counted from the first of each text; where the recording has ended, nothing is edited.
    """

    residuals: Mapping[int, Tensor]
    """layer -> [row, position, d_model], in the model's dtype. Layer i is the output of block i, counted from 0."""
    lengths: Int[Tensor, " row"]
    """Tokens of each row; what `residuals` hold behind them is filling."""
    source: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        for layer, resid in self.residuals.items():
            if resid.ndim != 3 or len(resid) != len(self.lengths) or resid.shape[1] < self.lengths.max():
                raise ValueError(
                    f"layer {layer} needs [row, position, d_model] for {len(self.lengths)} rows of up to "
                    f"{int(self.lengths.max())} tokens, this has {list(resid.shape)}"
                )

    def at(self, layer: int) -> Float[Tensor, "row position d_model"]:
        """The residual stream of one layer; KeyError, with the layers there are, if it was not recorded."""
        if layer not in self.residuals:
            raise KeyError(f"layer {layer} was not recorded, these were: {sorted(self.residuals)}. Record again.")
        return self.residuals[layer]

    def meeting(
        self, resid: Float[Tensor, "row position d_model"], positions: Int[Tensor, "token_row token"]
    ) -> tuple[Float[Tensor, "token_row token d_model"], Bool[Tensor, "token_row token"]]:
        """For tokens at these positions: what `resid`, one layer of this, has at the same place, and if it has any.

        One recorded row meets all rows of the batch, or each prompt has its own.
        """
        lengths = self.lengths.to(positions.device)
        recorded = torch.arange(len(lengths), device=positions.device)
        rows = one_each(recorded, len(positions), "recorded rows")[:, None]
        return resid[rows, positions.clamp(max=resid.shape[1] - 1)], positions < lengths[rows]


@torch.no_grad()
def record_activations(
    model: nn.Module,
    input_ids: Int[Tensor, "row position"],
    attention_mask: Int[Tensor, "row position"] | None = None,
    layers: Sequence[int] | None = None,
) -> Recording:
    """The residual stream at every token of one run, of the model as it is now: adapters and steering included.

    `layers` are the blocks whose outputs are kept, counted from 0 (default: all). ValueError for one that is not there.
    """
    check_readable(model)
    blocks = decoder_blocks(model)
    layers = list(range(len(blocks))) if layers is None else list(layers)
    for layer in layers:
        check_layer(model, layer)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    with evaluating(model), reading(blocks, layers) as streams:
        decoder(model)(input_ids, attention_mask=mask, **position_inputs(model, mask), use_cache=False)
    source = Provenance(model=model_name(model), adapter=", ".join(active_adapters(model)), behavior="recording")
    return Recording({layer: _unpadded(streams[layer], mask) for layer in layers}, mask.sum(1), source)


def _unpadded(resid: Float[Tensor, "row column d_model"], mask: Tensor) -> Float[Tensor, "row position d_model"]:
    """Each row's real tokens at its beginning, whichever side the pads were on."""
    kept = mask.bool().to(resid.device)
    return pad_sequence([row[real] for row, real in zip(resid, kept, strict=True)], batch_first=True)
