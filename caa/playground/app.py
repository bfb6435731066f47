"""The page: a session in, widgets out. Knows Gradio, and leaves all that has to do with the model to the session."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, TypeVar

import gradio as gr
from markupsafe import Markup, escape

from caa.playground.html import Turn, full_color, histories, pane, sentence, waiting
from caa.playground.session import CHOICES, LONGEST, Session, Setting

Item = TypeVar("Item")
BASE = "none (the base model)"
EVERY = 0.1
"""Seconds between two updates of the page."""
_HEAD = Markup('<div class="head"><h1>caa playground</h1><p>{}, unsteered and steered, side by side</p></div>')
_EMPTY = Markup('<p class="empty">Nothing said yet.</p>')
_FORCE = Markup('<p class="force">{}</p>')
_FINDING = "The vector {} is being found; then it has a slider, and what waits for it is answered."
_BUSY = "Waits until another answer is written."
_LEGEND = Markup(
    '<p class="legend">{:.2f}<span class="bar"></span>{:+.2f} cosine of a token with {}; '
    "hover over a token for its number</p>"
)


@dataclass(frozen=True)
class Controls:
    """What is chosen on the left."""

    known: gr.JSON
    """The vectors that were found: their sliders are set. The page keeps it, so that it comes with the sliders."""
    finetune: gr.Dropdown
    picked: gr.Dropdown
    multipliers: Sequence[gr.Slider]
    """One for each vector on offer, shown while it is picked."""
    layer: gr.Slider
    scope: gr.Dropdown
    system: gr.Textbox
    tokens: gr.Slider
    temperature: gr.Slider
    seed: gr.Number

    @property
    def all(self) -> list[Any]:
        """In the order of `_setting`."""
        return [
            self.known,
            self.finetune,
            self.picked,
            self.layer,
            self.scope,
            self.system,
            self.tokens,
            self.temperature,
            self.seed,
            *self.multipliers,
        ]


@dataclass
class Message:
    """One that has no answer yet, or is being answered."""

    text: str
    reason: str
    """Why it waits."""
    stop: Event = field(default_factory=Event)
    begun: bool = False
    """Whether it is a turn by now."""


class Tab:
    """The conversation of one page: a page that is opened gets its own. What the page shows is changed in place."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.messages: list[Message] = []

    def __deepcopy__(self, memo: Any) -> Tab:
        return Tab()

    def stop(self) -> None:
        """End the answer that is being written, and those that wait, of this page."""
        for message in self.messages:
            message.stop.set()


def build(session: Session, longest_answer: int) -> gr.Blocks:
    """The page of a session, not yet served."""
    page: gr.Blocks
    with gr.Blocks(title="caa playground", fill_width=True, analytics_enabled=False) as page:
        gr.HTML(_HEAD.format(session.model))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300, elem_classes="controls"):
                controls = _controls(session, longest_answer)
                _saving(session, controls)
            with gr.Column(scale=5, min_width=320, elem_classes="talk"):
                force, color = _talk(session, controls)
        _follow(page, session, controls, force, color)
    return page


def _controls(session: Session, longest_answer: int) -> Controls:
    start = session.start or Setting(session.first_layer, dict.fromkeys(session.names[:1], 0.0))
    finetunes = list(dict.fromkeys([BASE, *session.wrapper.finetunes, start.finetune or BASE]))
    return Controls(
        known=gr.JSON([], visible=False),
        finetune=gr.Dropdown(
            finetunes, value=start.finetune or BASE, label="Finetune, worn by both sides", interactive=True
        ),
        picked=gr.Dropdown(list(session.names), value=list(start.vectors), multiselect=True, label="Vectors"),
        multipliers=[
            gr.Slider(-1, 1, 0, step=0.01, buttons=[], label=f"{name}: multiplier", visible=False)
            for name in session.names
        ],
        layer=gr.Slider(0, session.layers - 1, start.layer, step=1, buttons=[], label="Layer (block output, from 0)"),
        scope=gr.Dropdown(list(CHOICES), value=start.scope, label="Scope: which tokens are steered"),
        system=gr.Textbox("", label="System prompt", max_length=LONGEST, lines=1, max_lines=4),
        tokens=gr.Slider(
            1, longest_answer, min(64, longest_answer), step=1, buttons=[], label="Longest answer, in tokens"
        ),
        temperature=gr.Slider(0, 2, 0, step=0.05, buttons=[], label="Temperature (0: the most probable token)"),
        seed=gr.Number(0, precision=0, minimum=0, label="Seed of what is drawn"),
    )


