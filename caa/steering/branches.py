"""Settings in, edits of their columns out: each setting's branch comes in behind the last block that all have alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from caa.models.blocks import decoder_blocks
from caa.models.hooks import Edit, cutting, writing
from caa.models.sites import BLOCK_OUTPUT, INPUTS, site_modules
from caa.steering.intervention import Intervention, Setting, together
from caa.steering.wrapper import SteeringWrapper

NEVER = 1 << 30
"""The last plain block of a setting that changes nothing."""


def last_plain_block(setting: Setting) -> int:
    """The last block behind which a branch under this setting is still what it is unsteered; -1 for none.

    >>> last_plain_block(()) == NEVER
    True
    """
    return min((edit.last_plain_block for edit in setting if edit.strengths.any()), default=NEVER)


def in_order(places: Sequence[int], settings: Sequence[Setting], size: int) -> Iterator[list[int]]:
    """Groups of so many settings: in each, the one that stays plain for longest stands first, the others as they part.

    >>> from caa.steering.intervention import sweep
    >>> from caa.vectors.vector import SteeringVector
    >>> vector = SteeringVector({layer: torch.ones(2) for layer in range(3)})
    >>> list(in_order([0, 1, 2], sweep(vector, [2, 0, 1], [1.0]), 3))
    [[0, 1, 2]]
    >>> list(in_order([0, 1, 2], sweep(vector, [1, 2, 0], [1.0]), 3))
    [[1, 2, 0]]
    """
    ordered = sorted(places, key=lambda place: last_plain_block(settings[place]))
    for start in range(0, len(ordered), size):
        *others, longest = ordered[start : start + size]
        yield [longest, *others]


@dataclass(frozen=True)
class Columns:
    """Where the branches of a pass stand: behind a stem, setting by setting, as `in_order` puts them."""

    stem: int
    per_setting: int
    positions: Int[Tensor, "row column"]
    last_prompt: Int[Tensor, "row 1"]

    def of(self, settings: Tensor) -> Int[Tensor, " column"]:
        """Those of some settings, by their numbers."""
        within = torch.arange(self.per_setting)
        return (self.stem + settings[:, None] * self.per_setting + within).flatten()


@contextmanager
def grown(wrapper: SteeringWrapper, settings: Sequence[Setting], columns: Columns) -> Iterator[None]:
    """Steer each setting's columns, which come in behind the last block that they share with those of the first one.

    The first setting is there from the start, and is what the others are copies of. The model is asked for all columns;
    its blocks read as many as differ.
    """
    blocks = decoder_blocks(wrapper.model)
    arrivals = Counter(min(last_plain_block(setting), len(blocks) - 1) for setting in settings[1:])
    start = columns.stem + (1 + arrivals.pop(-1, 0)) * columns.per_setting
    edits = _column_edits(settings, columns)
    places = {BLOCK_OUTPUT, *(edit.intervention.place for edit in edits)}
    with ExitStack() as stack:
        stack.enter_context(wrapper.steer())  # other threads are told that somebody steers
        for site in sorted(places):
            arriving = arrivals if site == BLOCK_OUTPUT else Counter[int]()
            made = [edit for edit in edits if edit.intervention.place == site]
            stack.enter_context(
                writing(site_modules(wrapper.model, site), _edits(made, arriving, columns), inputs=site in INPUTS)
            )
        stack.enter_context(cutting(blocks, start))
        yield


@dataclass
class _ColumnEdit:
    """What one intervention does to the columns of the settings that make it, with one multiplier each."""

    intervention: Intervention
    columns: Int[Tensor, " edited"]
    strength: Float[Tensor, "row edited"]
    direction: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.direction = self.intervention.direction

    def of(self, resid: Float[Tensor, "row column d_model"]) -> Float[Tensor, "row edited d_model"]:
        """The edited columns alone."""
        self.columns, self.strength = self.columns.to(resid.device), self.strength.to(resid.device)
        self.direction = self.direction.to(resid.device)
        plain = resid[:, self.columns]
        edited = self.intervention.operator(plain, self.direction, self.strength)
        return torch.where((self.strength != 0)[..., None], edited, plain)


def _column_edits(settings: Sequence[Setting], columns: Columns) -> list[_ColumnEdit]:
    edits = []
    for intervention in together(settings):
        making = intervention.strengths.nonzero()[:, 0]
        if len(making):
            place = columns.of(making)
            multipliers = intervention.strengths[making].repeat_interleave(columns.per_setting)
            weights = intervention.where(columns.positions[:, place], columns.last_prompt)
            edits.append(_ColumnEdit(intervention, place, multipliers * weights))
    return edits


def _edits(made: Sequence[_ColumnEdit], arrivals: Mapping[int, int], columns: Columns) -> dict[int, Edit]:
    """layer -> what the hook of one site does there: branches that arrive, then all edits, in their order."""
    layers = sorted({edit.intervention.layer for edit in made} | set(arrivals))
    edits: dict[int, Edit] = {}
    for layer in layers:
        made_here = [edit for edit in made if edit.intervention.layer == layer]
        edits[layer] = _edit(made_here, arrivals.get(layer, 0), columns)
    return edits


def _edit(made: Sequence[_ColumnEdit], arriving: int, columns: Columns) -> Edit:
    first = slice(columns.stem, columns.stem + columns.per_setting)

    def edit(resid: Tensor) -> Tensor:
        if resid.ndim == 2:  # OPT hands its MLP all rows in one
            return edit(resid.unflatten(0, (len(columns.positions), -1))).flatten(0, 1)
        resid = torch.cat([resid, *[resid[:, first]] * arriving], dim=1)  # a copy, which may be written into
        for column_edit in made:
            resid[:, column_edit.columns] = column_edit.of(resid)
        return resid

    return edit
