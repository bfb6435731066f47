"""One experiment from words to tables: find vectors, finetune for and against, steer every model, ask, report."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from caa.data.behaviors import Behavior, Question
from caa.data.chat import ChatFormat
from caa.data.sources import BUILTIN, IN_WORDS, PUBLIC, load_behavior, load_facts
from caa.files import only_writer, replacing
from caa.judges.config import OFFLINE, JudgeConfig
from caa.preflight import (
    amounts_of,
    behavior_problems,
    finetune_problems,
    folder_problems,
    judge_problems,
    model_config,
    model_problems,
    multiplier_problems,
    refuse,
    unit_problems,
)
from caa.reports.tables import Table, best_layer, finetune_tables, to_markdown, write_report
from caa.runs.rows import read_rows
from caa.steering.settings_file import read_settings, says_doses
from caa.suggestions import did_you_mean
from caa.training.config import FULL_RATE, FinetuneConfig, Training
from caa.untrusted import check_fields, read_yaml
from caa.vectors.vector import SteeringVector, rescaled_alike, set_mean_normalize

if TYPE_CHECKING:
    from caa.evals.grid import EvalGrid
    from caa.steering.intervention import Intervention

SETTINGS = "experiment.yaml"
"""What an experiment was told, in its folder; `caa run` reads it as any other config."""
MEASURED = 64
"""Prompts of each behavior by which the length of the stream is taken."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A finetune x multiplier table: what is asked of which model, how it is steered, where the results go.

    Every step leaves its result in `out` and is skipped when it is there, so a stopped experiment goes on when it is
    run again, and `rows.jsonl` only ever grows.
    """

    out: Path
    behaviors: Sequence[str] = BUILTIN
    """Built-in names, or paths that `load_behavior` understands."""
    model: str = "tiny-chat"
    layer: int | None = None
    """The layer to steer (output of that block, counted from 0); None chooses on the validation questions."""
    multipliers: Sequence[float] | None = None
    """How often the vector is added; None goes by doses."""
    doses: Sequence[float] | None = None
    """The push beside the length of the residual stream, at each layer; -0.25, 0 and 0.25 if there are no multipliers
    either. The rows' multipliers are then doses: the vectors are taken at the length of the stream."""
    layers: Sequence[int] = ()
    """Those that are tried when one is chosen; none given are all."""
    token: Literal["parting", "last", "mean"] | int = "parting"
    """Where answers are read: "parting" (the first token that differs: the letter), "mean" over the answer (for answers
    in words), "last", or a token's number."""
    finetunes: Sequence[str] = ("none", "positive", "negative")
    """The columns: "none" (the base), "positive" and "negative" (LoRAs by SFT), the names in `trainings` and `given`,
    and several adapters together ("positive+mine")."""
    tasks: Sequence[str] = ("ab", "open")
    facts: str | None = None
    """For the task "facts": "facts" (built in), or a file of two-option questions in CAA's MMLU format."""
    set_mean_norm: bool = False
    """Rescale the vectors to their mean norm, as the paper did, so that one multiplier pushes all behaviors alike."""
    random_controls: int = 0
    """Random directions of the same norm, asked the same questions. One is no control: three differ as much as they do
    from the vector."""
    control_finetunes: bool = True
    """Whether they are asked of the finetunes too, or of the base alone."""
    damage: int = 0
    """How many open answers of each cell are measured by what the base, unsteered, thinks of them: perplexity beside
    loops in `damage.csv`."""
    system_prompts: Sequence[Literal["", "positive", "negative"]] = ("",)
    """"" for none, and the behavior's own: prompting beside finetuning and steering, and their combinations."""
    others: bool = False
    """Ask each behavior under the vectors of the others too, to see what a vector is about."""
    reread: bool = False
    """Read the vector in each finetune again, and steer that finetune by it as well (a line "own" of the tables)."""
    training: FinetuneConfig | None = None
    """The settings of all finetunes that are made here; where all weights learn, they do at a tenth of the learning
    rate. None takes those that suit the method, the model's size and the number of examples."""
    judge: JudgeConfig = OFFLINE
    """Who scores open answers: the offline exemplar judge, a served model, a local one, or an embedding."""
    judges: Mapping[str, JudgeConfig] = field(default_factory=dict)
    """Another judge for the behaviors of these names."""
    limit: int | None = None
    """Ask only the first questions of each kind, as a trial; None asks all."""
    max_new_tokens: int = 48
    batch_size: int = 16
    answers_at_once: int | None = None
    """Open answers that are written at once; None takes as many as memory is there for, 256 at most."""
    dtype: str = "auto"
    device: str = "auto"
    template: str | None = None
    """A chat template (Jinja) in place of the tokenizer's own."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """What the chat template is told by name: `enable_thinking`, `date_string`, ..."""
    trainings: Mapping[str, Training] = field(default_factory=dict)
    """Other finetunes that are made here, by name: by DPO or KTO, of all weights, trained while steered."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Finetunes that are there already, by name: the folder of an adapter, or a full checkpoint of the same base.
    "{behavior}" in it is the name of the behavior that is asked: each has its own then."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Whole settings by name that are asked beside the multipliers, as in a file of settings: {"zero-out": {"operator":
    "ablate"}}. Each behavior's own vector and the experiment's layer where they name none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        if not self.behaviors:
            raise ValueError(f"no behavior to work on; built in are {', '.join(BUILTIN)}")

    @property
    def amounts(self) -> Sequence[float]:
        """How much of the vector is added: the multipliers of the rows."""
        return amounts_of(self.multipliers, self.doses)

    @property
    def in_doses(self) -> bool:
        return self.multipliers is None

    def run(self) -> list[Table]:
        """Do what is missing and return the tables, which are also in `out` (`tables.md`, `.csv`, `.tex`).

        Whatever is in `out` already must be of this model and these behaviors: FileExistsError if vectors,
        adapters or rows are not; BlockingIOError if another process runs an experiment there.
        """
        behaviors = self.load_behaviors()
        refuse(self.problems(behaviors))
        with only_writer(self.out / "experiment.lock"):
            self.keep_settings()
            return self._run(behaviors)

    def load_behaviors(self) -> list[Behavior]:
        """All of them; ValueError if two have one name, for vectors and rows are kept by it."""
        behaviors, problems = [], []
        for name in self.behaviors:
            try:
                behaviors.append(load_behavior(name).first_questions(self.limit))
            except (ValueError, OSError) as error:
                problems.append(str(error))
        refuse(problems)
        names = [behavior.name for behavior in behaviors]
        if twice := {name for name in names if names.count(name) > 1}:
            given = [str(path) for path, name in zip(self.behaviors, names, strict=True) if name in twice]
            raise ValueError(f'{", ".join(given)} have one name, {min(twice)!r}: give each file a "name" of its own')
        return behaviors

    def load_facts(self) -> tuple[Question, ...]:
        """The knowledge questions; none if there are to be none."""
        return load_facts(self.facts)[: self.limit] if self.facts else ()

    def problems(self, behaviors: Sequence[Behavior]) -> Iterator[str]:
        """Everything that would stop this experiment, as far as it shows before any weights are loaded."""
        yield from folder_problems(self.out)
        yield from model_problems(self.model, self.dtype, self.device, [] if self.layer is None else [self.layer])
        yield from multiplier_problems(self.amounts, choose_layer=self.layer is None)
        yield from unit_problems(self.multipliers, self.doses)
        yield from self._column_problems()
        yield from self._setting_problems()
        if self.in_doses and self.set_mean_norm:
            yield "set_mean_norm rescales the vectors to each other and doses to the stream: say multipliers with it"
        parts = ["pairs", *(["validation_questions"] if self.layer is None else [])]
        for behavior in behaviors:
            yield from behavior_problems(behavior, self.tasks, facts=bool(self.facts), parts=parts)
            yield from self._training_problems(behavior)
            yield from finetune_problems(self.brought(behavior), self.model)
            for prompt in self.system_prompts:
                if prompt and not behavior.system_prompts.get(prompt):
                    yield f"behavior {behavior.name!r} has no {prompt} system prompt, and system_prompts asks for one"
            if "open" in self.tasks:
                yield from judge_problems(self.judges.get(behavior.name, self.judge), behavior)
        try:
            self.load_facts()
        except (ValueError, OSError) as error:
            yield str(error)

    def _parts(self) -> list[str]:
        """The finetunes that the columns are of, each once; several together are several."""
        known = ("none", *self.trainings, *self.given)
        parts = [[column] if column in known else column.split("+") for column in self.finetunes]
        return [part for part in dict.fromkeys(chain.from_iterable(parts)) if part != "none"]

    @property
    def made(self) -> dict[str, Training]:
        """The finetunes to make, by name."""
        known = {"positive": Training("positive"), "negative": Training("negative"), **self.trainings}
        return {name: known[name] for name in self._parts() if name in known and name not in self.given}

    def _column_problems(self) -> Iterator[str]:
        known = ("none", "positive", "negative", *self.trainings, *self.given)
        for name in self._parts():
            if name not in known:
                yield f"there is no finetune {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}"
        if twice := self.trainings.keys() & self.given.keys():
            yield f"the finetune {min(twice)!r} is both to be trained and given: choose another name for one"

    def brought(self, behavior: Behavior) -> dict[str, Path]:
        """The finetunes that are there already and asked about one behavior: name -> folder, or name on the Hub."""
        places = {name: path.replace("{behavior}", behavior.name) for name, path in self.given.items()}
        return {name: Path(places[name]) for name in self._parts() if name in places}

    def _setting_problems(self) -> Iterator[str]:
        try:
            depth = model_config(self.model).num_hidden_layers
        except ValueError:
            return  # which is a problem of the model
        stand_in = SteeringVector({number: torch.ones(1) for number in range(depth)})
        layer = depth - 1 if self.layer is None else self.layer
        try:
            read_settings(self.settings, stand_in, layer=layer, norms=stand_in.norms())
        except ValueError as error:
            yield str(error)

    def _training_problems(self, behavior: Behavior) -> Iterator[str]:
        from caa.training.examples import training_examples

        for training in self.made.values():
            try:
                if behavior.pairs:
                    training_examples(behavior, training.direction)
            except ValueError as error:
                yield str(error)

    def keep_settings(self) -> None:
        """Write what this experiment was told to `<out>/experiment.yaml`, paths of behaviors in full."""
        settings = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        settings["behaviors"] = [_place(name) for name in self.behaviors]
        with replacing(self.out / SETTINGS) as scratch:
            scratch.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def _run(self, behaviors: Sequence[Behavior]) -> list[Table]:
        from caa.models.loading import load_model

        model, tokenizer = load_model(self.model, dtype=self.dtype, device=self.device)
        vectors = self.find_vectors(model, tokenizer, behaviors)
        layer = self.choose_layer(model, tokenizer, behaviors, vectors) if self.layer is None else self.layer
        for behavior in behaviors:
            self.measure(model, tokenizer, behavior, vectors, layer)
        if self.damage and "open" in self.tasks:
            from caa.run_damage import write_damage

            chat, size = self._chat(tokenizer), self.batch_size
            write_damage(self.out, model, chat, self.damage, vectors, batch_size=size)
        return write_report(self.out)

    def find_vectors(self, model: Any, tokenizer: Any, behaviors: Sequence[Behavior]) -> Mapping[str, SteeringVector]:
        """Behavior name -> its vector, all layers, read in the model as it is before any finetune."""
        vectors = {behavior.name: self._vector(model, tokenizer, behavior, behavior.name) for behavior in behaviors}
        if self.in_doses:
            return self._to_doses(model, tokenizer, behaviors, vectors)
        return set_mean_normalize(vectors) if self.set_mean_norm else vectors

    def _chat(self, tokenizer: Any) -> ChatFormat:
        return ChatFormat(tokenizer, template=self.template, arguments=self.template_arguments)

    def _to_doses(
        self, model: Any, tokenizer: Any, behaviors: Sequence[Behavior], vectors: Mapping[str, SteeringVector]
    ) -> dict[str, SteeringVector]:
        """The vectors at the length of the residual stream at the last prompt token, over the first pairs."""
        from caa.extraction.doses import prompt_profiles, to_doses
        from caa.extraction.norms import peaks

        prompts = [pair.text for behavior in behaviors for pair in behavior.require("pairs")[:MEASURED]]
        profiles = prompt_profiles(model, self._chat(tokenizer), prompts, batch_size=self.batch_size)
        for words in peaks(profiles):
            logger.info(words)
        return {name: to_doses(vector, profiles) for name, vector in vectors.items()}

    def _vector(self, model: Any, tokenizer: Any, behavior: Behavior, file: str) -> SteeringVector:
        """The behavior's vector in the model as it is now, from its file once it has been read."""
        from caa.extraction.vector_file import load_or_extract

        path, pairs = self.out / "vectors" / f"{file}.safetensors", behavior.require("pairs")
        chat = self._chat(tokenizer)
        size = self.batch_size
        return load_or_extract(path, model, chat, pairs, token=self.token, behavior=behavior.name, batch_size=size)

    def choose_layer(
        self, model: Any, tokenizer: Any, behaviors: Sequence[Behavior], vectors: Mapping[str, SteeringVector]
    ) -> int:
        """The layer at which the vectors move their own validation questions most beyond those of other behaviors."""
        from caa.steering.wrapper import SteeringWrapper

        out, wrapper = self.out / "validation", SteeringWrapper(model)
        grids = [self.validation_grid(behavior, vectors) for behavior in behaviors]
        for grid in grids:
            grid.run(wrapper, tokenizer, out)
        cells = {cell for grid in grids for cell in grid.cells()}  # another run may have left others in the folder
        layer = best_layer([row for row in read_rows(out / "rows.jsonl") if row.cell in cells])
        logger.info("layer %d moves the validation questions most", layer)
        return layer

    def validation_grid(self, behavior: Behavior, vectors: Mapping[str, SteeringVector]) -> EvalGrid:
        """What a layer is chosen by: the validation questions at all layers, under the vectors of all behaviors."""
        from caa.evals.grid import EvalGrid

        questions = dataclasses.replace(behavior, ab_questions=behavior.require("validation_questions"))
        vector = vectors[behavior.name]
        others = {name: other for name, other in vectors.items() if name != behavior.name}
        return EvalGrid(
            questions,
            vector,
            self.layers or vector.layers,
            self.amounts,
            tasks=("ab",),
            also=others,
            template=self.template,
            template_arguments=self.template_arguments,
            batch_size=self.batch_size,
        )

    def measure(
        self, model: Any, tokenizer: Any, behavior: Behavior, vectors: Mapping[str, SteeringVector], layer: int
    ) -> None:
        """Finetune for one behavior, ask every finetune at every multiplier, keep the rows and a steered adapter."""
        from caa.steering.wrapper import SteeringWrapper

        vector = vectors[behavior.name]
        folders = self.finetune(model, tokenizer, behavior, vector, layer) | self.brought(behavior)
        norms = self._stream(model, tokenizer, behavior, vector)
        wrapper = SteeringWrapper(model)
        for name in self._parts():
            wrapper.load_finetune(folders[name], name)
        reread = self.reread_vectors(wrapper, tokenizer, behavior, vector) if self.reread else {}
        judge = self.make_judge(behavior) if "open" in self.tasks else None
        self.grid(behavior, vectors, layer, reread, judge, norms).run(wrapper, tokenizer, self.out)
        self.keep_steered(wrapper, tokenizer, behavior, vector, layer)
        wrapper.unload_adapters()

    def _stream(
        self, model: Any, tokenizer: Any, behavior: Behavior, vector: SteeringVector
    ) -> Mapping[int, float] | None:
        """layer -> the length of the stream, where settings say doses of it; a vector in doses is as long already."""
        if self.in_doses or not says_doses(self.settings):
            return None
        from caa.extraction.doses import prompt_profiles

        prompts = [pair.text for pair in behavior.require("pairs")[:MEASURED]]
        profiles = prompt_profiles(model, self._chat(tokenizer), prompts, batch_size=self.batch_size)
        return {layer: profile.short_norm for layer, profile in profiles.items()}

    def grid(
        self,
        behavior: Behavior,
        vectors: Mapping[str, SteeringVector],
        layer: int,
        reread: Mapping[str, SteeringVector],
        judge: Any,
        norms: Mapping[int, float] | None = None,
    ) -> EvalGrid:
        """What is asked of one behavior: its questions, under every finetune, multiplier and named setting.

        `norms` are the lengths of the stream that doses in settings are shares of; None takes those of the vector.
        """
        from caa.evals.grid import EvalGrid

        vector = vectors[behavior.name]
        others = {name: vector for name, vector in vectors.items() if self.others and name != behavior.name}
        return EvalGrid(
            behavior,
            vector,
            [layer],
            self.amounts,
            [None if name == "none" else name for name in self.finetunes],
            self.tasks,
            facts=self.load_facts(),
            random_controls=self.random_controls,
            control_finetunes=self.control_finetunes,
            also=others,
            reread=reread,
            settings=read_settings(self.settings, vector, layer=layer, norms=norms or vector.norms()),
            system_prompts=self.system_prompts,
            judge=judge,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            answers_at_once=self.answers_at_once,
            template=self.template,
            template_arguments=self.template_arguments,
        )

    def reread_vectors(
        self, wrapper: Any, tokenizer: Any, behavior: Behavior, vector: SteeringVector
    ) -> dict[str, SteeringVector]:
        """Finetune -> the behavior's vector as it is read in that finetune, rescaled as `vector` was."""
        reread = {}
        for name in self.finetunes:
            if name == "none":
                continue
            with wrapper.finetune(name):
                reread[name] = self._vector(wrapper.model, tokenizer, behavior, f"{behavior.name}-{name}")
        if not (self.set_mean_norm or self.in_doses):
            return reread
        with wrapper.finetune(None):
            plain = self._vector(wrapper.model, tokenizer, behavior, behavior.name)
        return {name: rescaled_alike(own, plain, vector) for name, own in reread.items()}

    def finetune(
        self, model: Any, tokenizer: Any, behavior: Behavior, vector: SteeringVector, layer: int
    ) -> dict[str, Path]:
        """Name -> the folder of the finetune, made where it is not there."""
        return {
            name: self._train(model, tokenizer, behavior, training, name, self._push(training, vector, layer))
            for name, training in self.made.items()
        }

    def _push(self, training: Training, vector: SteeringVector, layer: int) -> list[Intervention]:
        from caa.steering.intervention import Intervention
        from caa.steering.scopes import everywhere

        return [Intervention(vector, layer, training.steered, where=everywhere)] if training.steered else []

    def _train(
        self,
        model: Any,
        tokenizer: Any,
        behavior: Behavior,
        training: Training,
        name: str,
        steered_by: Sequence[Intervention],
    ) -> Path:
        from caa.training.examples import training_examples
        from caa.training.sft import config_for, finetune

        out, direction = self.out / "adapters" / f"{behavior.name}-{name}", training.direction
        method, weights = training.method, training.weights
        if self.training is None:
            config = config_for(model, training_examples(behavior, direction), method, weights)
        else:
            rate = self.training.learning_rate * (FULL_RATE if weights == "full" else 1)
            config = dataclasses.replace(self.training, method=method, weights=weights, learning_rate=rate)
        return finetune(model, self._chat(tokenizer), behavior, direction, out, config, steered_by=steered_by)

    def make_judge(self, behavior: Behavior) -> Any:
        """A judge of this behavior; the exemplar judge knows the other behaviors' answers as off topic."""
        from caa.judges.build import make_judge

        others = [load_behavior(name) for name in dict.fromkeys((*self.behaviors, *BUILTIN))]
        config = self.judges.get(behavior.name, self.judge)
        return make_judge(config, behavior, self.out, [other for other in others if other.name != behavior.name])

    def keep_steered(
        self, wrapper: Any, tokenizer: Any, behavior: Behavior, vector: SteeringVector, layer: int
    ) -> Path:
        """Save the strongest setting, the positive finetune steered by the largest multiplier, as one artefact."""
        from caa.steering.intervention import Intervention

        name = "positive" if "positive" in wrapper.adapters else None
        with wrapper.finetune(name), wrapper.steer(Intervention(vector, layer, max(self.amounts))):
            folder = self.out / "steered" / behavior.name
            return Path(wrapper.save_pretrained(folder, tokenizer, results=self.measured(behavior)))

    def measured(self, behavior: Behavior) -> str:
        """The tables of one behavior, in Markdown."""
        rows = [row for row in read_rows(self.out / "rows.jsonl") if row.cell.behavior == behavior.name]
        return "\n".join(map(to_markdown, finetune_tables(rows, model=self.model)))


