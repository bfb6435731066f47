"""EvalGrid: finetune x layer x multiplier x question in one loop, to a file of rows that a killed job goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from operator import index
from pathlib import Path
from typing import Any

from tqdm import tqdm

from caa.callables import lasting_name
from caa.data.behaviors import Behavior, Question
from caa.data.chat import ChatFormat
from caa.evals.runner import Case, Session
from caa.evals.tasks import render_choices, render_prompts
from caa.extraction.norms import dose, stream_norms
from caa.files import only_writer
from caa.judges.base import Judge
from caa.models.fingerprint import fingerprint
from caa.models.names import model_name
from caa.runs.manifest import adapter_hash, questions_hash, record_run, vector_hash, versions
from caa.runs.rows import OWN, TASKS, Cell, VectorRef
from caa.steering.intervention import Intervention
from caa.steering.operators import Operator, add
from caa.steering.scopes import Scope, after_prompt
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector, random_like

ROWS, RECORD, LOCK = "rows.jsonl", "run.json", "run.lock"


@dataclass(frozen=True, eq=False)
class EvalGrid:
    """Every question of one behavior, under every finetune, layer and multiplier.

    Several grids, of one behavior each, may write into one folder, one after the other, if they ask the same model in
    the same way.
    """

    behavior: Behavior
    vector: SteeringVector
    layers: Sequence[int]
    """The blocks whose output is steered, one at a time, counted from 0."""
    multipliers: Sequence[float] = (-1.0, 0.0, 1.0)
    finetunes: Sequence[str | None] = (None,)
    """None for the base, or names of adapters that the wrapper holds."""
    tasks: Sequence[str] = ("ab", "open")
    """Some of "ab" (answers' probabilities), "open" (judged texts) and "facts" (two-answer knowledge)."""
    facts: Sequence[Question] = ()
    judge: Judge | None = None
    random_controls: int = 0
    """How many random directions of the vector's norm are asked the same."""
    also: Mapping[str, SteeringVector] = field(default_factory=dict)
    """Other directions by name that are asked the same: those of other behaviors, for instance."""
    reread: Mapping[str, SteeringVector] = field(default_factory=dict)
    """finetune -> the vector as it is read in that finetune; asked there as well."""
    operator: Operator = add
    where: Scope = after_prompt
    system_prompts: Sequence[str] = ("",)
    """"" for none, "positive" and "negative" for the first of the behavior's own, which comes behind `system`."""
    system: str | None = None
    template: str | None = None
    max_new_tokens: int = 48
    batch_size: int = 16
    """Plain texts in a forward pass; a question with all its branches counts as many as it has tokens for."""

    def __post_init__(self) -> None:
        # Layers may be of NumPy; rows and their record are JSON.
        object.__setattr__(self, "layers", [index(layer) for layer in self.layers])
        for how in (self.operator, self.where):
            lasting_name(how)
        for name in ("layers", "multipliers", "finetunes", "tasks", "system_prompts"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"a grid needs one or more {name}, each once; these are {values}")
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown:
            raise ValueError(f"there is no task {unknown[0]!r}; there are {', '.join(TASKS)}")
        if "open" in self.tasks and self.judge is None:
            raise ValueError("the open task needs a judge: give judge=ExemplarJudge.fit(behavior), or leave it out")
        for task in self.tasks:
            self.questions(task)
        for prompt in self.system_prompts:
            self.system_of(prompt)
        for vector, layer in product((self.vector, *self.also.values(), *self.reread.values()), self.layers):
            vector.at(layer)

    def system_of(self, prompt: str) -> str | None:
        """What the model is told before the question; ValueError for a prompt that the behavior does not have."""
        known = {"": ("",), **self.behavior.system_prompts}
        if not known.get(prompt):
            there = ", ".join(filter(None, known)) or "none"
            raise ValueError(f"{self.behavior.name} has no system prompt {prompt!r}; it has {there}")
        return " ".join(filter(None, (self.system, known[prompt][0]))) or None

    def chat(self, tokenizer: Any, prompt: str) -> ChatFormat:
        """How questions are put under one of the system prompts."""
        return ChatFormat(tokenizer, self.system_of(prompt), self.template)

    def questions(self, task: str) -> list[Question]:
        """What a task asks, each question once; ValueError if that is nothing."""
        if task == "facts" and not self.facts:
            raise ValueError('the task "facts" needs questions: give facts=[Question(...), ...], or leave it out')
        named = {"ab": "ab_questions", "open": "open_questions"}
        asked = self.facts if task == "facts" else self.behavior.require(named[task])
        return list({question.id: question for question in asked}.values())

    def cells(self) -> list[Cell]:
        """All cells of the finished table, in the order in which they are asked."""
        places = product(self.finetunes, self.system_prompts, self.tasks)
        return [cell for place in places for case in self.cases(*place) for cell in case.cells]

    def cases(self, finetune: str | None, prompt: str, task: str) -> list[Case]:
        """What is asked of one finetune with one system prompt; the unsteered model first, once for all layers."""

        def cell(layer: int, multiplier: float, ref: VectorRef) -> Cell:
            return Cell(self.behavior.name, task, finetune, layer, float(multiplier), prompt, ref)

        unsteered = Case((), tuple(cell(layer, 0, OWN) for layer in self.layers))
        steered = product(self.layers, self._directions(finetune).items(), filter(None, self.multipliers))
        return [unsteered] * (0 in self.multipliers) + [
            Case((Intervention(v, layer, m, self.operator, self.where),), (cell(layer, m, ref),))
            for layer, (ref, v), m in steered
        ]

    def _directions(self, finetune: str | None) -> dict[VectorRef, SteeringVector]:
        directions = {OWN: self.vector}
        if finetune is not None and finetune in self.reread:
            directions[VectorRef("reread")] = self.reread[finetune]
        directions |= {VectorRef("other", name): vector for name, vector in self.also.items()}
        return directions | {
            VectorRef("random", str(seed)): random_like(self.vector, seed) for seed in range(self.random_controls)
        }

    def run(self, wrapper: SteeringWrapper, tokenizer: Any, out: str | Path, progress: bool = True) -> int:
        """Ask whatever `<out>/rows.jsonl` does not hold yet; returns how many rows were added, 0 for a complete grid.

        Rows reach the disk after every batch, so a killed job goes on where it was. `<out>/run.json` says what they
        were measured with. ValueError, before anything is computed, if the rows there were measured otherwise, if the
        wrapper lacks an adapter or a layer, or if a question does not fit the model's context; BlockingIOError if
        another process is writing to the folder.
        """
        self._check(wrapper, tokenizer)
        with only_writer(Path(out) / LOCK):
            session = Session(self, wrapper, tokenizer, Path(out) / ROWS)
            self._record(session, Path(out) / RECORD)
            return self._ask(session, progress)

    def _record(self, session: Session, path: Path) -> None:
        if session.rows and not path.exists():
            raise ValueError(
                f"{session.path} holds rows, but there is no {path.name} that says of what; choose a new folder"
            )
        about = session.wrapper, session.tokenizer
        record_run(path, self._settings(*about), self._notes(*about), {cell for cell, _ in session.rows})

    def _ask(self, session: Session, progress: bool) -> int:
        with tqdm(total=len(session.missing()), unit="row", disable=not progress) as session.bar:
            for finetune in self.finetunes:
                with session.wrapper.finetune(finetune):
                    for prompt, task in product(self.system_prompts, self.tasks):
                        session.ask(finetune, prompt, task)
        return session.added

    def _check(self, wrapper: SteeringWrapper, tokenizer: Any) -> None:
        if wrapper.interventions:
            raise ValueError(
                "the wrapper is being steered already, so nothing would be unsteered: call unsteer() first"
            )
        strangers = [name for name in self.finetunes if name not in (None, *wrapper.adapters)]
        if strangers:
            base = "The base is None." if strangers[0] == "none" else "Load it: wrapper.load_adapter(path, name)."
            raise ValueError(
                f"the model holds no adapter {strangers[0]!r}; it holds {wrapper.adapters or 'none'}. {base}"
            )
        # Steering complains of a layer or a width that is not the model's.
        vectors = (self.vector, *self.also.values(), *self.reread.values())
        wrapper.steer(*(Intervention(vector, layer) for vector, layer in product(vectors, self.layers))).close()
        for prompt, task in product(self.system_prompts, self.tasks):
            chat = self.chat(tokenizer, prompt)
            if task == "open":
                render_prompts(wrapper, chat, self.questions(task), self.max_new_tokens)
            else:
                render_choices(wrapper, chat, self.questions(task))

    def _settings(self, wrapper: SteeringWrapper, tokenizer: Any) -> dict[str, Any]:
        """All that a row depends on and does not say itself."""
        model = wrapper.model
        asked: dict[str, dict[str, Any]] = {t: {"questions": questions_hash(self.questions(t))} for t in self.tasks}
        if "open" in asked:
            asked["open"] |= {"max_new_tokens": self.max_new_tokens, "judge": _described(self.judge)}
        adapters = {name: adapter_hash(model, name) for name in self.finetunes if name is not None}
        vectors = {"vector": vector_hash(self.vector), "reread": _hashes(self.reread), "also": _hashes(self.also)}
        steered = {name: lasting_name(getattr(self, name)) for name in ("operator", "where")}
        prompts = {prompt: self.system_of(prompt) for prompt in self.system_prompts if prompt}
        return {
            "model": {"fingerprint": fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")},
            "system": self.system,
            "template": self.template or tokenizer.chat_template,
            "behaviors": {
                self.behavior.name: {**vectors, "finetunes": adapters, "prompts": prompts, **steered, **asked},
            },
        }

    def _notes(self, wrapper: SteeringWrapper, tokenizer: Any) -> dict[str, Any]:
        vectors, doses = {self.behavior.name: asdict(self.vector.source)}, self._doses(wrapper, tokenizer)
        model = {"model": model_name(wrapper.model), "versions": versions()}
        return {**model, "vectors": vectors, "doses": {self.behavior.name: doses}}

    def _doses(self, wrapper: SteeringWrapper, tokenizer: Any) -> dict[int, float]:
        """layer -> relative dose of multiplier 1, beside the stream of the model without a finetune."""
        chat = self.chat(tokenizer, "")
        prompts = [chat.encode(question.text) for question in self.questions(self.tasks[0])]
        with wrapper.finetune(None):
            norms = stream_norms(wrapper.model, tokenizer, prompts, self.layers, batch_size=self.batch_size)
        return {layer: dose(self.vector, layer, 1.0, norms) for layer in self.layers}


def _hashes(vectors: Mapping[str, SteeringVector]) -> dict[str, str]:
    return {name: vector_hash(vector) for name, vector in vectors.items()}


def _described(judge: Any) -> dict[str, Any]:
    """A judge's name, its accuracy where it knows it, and how it asks; no key is among its settings."""
    name = getattr(judge, "__name__", type(judge).__name__)
    return {"name": name, "accuracy": getattr(judge, "accuracy", None), **getattr(judge, "settings", {})}
