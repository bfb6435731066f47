"""GridPlan: which cells a table has, what each of them asks, and which of them share a pass. Data; runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from operator import index
from typing import Any

from caa.callables import lasting_name
from caa.data.behaviors import Behavior, Question
from caa.data.chat import ChatFormat
from caa.runs.rows import OWN, QUESTIONS, TASKS, Cell, VectorRef
from caa.steering.intervention import Intervention, Setting, together
from caa.steering.operators import Operator, add
from caa.steering.scopes import Scope, after_prompt
from caa.vectors.vector import SteeringVector, random_like

AXES = ("layers", "multipliers", "finetunes", "tasks", "system_prompts")


@dataclass(frozen=True)
class Case:
    """One setting, and the cells that its answers belong to: one, but for the unsteered model, which has no layer."""

    setting: Setting
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Round:
    """What can share a pass: all settings of one task under one finetune and one system prompt."""

    finetune: str | None
    system_prompt: str
    task: str
    cases: tuple[Case, ...]
    """The unsteered model first, once for all layers."""


def check_setting(name: str, setting: Setting) -> None:
    """ValueError for what cannot be asked again by its name: no name, no intervention, more than one multiplier."""
    if not name or not setting or any(not isinstance(edit, Intervention) for edit in setting):
        raise ValueError(f"a named setting has a name and one or more interventions; this is {name!r}: {setting}")
    together([setting])
    for edit in setting:
        lasting_name(edit.operator)
        lasting_name(edit.where)


def with_random_vector(edit: Intervention, seed: int) -> Intervention:
    """The same edit along a random direction of the vector's length."""
    if not isinstance(edit.vector, SteeringVector):
        raise ValueError(f"a recording has no random direction of its length ({edit})")
    return replace(edit, vector=random_like(edit.vector, seed))