def _saving(session: Session, controls: Controls) -> None:
    name = gr.Textbox(label=f"Save as a steered adapter in {session.out}", placeholder="a name", max_length=64)
    button, note = gr.Button("Save"), gr.HTML(elem_id="saved")

    def save(name: str, *chosen: Any) -> str:
        with readable():
            folder = session.save(name.strip(), _setting(session, *chosen))
        command = f"caa generate PROMPT --steered {shlex.quote(str(folder))}"
        return Markup("<p>Saved. It loads with<br><code>{}</code></p>").format(command)

    button.click(save, [name, *controls.all], note, api_visibility="private")


def _talk(session: Session, controls: Controls) -> tuple[gr.HTML, gr.Dropdown]:
    """The right half; of it the line that says what is in force, and the choice of the vector that colors."""
    force = gr.HTML(elem_id="force")
    with gr.Row():
        sides = _side("Unsteered", "the same finetune, multiplier 0"), _side("Steered", "the setting above")
    with gr.Row():
        legend = gr.HTML(elem_id="legend")
        color = gr.Dropdown(list(session.names), value=session.names[0], label="Color by", visible=False, min_width=120)
    question = gr.Textbox(session.question, label="Your message", max_length=LONGEST, lines=1, max_lines=6)
    with gr.Row():
        send = gr.Button("Send", variant="primary", scale=3, min_width=90)
        stop, clear = gr.Button("Stop", scale=1, min_width=70), gr.Button("Clear", scale=1, min_width=70)
    tab = gr.State(Tab())
    # Heard at once: it shows that it waits. Answered when it is its turn.
    heard = gr.on(
        [send.click, question.submit],
        partial(_hear, session),
        [question, tab, color, *controls.all],
        [question, *sides, legend],
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )
    heard.success(
        lambda *chosen: (yield from _answer(session, *chosen)),  # Gradio asks whether it is a generator's function
        [tab, color, *controls.all],
        [question, *sides, legend],
        show_progress="hidden",
        trigger_mode="multiple",
        concurrency_id="talk",
        api_visibility="private",
    )
    gr.on([stop.click, clear.click], Tab.stop, tab, queue=False, api_visibility="private")
    # In the queue of the answers: what is still on its way to the page must not come after this.
    clear.click(_clear, tab, [*sides, legend], concurrency_id="talk", api_visibility="private")
    color.change(_panes, [tab, color], [*sides, legend], show_progress="hidden", api_visibility="private")
    return force, color


def _side(title: str, about: str) -> gr.HTML:
    with gr.Column(elem_classes="side", min_width=280):
        gr.HTML(f'<div class="side-title">{title}<small>{about}</small></div>')
        return gr.HTML(_EMPTY, elem_id=title.lower())


def _follow(page: gr.Blocks, session: Session, controls: Controls, force: gr.HTML, color: gr.Dropdown) -> None:
    """Whatever is changed shows at once: the sliders of the vectors that are picked, and the words above."""
    ranged = [controls.known, color, *controls.multipliers]
    sliders, words = partial(_sliders, session), partial(_words, session)
    inputs = [controls.picked, controls.layer, *ranged]
    reaching = [page.load, controls.picked.change, controls.layer.change]
    first = gr.on(reaching, sliders, inputs, ranged, show_progress="hidden", api_visibility="private")
    first.then(words, controls.all, force, show_progress="hidden", api_visibility="private")
    others = [item.change for item in controls.all if item not in (controls.known, controls.picked, controls.layer)]
    gr.on(
        others,
        words,
        controls.all,
        force,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )


def _sliders(
    session: Session, picked: list[str], layer: int, known: list[str], color: str | None, *values: float
) -> list[Any]:
    """The vectors whose sliders were set once, the choice of the one that colors, and the sliders."""
    with readable():
        sliders = [
            _slider(session, name, layer, value, name in known) if name in picked else gr.update(visible=False)
            for name, value in zip(session.names, values, strict=True)
        ]
    chosen = color if color in picked else next(iter(picked), None)
    return [sorted({*known, *picked}), gr.update(choices=picked, value=chosen, visible=len(picked) > 1), *sliders]


def _slider(session: Session, name: str, layer: int, value: float, known: bool) -> Any:
    """The slider of a picked vector: it ends where the push is as long as the residual stream at this layer."""
    if layer not in session.vector(name).layers:
        return gr.update(visible=True)
    reach = session.reach(name, layer)
    value = min(max(value, -reach), reach) if known else session.multiplier(name, layer)
    return gr.update(visible=True, minimum=-reach, maximum=reach, step=reach / 100, value=value)