def _place(name: str) -> str:
    """How a behavior is found from any working folder."""
    return name if name in (*BUILTIN, *IN_WORDS) or name.startswith(PUBLIC) else str(Path(name).expanduser().absolute())


def behaviors_of_run(folder: str | Path, names: Iterable[str]) -> dict[str, Behavior]:
    """The behaviors that a run's rows name: from where its experiment found them, else by their name."""
    loaded = [load_behavior(place) for place in _recorded(folder).get("behaviors", ())]
    known = {behavior.name: behavior for behavior in loaded}
    return {name: known[name] if name in known else load_behavior(name) for name in names}


def _recorded(folder: str | Path) -> dict[str, Any]:
    """What the experiment of a folder was told; {} where there was none, ValueError for what no experiment writes."""
    settings = Path(folder) / SETTINGS
    content = (read_yaml(settings) or {}) if settings.exists() else {}
    hints = {"behaviors": list[str], "given": dict[str, str]}
    return check_fields(content, hints, str(settings), required=False)


def finetunes_of_run(folder: str | Path, behavior: str, columns: Iterable[str]) -> dict[str, Path]:
    """name -> where the finetune lies, for those that a behavior's columns are of, several together each for itself;
    what is there no longer is left out."""
    given = {name: path.replace("{behavior}", behavior) for name, path in _recorded(folder).get("given", {}).items()}

    def place(name: str) -> Path:
        return Path(given[name] if name in given else Path(folder) / "adapters" / f"{behavior}-{name}")

    names = [[column] if place(column).exists() else column.split("+") for column in columns]
    return {name: place(name) for name in chain.from_iterable(names) if place(name).exists()}