@dataclass(frozen=True, eq=False)
class GridPlan:
    """Every question of one behavior, under every finetune, layer and multiplier, and under every named setting.

    ValueError, when it is made, for a plan that no model could carry out.
    """

    behavior: Behavior
    vector: SteeringVector
    layers: Sequence[int] = ()
    """The blocks whose output is steered, one at a time, counted from 0; none where there are settings only."""
    multipliers: Sequence[float] = (-1.0, 0.0, 1.0)
    finetunes: Sequence[str | None] = (None,)
    """None for the base, or names of finetunes that the wrapper holds: adapters, several of them together
    ("helpful+positive"), full checkpoints."""
    tasks: Sequence[str] = ("ab", "open")
    """Some of "ab" (answers' probabilities), "open" (judged texts) and "facts" (two-answer knowledge)."""
    facts: Sequence[Question] = ()
    random_controls: int = 0
    """How many random directions of the vector's norm are asked the same."""
    also: Mapping[str, SteeringVector] = field(default_factory=dict)
    """Other directions by name that are asked the same: those of other behaviors, for instance."""
    reread: Mapping[str, SteeringVector] = field(default_factory=dict)
    """finetune -> the vector as it is read in that finetune; asked there as well."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """Whole settings by name, of one or several interventions each, that are asked beside or in place of layers."""
    operator: Operator = add
    where: Scope = after_prompt
    system_prompts: Sequence[str] = ("",)
    """"" for none, "positive" and "negative" for the first of the behavior's own, which comes behind `system`."""
    system: str | None = None
    template: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told by name: `enable_thinking`, `date_string`, ..."""
    max_new_tokens: int = 48
    control_finetunes: bool = True
    """Whether the random directions are asked of finetunes too, or of the base alone."""

    def __post_init__(self) -> None:
        # Layers may be of NumPy; rows and their record are JSON.
        object.__setattr__(self, "layers", [index(layer) for layer in self.layers])
        for edit in (self.operator, self.where):
            lasting_name(edit)
        for axis in AXES:
            values = list(getattr(self, axis))
            if (not values and not (axis == "layers" and self.settings)) or len(set(values)) < len(values):
                raise ValueError(f"a grid needs one or more {axis}, each once; these are {values}")
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown:
            raise ValueError(f"there is no task {unknown[0]!r}; there are {', '.join(TASKS)}")
        for task in self.tasks:
            self.questions(task)
        for prompt in self.system_prompts:
            self.system_of(prompt)
        for vector, layer in product(self.given_vectors, self.layers):
            vector.at(layer)
        for name, setting in self.settings.items():
            check_setting(name, setting)

    @property
    def given_vectors(self) -> list[SteeringVector]:
        """All but the random ones."""
        return [self.vector, *self.also.values(), *self.reread.values()]

    def system_of(self, prompt: str) -> str | None:
        """What the model is told before the question; ValueError for a prompt that the behavior does not have."""
        known = {"": ("",), **self.behavior.system_prompts}
        if not known.get(prompt):
            names = ", ".join(filter(None, known)) or "none"
            raise ValueError(f"{self.behavior.name} has no system prompt {prompt!r}; it has {names}")
        return " ".join(filter(None, (self.system, known[prompt][0]))) or None

    def chat(self, tokenizer: Any, prompt: str) -> ChatFormat:
        """How questions are put under one of the system prompts."""
        return ChatFormat(tokenizer, self.system_of(prompt), self.template, self.template_arguments)

    def questions(self, task: str) -> list[Question]:
        """What a task asks, each question once; ValueError if that is nothing."""
        if task == "facts" and not self.facts:
            raise ValueError('the task "facts" needs questions: give facts=[Question(...), ...], or leave it out')
        questions = self.facts if task == "facts" else self.behavior.require(QUESTIONS[task])
        return list({question.id: question for question in questions}.values())

    def cells(self) -> list[Cell]:
        """All cells of the finished table, in the order in which they are asked."""
        cells: list[Cell] = []
        for asked_together in self.rounds():
            for case in asked_together.cases:
                cells += case.cells
        return cells

    def rounds(self, *tasks: str) -> list[Round]:
        """What is asked, one after the other; of these tasks, or of all."""
        places = product(self.finetunes, self.system_prompts, tasks or self.tasks)
        return [Round(*place, tuple(self.cases(*place))) for place in places]

    def cases(self, finetune: str | None, prompt: str, task: str) -> list[Case]:
        """What is asked of one finetune with one system prompt."""
        unsteered = Cell(self.behavior.name, task, finetune, None, system_prompt=prompt)
        beside = [*(self.layers if 0 in self.multipliers else ()), *([None] if self.settings else [])]
        cases = [Case((), tuple(replace(unsteered, layer=layer) for layer in beside))] if beside else []
        steered = product(self.layers, self.directions(finetune).items(), filter(None, self.multipliers))
        for layer, (ref, vector), multiplier in steered:
            cell = Cell(self.behavior.name, task, finetune, layer, float(multiplier), prompt, ref)
            intervention = Intervention(vector, layer, multiplier, self.operator, self.where)
            cases.append(Case((intervention,), (cell,)))
        for ref, name, setting in self._settings_of(finetune):
            cell = replace(unsteered, multiplier=1.0, vector=ref, setting=name)
            cases.append(Case(setting, (cell,)))
        return cases

    def _settings_of(self, finetune: str | None) -> Iterator[tuple[VectorRef, str, Setting]]:
        """The named settings; with the grid's vector as it is read in this finetune; with random vectors."""
        again = self.reread.get(finetune) if finetune is not None else None
        for name, setting in self.settings.items():
            yield OWN, name, setting
            if again is not None and any(edit.vector is self.vector for edit in setting):
                edits = (replace(edit, vector=again) if edit.vector is self.vector else edit for edit in setting)
                yield VectorRef("reread"), name, tuple(edits)
            for seed in range(self._control_count(finetune)):
                yield VectorRef("random", str(seed)), name, tuple(with_random_vector(edit, seed) for edit in setting)

    def directions(self, finetune: str | None) -> dict[VectorRef, SteeringVector]:
        """What this finetune is steered by."""
        directions = {OWN: self.vector}
        if finetune is not None and finetune in self.reread:
            directions[VectorRef("reread")] = self.reread[finetune]
        others = {VectorRef("other", name): vector for name, vector in self.also.items()}
        return directions | others | (self._controls if self._control_count(finetune) else {})

    def _control_count(self, finetune: str | None) -> int:
        return self.random_controls if finetune is None or self.control_finetunes else 0

    @cached_property
    def _controls(self) -> dict[VectorRef, SteeringVector]:
        seeds = range(self.random_controls)
        return {VectorRef("random", str(seed)): random_like(self.vector, seed) for seed in seeds}
