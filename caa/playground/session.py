"""A model, vectors and settings in; two streamed answers, unsteered and steered, out. Knows no page."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from threading import Event, Lock
from typing import Any, cast

import torch

from caa.data.behaviors import Message
from caa.data.chat import ChatFormat
from caa.data.sources import BUILTIN, load_behavior
from caa.extraction.extract import extract
from caa.extraction.norms import dose, multiplier_of, stream_norms
from caa.models.blocks import check_layer, context_length, decoder_blocks, model_width
from caa.models.names import EMBEDDED, model_name
from caa.models.sites import BLOCK_OUTPUT
from caa.playground.streaming import Answer, Step, generated, spoken
from caa.serve.sampling import Sampling
from caa.steering.intervention import Intervention, together
from caa.steering.operators import add
from caa.steering.scopes import SCOPES
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector

LONGEST = 8_000
"""Characters in a question or a system prompt."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


CHOICES = tuple(name for name, scope in SCOPES.items() if not isinstance(scope, type))
"""The scopes that need no numbers of their own."""


@dataclass(frozen=True)
class Setting:
    """One way to steer. A vector with multiplier 0 does nothing, and may still color the tokens."""

    layer: int
    """The block whose output is steered, counted from 0."""
    vectors: Mapping[str, float] = field(default_factory=dict)
    """Names of vectors -> multipliers."""
    finetune: str | None = None
    """The finetune that both sides wear, None for the base."""
    scope: str = "after_prompt"
    system: str = ""
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 takes the most probable token each time."""
    seed: int = 0
    """Of what is drawn, for both sides the same."""

    def __post_init__(self) -> None:
        if self.scope not in CHOICES:
            raise ValueError(f"there is no scope {self.scope!r}; choose one of {', '.join(CHOICES)}")
        if wrong := [name for name, multiplier in self.vectors.items() if not math.isfinite(multiplier)]:
            raise ValueError(f"the multiplier of {wrong[0]!r} is no number; move its slider")
        if self.layer < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"layers count from 0 and an answer has at least one token; "
                f"these are layer {self.layer} and {self.max_new_tokens} tokens"
            )
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"a temperature is 0 or more, this is {self.temperature}")


def start_from(
    interventions: Sequence[Intervention], finetunes: Sequence[str] = ()
) -> tuple[dict[str, SteeringVector], Setting]:
    """The vectors of a steered adapter by name, and the setting that it is; ValueError for one that the page has no
    controls for."""
    unlike = {(edit.layer, edit.where) for edit in interventions}
    scopes = [name for name in CHOICES if interventions and SCOPES[name] == interventions[0].where]
    if len(unlike) != 1 or not scopes or not all(map(_is_plain, interventions)):
        shown = "; ".join(map(str, interventions)) or "no vector"
        raise ValueError(
            f"the playground adds vectors at one layer, on the tokens of one scope ({', '.join(CHOICES)}), and this "
            f"adapter is {shown}"
        )
    vectors: dict[str, SteeringVector] = {}
    multipliers: dict[str, float] = {}
    for edit in interventions:
        vector = cast(SteeringVector, edit.vector)
        name = _new_name(vector.source.behavior or "vector", vectors)
        vectors[name], multipliers[name] = vector, edit.strengths.item()
    worn = "+".join(finetunes) or None
    return vectors, Setting(interventions[0].layer, multipliers, worn, scopes[0])


def _is_plain(edit: Intervention) -> bool:
    """Whether sliders say all of it."""
    direct = edit.source_layer in (None, edit.layer) and edit.place == BLOCK_OUTPUT
    single = isinstance(edit.vector, SteeringVector) and edit.strengths.numel() == 1
    return direct and single and edit.operator is add and edit.gate is None


def _new_name(name: str, taken: Collection[str]) -> str:
    """
    >>> _new_name("one", []), _new_name("one", ["one", "one 2"])
    ('one', 'one 3')
    """
    return next(n for n in chain([name], (f"{name} {number}" for number in count(2))) if n not in taken)


class Session:
    """One model for one person. A lock lets one thing at a time use it; nothing stays on it afterwards."""

    def __init__(
        self,
        wrapper: SteeringWrapper,
        chat: ChatFormat | Any,
        vectors: Mapping[str, SteeringVector] | None = None,
        out: str | Path = "runs/playground",
        dose: float | None = None,
        layer: int | None = None,
        start: Setting | None = None,
    ) -> None:
        """Without `vectors` the built-in behaviors are offered, each found in this model when it is first asked for.

        Their sliders begin at the `dose`, beside the stream of the base, and at the `layer`, or all controls at the
        setting `start`. ValueError for a vector that is not as wide as the stream.
        """
        self.dose = dose
        self.layer = layer
        self.start = start
        self.wrapper, self.chat, self.out = wrapper, ChatFormat.of(chat), Path(out)
        self.wrapper.keep_checkpoints()  # they are asked by turns
        self.tokenizer = self.chat.tokenizer
        self.names = tuple(vectors or BUILTIN)
        self._vectors = dict(vectors or {})
        self._norms: dict[str | None, dict[int, float]] = {}
        self._lock = Lock()
        for name, vector in self._vectors.items():
            if vector.width != (width := model_width(wrapper.model)):
                raise ValueError(
                    f"the vector {name!r} is {vector.width} wide, and the residual stream of {self.model} {width}: it "
                    "is of another model, or of another place in it"
                )

    @property
    def model(self) -> str:
        return model_name(self.wrapper.model)

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return len(decoder_blocks(self.wrapper.model))

    @property
    def first_layer(self) -> int:
        """A layer to begin with: the one asked for, or near where the CAA paper steers (layer 13 of 32)."""
        if self.start is not None:
            return self.start.layer
        return round(0.4 * self.layers) if self.layer is None else self.layer

    @property
    def question(self) -> str:
        """One to begin with, which suits the first vector."""
        return load_behavior(self.names[0]).open_questions[0].text if self.names[0] in BUILTIN else ""

    def multiplier(self, name: str, layer: int) -> float:
        """One to begin with: that of `start`; of the dose asked for; that of an embedded model's card; or a fifth of
        `reach`."""
        if self.start is not None and name in self.start.vectors:
            return self.start.vectors[name]
        if self.dose is not None:
            exact = multiplier_of(self.vector(name), layer, self.dose, self._stream_norms(None))
            return float(f"{exact:.2g}")
        return 0.3 if self.model in EMBEDDED else self.reach(name, layer) / 5

    def reach(self, name: str, layer: int) -> float:
        """The multiplier whose push is as long as the residual stream, or that of `start` if it is larger, rounded up
        to 1, 2 or 5 times a power of ten."""
        begin = abs(self.start.vectors.get(name, 0.0)) if self.start is not None else 0.0
        return _round_up(max(begin, multiplier_of(self.vector(name), layer, 1.0, self._stream_norms(None))))

    def vector(self, name: str) -> SteeringVector:
        """One of the vectors on offer; a built-in behavior's is found in the base model the first time."""
        if name not in self.names:
            raise ValueError(f"there is no vector {name!r}; there are {', '.join(self.names)}")
        if name in self._vectors:  # and nobody waits for an answer that is being written
            return self._vectors[name]
        with self._lock:
            if name not in self._vectors:
                pairs = load_behavior(name).pairs
                with self.wrapper.finetune(None):
                    vector = extract(self.wrapper.model, self.chat, pairs, behavior=name)
                self._vectors[name] = vector
        return self._vectors[name]

    def has(self, name: str) -> bool:
        """Whether this vector is found already."""
        return name in self._vectors

    @property
    def is_busy(self) -> bool:
        """Whether the model is in use."""
        return self._lock.locked()

    @contextmanager
    def _in_turn(self, stop: Event) -> Iterator[None]:
        """Alone with the model, or stopped before that."""
        while not (alone := self._lock.acquire(timeout=0.05)) and not stop.is_set():
            pass
        try:
            yield
        finally:
            if alone:
                self._lock.release()

    def wait(self, stop: Event) -> None:
        """Until nobody uses the model, or `stop` is set."""
        with self._in_turn(stop):
            pass

    def interventions(self, setting: Setting) -> tuple[Intervention, ...]:
        """What the setting does to the model; vectors with multiplier 0 do nothing."""
        scope = SCOPES[setting.scope]
        active = {name: multiplier for name, multiplier in setting.vectors.items() if multiplier}
        return tuple(Intervention(self.vector(name), setting.layer, m, where=scope) for name, m in active.items())

    def answer(
        self, histories: Sequence[Sequence[Message]], setting: Setting, stop: Event | None = None
    ) -> Generator[tuple[Answer, Answer]]:
        """The unsteered and the steered answer to the two conversations, again and again as they grow.

        They are two rows of one batch, the multipliers of the first being 0: each is what it would be alone. Both
        yielded objects are the same every time. ValueError for a conversation that the model cannot read. Closing the
        iterator ends the generation; once `stop` is set, they end where they are.
        """
        prompts = [self._prompt(history, setting.system) for history in histories]
        check_layer(self.wrapper.model, setting.layer)
        names = list(setting.vectors)
        directions = [self.vector(name).at(setting.layer) for name in names]
        stacked = torch.stack(directions) if directions else torch.zeros(0, model_width(self.wrapper.model))
        steering = together([(), self.interventions(setting)])
        room = min(setting.max_new_tokens, self._room(prompts))

        sampling = Sampling(setting.temperature, seed=setting.seed)

        def work(say: Any, stop: Event) -> None:
            with self._in_turn(stop):
                if stop.is_set():
                    return
                with self.wrapper.finetune(setting.finetune), self.wrapper.steer(*steering):
                    generated(self.wrapper, prompts, room, setting.layer, stacked, say, stop, sampling)

        answers = Answer(self.tokenizer), Answer(self.tokenizer)
        with closing(spoken(work, stop)) as steps:
            for step in steps:
                _grow(answers, step, names)
                yield answers
        for answer in answers:
            answer.end()
        yield answers

    def _prompt(self, history: Sequence[Message], system: str) -> list[int]:
        longest = max(len(system), *(len(message["content"]) for message in history if message["role"] == "user"))
        if longest > LONGEST:
            raise ValueError(f"a text of {longest:,} characters is too long; the playground takes at most {LONGEST:,}")
        first = [{"role": "system", "content": system}] if system.strip() else []
        return self.chat.encode_chat([*first, *history])

    def _room(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that the context has left behind the longer conversation: at least one, or ValueError."""
        context, longest = context_length(self.wrapper.model, self.tokenizer), max(map(len, prompts))
        if longest >= context:
            raise ValueError(
                f"the conversation is {longest} tokens long and this model reads at most {context}, its answer "
                "included. Clear the conversation, or ask something shorter."
            )
        return context - longest

    def pushes(self, setting: Setting) -> dict[str, float]:
        """How long each push is relative to the residual stream at the end of short questions; see `steering.doses`."""
        norms = self._stream_norms(setting.finetune) if setting.vectors else {}
        return {name: dose(self.vector(name), setting.layer, m, norms) for name, m in setting.vectors.items()}

    def _stream_norms(self, finetune: str | None) -> dict[int, float]:
        if finetune not in self._norms:
            texts = [load_behavior(name).open_questions[0].text for name in BUILTIN]
            prompts = [self.chat.encode(text) for text in texts]
            with self._lock, self.wrapper.finetune(finetune):
                self._norms[finetune] = stream_norms(self.wrapper.model, self.tokenizer, prompts)
        return self._norms[finetune]

    def save(self, name: str, setting: Setting) -> Path:
        """Write the setting as a steered adapter, a new folder in `out`; its path. Nothing is ever overwritten."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name for a folder: use up to 64 letters, digits, - and _")
        interventions, folder = self.interventions(setting), self.out / name
        if not interventions and setting.finetune is None:
            raise ValueError("this setting is the model as it is: choose a finetune, or a vector with a multiplier")
        with self._lock, self.wrapper.finetune(setting.finetune), self.wrapper.steer(*interventions):
            if folder.exists():
                raise FileExistsError(f"{folder} is there already; choose another name")
            return self.wrapper.save_pretrained(folder, self.tokenizer)


def _round_up(number: float) -> float:
    """
    >>> [_round_up(number) for number in (0.03, 1.0, 1.2, 34)]
    [0.05, 1.0, 2.0, 50.0]
    """
    power = 10.0 ** math.floor(math.log10(number))
    return next(float(f"{step * power:g}") for step in (1, 2, 5, 10) if step * power >= number)


def _grow(answers: Sequence[Answer], step: Step, names: Sequence[str]) -> None:
    for answer, token in zip(answers, step, strict=True):
        if token is not None:
            answer.add(token.id, dict(zip(names, token.along, strict=True)))