def _words(session: Session, *chosen: Any) -> str:
    """The line that says what is in force, or why nothing can be."""
    with readable():
        if missing := _missing(*chosen):
            return _FORCE.format(_FINDING.format(missing[0]))
        setting = _setting(session, *chosen)
        try:
            return _FORCE.format(sentence(setting, session.pushes(setting)))
        except KeyError as error:
            return _FORCE.format(error.args[0])


def _setting(
    session: Session,
    known: list[str],
    finetune: str,
    picked: list[str],
    layer: int,
    scope: str,
    system: str,
    tokens: int,
    temperature: float,
    seed: int | None,
    *values: float,
) -> Setting:
    """What is chosen. A vector whose slider is not set yet is found first, and has the multiplier it will begin at."""
    multipliers = {
        name: value if name in known else session.multiplier(name, layer)
        for name, value in zip(session.names, values, strict=True)
        if name in picked
    }
    return Setting(
        layer=layer,
        vectors={name: multipliers[name] for name in picked},
        finetune=None if finetune == BASE else finetune,
        scope=scope,
        system=system,
        max_new_tokens=tokens,
        temperature=temperature,
        seed=seed or 0,
    )


def _missing(known: list[str], finetune: str, picked: list[str], *_: Any) -> list[str]:
    """The picked vectors whose sliders are not set."""
    return [name for name in picked if name not in known]


def _hear(session: Session, question: str, tab: Tab, color: str | None, *chosen: Any) -> list[Any]:
    """Take a message in, and show why it waits."""
    with readable():
        if not question.strip():
            raise ValueError("there is no message to answer; write one")
    missing = [name for name in _missing(*chosen) if not session.has(name)]
    reason = _FINDING.format(missing[0]) if missing else _BUSY if session.is_busy else "..."
    tab.messages.append(Message(question.strip(), reason))
    return ["", *_panes(tab, color)]


def _answer(session: Session, tab: Tab, color: str | None, *chosen: Any) -> Iterator[list[Any]]:
    """Both answers to the first message that waits, as they grow. What is broken off is a turn too; a message that was
    stopped before its turn, or cannot be answered, goes back to where it was typed."""
    message = tab.messages[0]
    failure: gr.Error | None = None
    try:
        with readable():
            session.wait(message.stop)
            setting = None if message.stop.is_set() else _setting(session, *chosen)
            if setting is not None:
                yield from _growing(session, tab, message, setting, color)
    except gr.Error as error:
        failure = error
    finally:
        tab.messages.remove(message)
    if not message.begun:
        yield [message.text, *_panes(tab, color)]
    if failure is not None:
        raise failure


def _growing(session: Session, tab: Tab, message: Message, setting: Setting, color: str | None) -> Iterator[list[Any]]:
    past = histories(tab.turns, message.text)
    with closing(session.answer(past, setting, message.stop)) as growing:
        for answers in at_most_every(EVERY, growing):
            if not message.begun:
                message.begun = True
                tab.turns.append(Turn(message.text, answers))
            yield [gr.skip(), *_panes(tab, color)]


def _clear(tab: Tab) -> list[str]:
    tab.turns.clear()
    return _panes(tab, None)


def _panes(tab: Tab, color: str | None) -> list[str]:
    """What both sides and the legend show."""
    waits = "".join(waiting(message.text, message.reason) for message in tab.messages if not message.begun)
    if not tab.turns:
        return [waits or _EMPTY, waits or _EMPTY, ""]
    most = full_color(tab.turns, color or "")
    return [
        pane(tab.turns, 0, color or "") + Markup(waits),
        pane(tab.turns, 1, color or "") + Markup(waits),
        _LEGEND.format(-most, most, color) if color else "",
    ]


def at_most_every(seconds: float, items: Iterable[Item]) -> Iterator[Item]:
    """The first item, the last one, and of those between one every so often.

    >>> list(at_most_every(60.0, "abcd"))
    ['a', 'd']
    """
    shown, waiting = -seconds, []
    for item in items:
        waiting = [item]
        if time.monotonic() - shown >= seconds:
            yield waiting.pop()
            shown = time.monotonic()
    yield from waiting


@contextmanager
def readable() -> Iterator[None]:
    """An error as a note on the page. It is HTML there, so what it quotes is escaped."""
    try:
        yield
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error  # a KeyError's own text is a repr
        raise gr.Error(escape(str(text)), print_exception=False) from error
