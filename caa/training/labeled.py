"""TRL's trainer for whole answers, without the work that no label asks for: the same loss, the same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from itertools import accumulate, pairwise
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from trl import SFTTrainer

from caa.models.blocks import base_model
from caa.models.capabilities import can_pick, spared_parts
from caa.models.hooks import picking, sparing, withholding
from caa.training.examples import IGNORED
from caa.training.lora_products import fused_loras

Row = dict[str, list[int]]
"""The `input_ids` and `labels` of one example."""


class LabeledTrainer(SFTTrainer):
    """SFT whose steps see the same examples in the same order, and whose passes hold less that counts for nothing.

    The examples of one optimizer step are dealt out to its passes by length, so that fewer pads are read. In one CPU
    process the head, like the parts behind the last attention, is given the tokens that are followed by a label alone;
    where a model's head cannot be split off so (`can_pick`), the model's own logits of all tokens are used. LoRAs go
    through `fused_loras`. On an accelerator TRL's own loss is taken.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if can_pick(self.model):  # tried out here, where nothing steers the model yet
            spared_parts(self.model)

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, Tensor]], Any]:
        """The batches of one optimizer step, as large as they came, the shortest examples first; how many labels."""
        batches, labels = super().get_batch_samples(*args)
        if len(batches) < 2:
            return batches, labels
        rows = sorted((row for batch in batches for row in _rows(batch)), key=_length)
        ends = accumulate((len(batch["input_ids"]) for batch in batches), initial=0)
        return [self.data_collator(rows[start:end]) for start, end in pairwise(ends)], labels

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL trains, on a CPU with LoRAs that are multiplied in one go."""
        with fused_loras(self.model) if self._on_one_cpu() else nullcontext():
            return super().train(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The cross entropy of a batch over the step's number of labels, or over its own where none is given."""
        if return_outputs or not self._on_one_cpu():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        labels = inputs["labels"][:, 1:]
        places = pad(labels != IGNORED, (0, 1))
        total = cross_entropy(labeled_logits(model, inputs, places).float(), labels[places[:, :-1]], reduction="sum")
        return total / (places.sum() if num_items_in_batch is None else num_items_in_batch)

    def _on_one_cpu(self) -> bool:
        return self.args.device.type == "cpu" and self.accelerator.num_processes == 1


def labeled_logits(
    model: Any, inputs: dict[str, Tensor], places: Bool[Tensor, "row position"]
) -> Float[Tensor, "place vocab"]:
    """The model's logits at these places. Hooks on the model that are there already see the labels; the model does not.

    The head computes no others where the model allows (`can_pick`), nor does what stands behind the last attention
    (`spared_parts`).
    """
    base = base_model(model)
    with ExitStack() as stack:
        stack.enter_context(withholding(base, "labels"))
        picked = can_pick(model)
        if picked:
            stack.enter_context(picking(base.get_output_embeddings(), places))
            for part in spared_parts(model):
                stack.enter_context(sparing(part, places))
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[0] if picked else logits[places]


def _rows(batch: dict[str, Tensor]) -> Iterator[Row]:
    """The examples of a batch without their pads."""
    masks = batch["attention_mask"].bool()
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], masks, strict=True):
        yield {"input_ids": ids[mask].tolist(), "labels": labels[mask].tolist()}


def _length(row: Row) -> int:
    return len(row["input_ids"])
