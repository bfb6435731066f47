"""What is being done to a model, kept with the model: every wrapper around it sees the same and can take it off."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from caa.models.blocks import base_model, first_position
from caa.models.copies import STEERING
from caa.models.positions import TokenClock
from caa.steering.gates import Decisions, Gate
from caa.steering.intervention import Intervention


class Steering(ExitStack):
    """What one call of `steer` has put on: until its `with` block ends, or `close()`."""

    thread: int | None = None
    """The thread whose `with` block this is; None where it just stays on."""

    def __enter__(self) -> Steering:
        self.thread = threading.get_ident()
        return super().__enter__()


class ModelSteering:
    """The one record of what steers a model, at the model itself, whatever adapters it wears."""

    def __init__(self, clock: TokenClock) -> None:
        self.clock = clock
        self.groups: dict[Steering, tuple[Intervention, ...]] = {}
        self.hooks = ExitStack()
        self.decisions: dict[Gate, Decisions] = {}
        """What gates have decided about the running texts: hooks come and go between two passes, and these stay."""
        self.pauses = 0
        self.lock = threading.RLock()
        """Held by a pass, and by whoever changes the hooks: one thread at a time."""

    @classmethod
    def of(cls, model: Any) -> ModelSteering:
        """The model's own; a model that was never steered gets an empty one."""
        base = base_model(model)
        known = vars(base).get(STEERING)
        if known is None:
            known = vars(base)[STEERING] = cls(TokenClock(first_position(model)))
        state: ModelSteering = known
        return state

    def move_to(self, model: Any) -> None:
        """To be that of a model that runs in the first one's place."""
        vars(base_model(model))[STEERING] = self

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """In the order in which they were asked for."""
        return tuple(intervention for group in self.groups.values() for intervention in group)

    def gates(self, interventions: Sequence[Intervention]) -> dict[Gate, Decisions]:
        """The gates of these interventions, with what they have decided about the running texts."""
        gates = [edit.gate for edit in interventions if edit.gate]
        return {gate: self.decisions.setdefault(gate, Decisions(gate)) for gate in gates}

    def tick(self, gates: dict[Gate, Decisions], inputs: Mapping[str, Any]) -> None:
        """A pass begins, in which these gates read; where it begins new texts, all others forget the last ones."""
        self.clock.tick(inputs)
        if self.clock.begins:
            self.decisions = gates

    def of_a_copy(self) -> ModelSteering:
        """That of a copy of the model, which is not steered."""
        return ModelSteering(TokenClock(self.clock.first))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No hooks for a while, whatever is put on or taken off meanwhile; passes of other threads wait."""
        with self.lock:
            self.hooks.close()
            self.pauses += 1
            try:
                yield
            finally:
                self.pauses -= 1

    def check_thread(self) -> None:
        """RuntimeError if the model is being steered in a `with` block of another thread."""
        if any(group.thread not in (None, threading.get_ident()) for group in self.groups):
            raise RuntimeError(
                "another thread steers this model in a `with` block, and both steerings would add up. Take turns, or "
                "give each thread a model of its own"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are of an unsteered model; RuntimeError for a steered one, whose hooks would act on."""
        if self.interventions and not self.pauses:
            raise RuntimeError(
                "this model is steered, and a copy would hold hooks that obey the first one: copy it inside "
                "`with wrapper.paused():`, or after wrapper.unsteer(), and steer the copy"
            )
        return ModelSteering, (TokenClock(self.clock.first),)


def check_unsteered(model: Any, purpose: str) -> None:
    """ValueError, with what is being done to it, if a model is steered while it should be itself."""
    state = vars(base_model(model)).get(STEERING)
    if state is not None and not state.pauses and any(edit.strengths.any() for edit in state.interventions):
        edits = "; ".join(map(str, state.interventions))
        raise ValueError(
            f"the model is being steered ({edits}), and {purpose} would be of the steered model: call "
            "SteeringWrapper(model).unsteer() first, or go on inside `with wrapper.paused():`"
        )
