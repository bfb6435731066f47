"""The playground: streamed answers against generating each alone, and the page in a real browser."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from browser import Window, needs_browser, window
from tiny import FAMILIES, tiny_lora, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from caa import Behavior, Intervention, SteeringVector, SteeringWrapper, extract, load_behavior, load_model
from caa.cli import main
from caa.data.chat import ChatFormat
from caa.data.sources import BUILTIN
from caa.extraction.norms import dose, stream_norms
from caa.extraction.projections import similarities, token_texts
from caa.playground.html import SHOWN, Turn, histories, pane, sentence
from caa.playground.session import CHOICES, LONGEST, Session, Setting, start_from
from caa.playground.streaming import Answer, spoken
from caa.serve.sampling import Sampler, Sampling
from caa.steering.operators import ablate
from caa.steering.scopes import SCOPES, At, First
from caa.vectors.vector import Provenance

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> ${alert(1)} {{7*7}} & \"'"


def vectors(width: int = 32, layers: int = 4) -> dict[str, SteeringVector]:
    torch.manual_seed(3)
    return {name: SteeringVector({n: 4 * torch.randn(width) for n in range(layers)}) for name in ("one", "two")}


def session(family: str = "Llama", out: str | Path = "nowhere") -> Session:
    model = tiny_lora(tiny_model(family), "tuned") if family != "plain" else tiny_model()
    return Session(SteeringWrapper(model), tiny_tokenizer(), vectors(), out)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def alone(opened: Session, ids: list[int], setting: Setting, *, steered: bool) -> list[int]:
    """The slow definition: one row, one plain multiplier, no stream; cut where it ends."""
    named = opened._vectors
    scope = SCOPES[setting.scope]
    steering = [Intervention(named[n], setting.layer, m, where=scope) for n, m in setting.vectors.items()]
    wrapper = opened.wrapper
    with wrapper.finetune(setting.finetune), wrapper.steer(*(steering if steered else ())):
        row = wrapper.generate(torch.tensor([ids]), max_new_tokens=setting.max_new_tokens, do_sample=False)[0]
    written = row[len(ids) :].tolist()
    end = opened.wrapper.model.generation_config.eos_token_id
    return written[: written.index(end)] if end in written else written


def hooks(opened: Session) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in opened.wrapper.modules())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("caa-playground")]


@pytest.fixture(scope="module")
def few() -> dict[str, Behavior]:
    """The built-in behaviors, each with so few pairs that its vector is found at once."""
    whole = {name: load_behavior(name) for name in BUILTIN}
    return {name: replace(behavior, pairs=behavior.pairs[:30]) for name, behavior in whole.items()}


def check_left_alone(opened: Session) -> None:
    assert opened.wrapper.interventions == ()
    assert hooks(opened) == 0
    assert threads() == []
    assert not opened._lock.locked()


SETTINGS = [
    Setting(2, {"one": 1.5}, max_new_tokens=12),
    Setting(1, {"one": 1.0, "two": -2.0}, max_new_tokens=12),
    Setting(2, {"one": 1.0}, finetune="tuned", max_new_tokens=12),
    Setting(3, {"two": 2.0}, scope="everywhere", max_new_tokens=12),
    Setting(0, {"two": 3.0}, scope="last_prompt_token", max_new_tokens=1),
]
HARDEST = Setting(1, {"one": 1.0, "two": -2.0}, finetune="tuned", max_new_tokens=12)


CASES = [*(("Llama", setting) for setting in SETTINGS), *((family, HARDEST) for family in FAMILIES)]


@pytest.mark.parametrize(("family", "setting"), CASES, ids=str)
def test_each_side_is_what_generating_it_alone_gives(family, setting):
    """With prompts of unlike lengths, for each side has its own past; no family marks its own ends here."""
    opened = session(family)
    opened.wrapper.model.generation_config.eos_token_id = None
    pasts = said("Hello there, who?"), said("Why?")
    *_, (plain, steered) = opened.answer(pasts, setting)
    prompts = [ChatFormat(opened.tokenizer).encode_chat(past) for past in pasts]
    assert plain.ids == alone(opened, prompts[0], setting, steered=False)
    assert steered.ids == alone(opened, prompts[1], setting, steered=True)
    assert len(plain.ids) == len(steered.ids) == setting.max_new_tokens
    for answer, ids, active in ((plain, prompts[0], False), (steered, prompts[1], True)):
        assert answer.texts == token_texts(opened.tokenizer, answer.ids)
        for name in setting.vectors:
            found = slow_cosines(opened, ids, answer.ids, setting, name, active)
            along = torch.tensor([each[name] for each in answer.along])
            torch.testing.assert_close(along, found, atol=1e-4, rtol=1e-3)
            if active and setting.max_new_tokens > 1:
                unsteered = slow_cosines(opened, ids, answer.ids, setting, name, False)
                assert (along - unsteered).abs().max() > 0.01, "this steering shows nothing"
    check_left_alone(opened)


def slow_cosines(
    opened: Session, prompt: list[int], written: list[int], setting: Setting, name: str, active: bool
) -> torch.Tensor:
    wrapper = opened.wrapper
    steering = opened.interventions(setting) if active else ()
    with wrapper.finetune(setting.finetune), wrapper.steer(*steering):
        whole = [*prompt, *written]
        found = similarities(wrapper, whole, opened.vector(name), [setting.layer], prompt_length=len(prompt))
    return found[0, len(prompt) :]


def test_it_streams_token_by_token_and_a_row_that_ended_stops_growing():
    opened, setting = session(), Setting(2, {"one": 1.5}, max_new_tokens=20)
    config = opened.wrapper.model.generation_config
    config.eos_token_id = None
    ids = ChatFormat(opened.tokenizer).encode_chat(said("Hello?"))
    plain, steered = (alone(opened, ids, setting, steered=on) for on in (False, True))
    end = next(token for n, token in enumerate(steered) if n > 3 and token not in plain and token not in steered[:n])
    config.eos_token_id = end
    seen = [tuple(len(each.ids) for each in pair) for pair in opened.answer((said("Hello?"),) * 2, setting)]
    short = steered.index(end)
    assert seen == [*((n, min(n, short)) for n in range(1, 21)), (20, short)]
    config.eos_token_id = [end, 103]
    *_, (_, again) = opened.answer((said("Hello?"),) * 2, setting)
    assert again.ids == steered[:short]


def test_multiplier_0_and_no_vector_are_the_unsteered_model():
    opened = session()
    for chosen in ({}, {"one": 0.0}):
        *_, (plain, steered) = opened.answer((said("Hello?"),) * 2, Setting(2, chosen, max_new_tokens=9))
        assert plain.ids == steered.ids
        for plain_cosines, steered_cosines in zip(plain.along, steered.along, strict=True):
            assert plain_cosines.keys() == steered_cosines.keys() == set(chosen)
            assert steered_cosines == pytest.approx(plain_cosines, abs=1e-6)  # two rows of a batch agree to rounding


def test_a_second_turn_goes_on_with_its_own_past_and_the_system_prompt():
    opened, setting = session(), Setting(2, {"one": 1.5}, max_new_tokens=6, system="Be kind.")
    *_, first = opened.answer(histories([], "Hello?"), setting)
    turns = [Turn("Hello?", first)]
    *_, (plain, steered) = opened.answer(histories(turns, "And?"), setting)
    for side, (answer, on) in enumerate(((plain, False), (steered, True))):
        past = [{"role": "system", "content": "Be kind."}, *said("Hello?")]
        past += [{"role": "assistant", "content": first[side].text}, *said("And?")]
        ids = opened.tokenizer.apply_chat_template(past, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert answer.ids == alone(opened, ids, setting, steered=on)
    assert first[0].text != first[1].text


@pytest.mark.parametrize("how", ["stop", "close"])
def test_what_is_broken_off_leaves_nothing_on_the_model(how):
    opened = session("plain")
    opened.wrapper.model.generation_config.eos_token_id = None
    stop = threading.Event()
    growing = opened.answer((said("Hello?"),) * 2, Setting(2, {"one": 1.5}, max_new_tokens=200), stop)
    plain, _ = next(growing)
    assert opened.wrapper.interventions
    if how == "stop":
        stop.set()
        list(growing)
        assert 1 <= len(plain.ids) < 200
        assert plain.texts == token_texts(opened.tokenizer, plain.ids)
    else:
        growing.close()
    check_left_alone(opened)
    *_, (again, _) = opened.answer((said("Hello?"),) * 2, Setting(2, {"one": 1.5}, max_new_tokens=5))
    assert len(again.ids) == 5, "the next answer is not stopped"


def test_two_requests_do_not_steer_the_model_at_once():
    opened, setting = session("plain"), Setting(2, {"one": 1.5}, max_new_tokens=30)
    *_, (_, expected) = opened.answer((said("Hello?"),) * 2, setting)
    first = opened.answer((said("Hello?"),) * 2, setting)
    next(first)
    second = opened.answer((said("Hello?"),) * 2, setting)
    *_, (_, later) = second
    *_, (_, sooner) = first
    assert sooner.ids == later.ids == expected.ids


def test_drawn_answers_are_those_of_the_server_and_the_same_on_both_sides_without_steering():
    """The slow definition: one row, one pass per token, and the sampler that `caa serve` draws by."""
    opened = session()
    opened.wrapper.model.generation_config.eos_token_id = None
    setting = Setting(2, {"one": 1.5}, max_new_tokens=8, temperature=1.3, seed=4)
    prompt = ChatFormat(opened.tokenizer).encode_chat(said("Hello?"))
    *_, (plain, steered) = opened.answer((said("Hello?"),) * 2, setting)
    for answer, steering in ((plain, ()), (steered, opened.interventions(setting))):
        ids, sampler = list(prompt), Sampler(Sampling(1.3, seed=4))
        with opened.wrapper.finetune(None):
            for _ in range(8):
                with opened.wrapper.steer(*[replace(edit, where=after(len(prompt) - 1)) for edit in steering]):
                    ids.append(sampler.token(opened.wrapper(torch.tensor([ids])).logits[0, -1]))
        assert answer.ids == ids[len(prompt) :]
    assert plain.ids != steered.ids
    *_, (plain, same) = opened.answer((said("Hello?"),) * 2, replace(setting, vectors={"one": 0.0}))
    assert plain.ids == same.ids
    *_, (other, _) = opened.answer((said("Hello?"),) * 2, replace(setting, seed=5))
    assert other.ids != plain.ids
    with pytest.raises(ValueError, match="temperature is 0 or more"):
        replace(setting, temperature=-1.0)


def after(first: int) -> At:
    """All tokens from one on, however long the text: `after_prompt` where prompt and answer are one text."""
    return At([range(first, 200)])


def test_a_steered_adapter_is_where_all_controls_begin(tmp_path):
    pytest.importorskip("gradio")
    from caa.playground.app import _controls, _setting, _sliders

    opened = session("Llama", tmp_path)
    opened._vectors["one"] = replace(opened._vectors["one"], source=Provenance(behavior="one"))
    saved = Setting(1, {"one": 60.0, "two": -0.25}, "tuned", "everywhere")
    wrapper = SteeringWrapper.from_pretrained(opened.save("mine", saved), tiny_model(), opened.tokenizer)
    named, start = start_from(wrapper.interventions, wrapper.finetunes)
    wrapper.unsteer()
    assert start == Setting(1, {"one": 60.0, "vector": -0.25}, "tuned", "everywhere")
    again = Session(wrapper, opened.tokenizer, named, tmp_path, start=start)
    controls = _controls(again, 100)
    known, _, *sliders = _sliders(again, controls.picked.value, controls.layer.value, [], "one", 0.0, 0.0)
    assert sliders[0]["maximum"] >= 60, "the slider ends before the value that it begins at"
    values = [slider["value"] for slider in sliders]
    others = [control.value for control in controls.all[1 : -len(values)]]
    assert _setting(again, known, *others, *values) == replace(start, max_new_tokens=64)


@pytest.mark.parametrize(
    "unusual",
    [{"operator": ablate}, {"where": First(4)}, {"layer": 3}, {"multiplier": [1.0, 2.0]}, {"source_layer": 1}],
)
def test_a_steered_adapter_that_the_page_cannot_show_is_refused(unusual):
    direction = vectors()["one"]
    both = Intervention(direction, 2), Intervention(direction, **({"layer": 2} | unusual))
    with pytest.raises(ValueError, match=r"adds vectors at one layer.*this adapter is vector x "):
        start_from(both)
    with pytest.raises(ValueError, match="this adapter is no vector"):
        start_from(())


class Slow(Session):
    """A session that finds its vectors when it is told to."""

    def __init__(self) -> None:
        super().__init__(SteeringWrapper(tiny_model()), tiny_tokenizer(), vectors())
        self.wrapper.model.generation_config.eos_token_id = None
        self.later, self._vectors = self._vectors, {}
        self.may_find = threading.Event()

    def vector(self, name: str) -> SteeringVector:
        with self._lock:
            if name not in self._vectors:
                assert self.may_find.wait(20)
            self._vectors[name] = self.later[name]
        return self.later[name]


CHOSEN = ([], "none (the base model)", ["one"], 2, "after_prompt", "", 30, 0.0, 0, 0.0, 0.0)
"""The controls while the vector "one" is being found: it is not known, and its slider says 0."""


def test_a_message_waits_visibly_for_its_vector_and_is_steered_by_it():
    pytest.importorskip("gradio")
    from caa.playground.app import Tab, _answer, _hear, _words

    opened, tab = Slow(), Tab()
    box, plain, steered, _ = _hear(opened, " Hello <b>? ", tab, "one", *CHOSEN)
    assert box == ""
    for side in (plain, steered):
        assert '<p class="asked">Hello &lt;b&gt;?</p><p class="waits">The vector one is being found' in side
    assert "The vector one is being found" in _words(opened, *CHOSEN)
    threading.Timer(0.3, opened.may_find.set).start()
    *_, last = _answer(opened, tab, "one", *CHOSEN)
    assert "waits" not in last[1] + last[2]
    setting = Setting(2, {"one": opened.multiplier("one", 2)}, max_new_tokens=30)
    *_, expected = opened.answer((said("Hello <b>?"),) * 2, setting)
    assert [answer.ids for answer in tab.turns[0].answers] == [answer.ids for answer in expected]
    assert expected[0].ids != expected[1].ids
    assert tab.messages == []


def test_stop_ends_the_answers_of_its_own_page_alone():
    pytest.importorskip("gradio")
    from copy import deepcopy

    from caa.playground.app import Tab, _answer, _hear

    opened = Slow()
    opened.may_find.set()
    first = Tab()
    second = deepcopy(first)  # as Gradio gives each page its own
    _hear(opened, "Hello?", first, "one", *CHOSEN)
    growing = _answer(opened, first, "one", *CHOSEN)
    next(growing)
    *_, steered, _ = _hear(opened, "Why?", second, "one", *CHOSEN)
    assert "Waits until another answer is written" in steered
    second.stop()
    assert [part[0] for part in _answer(opened, second, "one", *CHOSEN)] == ["Why?"], "back where it was typed"
    assert (second.turns, second.messages) == ([], [])
    for _ in growing:
        pass
    assert len(first.turns[0].answers[1].ids) == 30, "the other page's stop ended it"

    _hear(opened, "And?", first, "one", *CHOSEN[:6], 200, *CHOSEN[7:])
    growing = _answer(opened, first, "one", *CHOSEN[:6], 200, *CHOSEN[7:])
    next(growing)
    first.stop()
    for _ in growing:
        pass
    assert 1 <= len(first.turns[1].answers[1].ids) < 200
    check_left_alone(opened)


def test_a_message_that_cannot_be_answered_goes_back_to_where_it_was_typed():
    gradio = pytest.importorskip("gradio")
    from caa.playground.app import Tab, _answer, _hear

    opened, tab = Slow(), Tab()
    opened.may_find.set()
    _hear(opened, "x" * 300, tab, "one", *CHOSEN)
    answering = _answer(opened, tab, "one", *CHOSEN)
    assert next(answering)[0] == "x" * 300
    with pytest.raises(gradio.Error, match="Clear the conversation"):
        next(answering)
    assert tab.messages == []


def test_a_vector_of_another_width_is_refused_at_the_start(tmp_path, capsys):
    vectors(width=48)["one"].save(tmp_path / "wide.safetensors")
    assert main(["play", "--vectors", str(tmp_path / "wide.safetensors")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "the vector 'wide' is 48 wide, and the residual stream of tiny-chat" in said[0]
    with pytest.raises(ValueError, match="the vector 'one' is 48 wide"):
        Session(SteeringWrapper(tiny_model()), tiny_tokenizer(), vectors(width=48))


def test_a_job_that_fails_says_so_and_ends():
    def work(say: Any, stop: threading.Event) -> None:
        say(1)
        raise RuntimeError("no memory")

    growing = spoken(work)
    assert next(growing) == 1
    with pytest.raises(RuntimeError, match="no memory"):
        next(growing)
    assert threads() == []


def test_closing_ends_the_job():
    heard = []

    def work(say: Any, stop: threading.Event) -> None:
        say(1)
        heard.append(stop.wait(5))

    growing = spoken(work)
    next(growing)
    growing.close()
    assert heard == [True]


def test_characters_of_several_tokens_show_when_they_are_whole():
    _, tokenizer = load_model("tiny-chat")
    for text in ("I would, naïve 你好 🙂 at noon.", "plain", "🙂"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        for cut in range(1, len(ids) + 1):
            answer = Answer(tokenizer)
            for token in ids[:cut]:
                answer.add(token, {})
            answer.end()
            assert answer.texts == token_texts(tokenizer, ids[:cut])


def test_words_whose_space_shows_only_behind_others():
    """A sentencepiece decoder drops the space in front of what it is given."""
    words = Tokenizer(models.WordLevel({"\u2581I": 0, "\u2581would": 1, "n't": 2, "<unk>": 3}, unk_token="<unk>"))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False)
    answer = Answer(tokenizer)
    for token in (0, 1, 2, 0, 1):
        answer.add(token, {})
    assert answer.texts == ["I", " would", "n't", " I", " would"] == token_texts(tokenizer, answer.ids)


def test_what_the_model_cannot_read_is_said():
    opened, setting = session("plain"), Setting(2, {"one": 1.5})
    with pytest.raises(ValueError, match="is 303 tokens long and this model reads at most 256"):
        next(opened.answer((said("x" * 300),) * 2, setting))
    with pytest.raises(ValueError, match="too long"):
        next(opened.answer((said("x" * (LONGEST + 1)),) * 2, setting))
    with pytest.raises(ValueError, match="no vector 'three'"):
        next(opened.answer((said("x"),) * 2, Setting(2, {"three": 1.0})))
    with pytest.raises(ValueError, match="no layer 9"):
        next(opened.answer((said("x"),) * 2, Setting(9, {})))
    check_left_alone(opened)
    opened.wrapper.model.generation_config.eos_token_id = None
    *_, (plain, _) = opened.answer((said("x" * 250),) * 2, setting)
    assert len(plain.ids) == 3, "<s> and two brackets are tokens too"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"scope": "at"}, "no scope 'at'"), ({"vectors": {"one": float("nan")}}, "'one'"), ({"layer": -1}, "layer -1")],
)
def test_a_setting_checks_itself(wrong, says):
    with pytest.raises(ValueError, match=says):
        Setting(**{"layer": 2, **wrong})


def test_a_saved_setting_steers_alike_and_nothing_is_overwritten(tmp_path):
    opened = session("Llama", tmp_path)
    setting = Setting(2, {"one": 1.5, "two": 0.0}, finetune="tuned", scope="everywhere")
    folder = opened.save("my-1", setting)
    loaded = SteeringWrapper.from_pretrained(folder, tiny_model(), opened.tokenizer)
    ids = torch.tensor([ChatFormat(opened.tokenizer).encode_chat(said("Hello?"))])
    with opened.wrapper.finetune("tuned"), opened.wrapper.steer(*opened.interventions(setting)):
        torch.testing.assert_close(loaded(ids).logits, opened.wrapper(ids).logits)
    assert [str(each) for each in loaded.interventions] == ["vector x +1.5, layer 2, everywhere"]
    before = (folder / "steering.json").read_bytes()
    with pytest.raises(FileExistsError, match="choose another name"):
        opened.save("my-1", Setting(1, {"two": 1.0}))
    assert (folder / "steering.json").read_bytes() == before
    for name in ("", "..", "../up", "a/b", "a b", "ä", "x" * 65):
        with pytest.raises(ValueError, match="no name for a folder"):
            opened.save(name, setting)
    with pytest.raises(ValueError, match="model as it is"):
        opened.save("plain", Setting(2, {"one": 0.0}))
    assert [path.name for path in tmp_path.iterdir()] == ["my-1"]
    check_left_alone(opened)


def test_built_in_vectors_are_found_once_and_in_the_base(monkeypatch, few):
    model, tokenizer = load_model("tiny-chat")
    monkeypatch.setattr("caa.playground.session.load_behavior", few.__getitem__)
    expected = extract(model, tokenizer, few["refusal"].pairs, behavior="refusal")
    opened = Session(SteeringWrapper(tiny_lora(model, "tuned")), tokenizer)
    assert opened.names == BUILTIN
    with opened.wrapper.finetune("tuned"):
        found = opened.vector("refusal")
    torch.testing.assert_close(found.at(2), expected.at(2))
    with opened._lock:
        assert opened.vector("refusal") is found, "what is found waits for nobody"
    assert (opened.first_layer, opened.multiplier("refusal", 2)) == (2, 0.3)
    prompts = [ChatFormat(tokenizer).encode_chat(said(each.open_questions[0].text)) for each in few.values()]
    for finetune in (None, "tuned"):
        with opened.wrapper.finetune(finetune):
            norms = stream_norms(opened.wrapper.model, tokenizer, prompts)
        pushes = opened.pushes(Setting(2, {"refusal": -0.3}, finetune=finetune))
        assert pushes == {"refusal": pytest.approx(dose(found, 2, -0.3, norms))}
    assert 1 <= dose(found, 2, opened.reach("refusal", 2), opened._norms[None]) < 2.5


def test_the_words_say_what_is_done():
    drawn = sentence(Setting(2, {"one": 1.0}, temperature=0.7, seed=3), {"one": 0.5})
    assert drawn.endswith(" Tokens are drawn at temperature 0.7, on both sides by the seed 3.")
    assert "Nothing is steered" in sentence(Setting(2, {"one": 0.0}), {"one": 0.0})
    words = sentence(Setting(2, {"one": -0.3, "two": 0}, "tuned", "everywhere"), {"one": -0.25, "two": 0})
    assert words == (
        "Both sides wear the finetune tuned. The right side is steered by one x -0.3 (a push of 0.25 of the residual "
        "stream's length), at layer 2 (the output of that block, counted from 0), on every token."
    )
    for scope in CHOICES:
        sentence(Setting(2, {"one": 1.0}, scope=scope), {"one": 1.0})


def test_a_side_is_escaped_colored_on_one_scale_and_cut():
    tokenizer = tiny_tokenizer()
    plain, steered = Answer(tokenizer), Answer(tokenizer)
    for n, token in enumerate(tokenizer(HOSTILE, add_special_tokens=False).input_ids):
        plain.add(token, {"one": -0.25 if n % 2 else 0.125})
        steered.add(token, {"one": 0.5})
    page = pane([Turn(HOSTILE, (plain, steered))], 0, "one")
    assert "<script" not in page
    assert "<img" not in page
    assert '<span class="away" style="--v:50%" title="-0.250">s</span>' in page
    assert '<span class="along" style="--v:25%" title="+0.125">&lt;</span>' in page
    assert "<span" not in pane([Turn("x", (plain, steered))], 0, "two")
    long = Answer(tokenizer, list(range(10_000)), ["x"] * 10_000, [{}] * 10_000)
    assert pane([Turn("x", (long, long)), Turn("y", (plain, plain))], 0, "").count("x") < SHOWN + 100
    assert f"{10_000 - SHOWN + len(plain.ids):,} earlier tokens are not shown" in pane(
        [Turn("x", (long, long)), Turn("y", (plain, plain))], 0, ""
    )


# The page, in a browser.

# Gradio's client closes the stream of an event when it has heard its end, which Chromium counts as a failed request.
CLOSED_BY_GRADIO = re.compile(r"failed: http://127\.0\.0\.1:\d+/gradio_api/queue/data\?session_hash=\w+")


class Staged(Session):
    """A session that keeps the settings it was given, and plays a part when told to in the message."""

    settings: list[Setting]

    def answer(self, histories: Any, setting: Setting, stop: Any = None) -> Any:
        self.settings.append(setting)
        asked = histories[0][-1]["content"]
        part = {"HOSTILE": self._hostile, "LONG": self._long, "ENDLESS": partial(self._endless, stop=stop)}.get(asked)
        return part(histories, setting) if part else super().answer(histories, setting, stop)

    def _hostile(self, histories: Any, setting: Setting) -> Any:
        yield self._saying([HOSTILE] * 3, 0.5), self._saying([HOSTILE] * 3, -0.5)

    def _long(self, histories: Any, setting: Setting) -> Any:
        both = self._saying([], 0.0), self._saying([], 0.0)
        for n in range(10_000):
            for answer in both:
                answer.ids.append(n)
                answer.texts.append(f" word{n}")
                answer.along.append(dict.fromkeys(setting.vectors, n / 10000 - 0.5))
            time.sleep(0.001 if n % 8 == 0 else 0)
            yield both

    def _endless(self, histories: Any, setting: Setting, stop: Any) -> Any:
        config = self.wrapper.model.generation_config
        end, config.eos_token_id = config.eos_token_id, None
        try:
            yield from super().answer(histories, setting, stop)
        finally:
            config.eos_token_id = end

    def _saying(self, texts: list[str], value: float) -> Answer:
        return Answer(self.tokenizer, list(range(len(texts))), texts, [{self.names[0]: value} for _ in texts])


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any, few: dict[str, Behavior]) -> Iterator[tuple[Staged, str]]:
    pytest.importorskip("gradio")
    from caa.playground.server import serving

    model, tokenizer = load_model("tiny-chat")
    wrapper = SteeringWrapper(tiny_lora(model, "tuned"))
    opened = Staged(wrapper, tokenizer, None, tmp_path_factory.mktemp("playground") / "out")
    opened.settings = []
    with pytest.MonkeyPatch.context() as patch, serving(opened, free_port(), 900) as address:
        patch.setattr("caa.playground.session.load_behavior", few.__getitem__)
        yield opened, address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Page:
    """What a person does on the page."""

    def __init__(self, opened: Window, address: str) -> None:
        self.window, self.page = opened, opened.page
        self.page.set_default_timeout(60_000)
        self.page.goto(address)
        self.force("ai_coordination x +0.3", "layer 2")

    def force(self, *words: str) -> None:
        """Wait until the line above says this."""
        for word in words:
            self.page.locator(".force", has_text=word).wait_for()

    def press(self, name: str) -> None:
        self.page.locator(f"button:text-is({name!r})").click()

    def ask(self, text: str) -> None:
        self.page.get_by_label("Your message").fill(text)
        self.press("Send")

    def slide(self, label: str, value: float) -> None:
        self.page.get_by_label(f"range slider for {label}").fill(str(value))

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def said(self, side: str) -> list[str]:
        return self.page.locator(f"#{side} .said").all_inner_texts()

    def until(self, true: Any, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "waited too long"
            self.page.wait_for_timeout(30)

    def toast(self, words: str) -> None:
        """Wait for a note with these words, and close it."""
        self.page.get_by_test_id("toast-body").filter(has_text=words).wait_for()
        self.page.get_by_test_id("toast-close").first.click()

    def calm(self) -> list[str]:
        return [each for each in self.window.troubles if not CLOSED_BY_GRADIO.fullmatch(each)]


def expected(opened: Session, asked: str, setting: Setting) -> list[str]:
    *_, both = Session.answer(opened, histories([], asked), setting)
    return [answer.text for answer in both]


def test_the_server_takes_no_uploads_no_other_names_and_shows_no_api(served):
    _, address = served
    with httpx.Client(base_url=address, trust_env=False) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403
        assert client.post("/gradio_api/call/send", json={"data": []}).status_code == 403
        assert client.get("/gradio_api/openapi.json").status_code == 403
        assert client.get("/", headers={"host": "example.com"}).status_code == 400
        assert not client.get("/gradio_api/info").json()["named_endpoints"]
        assert client.get("/docs").status_code == 404
        assert client.get("/gradio_api/runs").status_code == 404


def test_the_server_ends_with_its_block():
    pytest.importorskip("gradio")
    from caa.playground.server import serving

    with serving(session("plain"), free_port(), 64) as address:
        assert httpx.get(address, trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)


def test_without_gradio_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["play"]) == 1
    assert "pip install 'caa[play]'" in capsys.readouterr().err


def test_a_taken_port_and_two_vectors_of_one_name_are_said(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["play", "--port", str(taken.getsockname()[1])]) == 1
    assert "port" in capsys.readouterr().err.splitlines()[-1]
    for folder in ("a", "b"):
        vectors()["one"].save(tmp_path / folder / "same.safetensors")
    assert main(["play", "--vectors", f"[{tmp_path}/a/same.safetensors, {tmp_path}/b/same.safetensors]"]) == 1
    assert "rename one" in capsys.readouterr().err


def test_a_vector_without_the_chosen_layer_is_said_and_can_be_moved_on_from():
    pytest.importorskip("gradio")
    from caa.playground.app import BASE, _sliders, _words

    opened = Session(SteeringWrapper(tiny_model()), tiny_tokenizer(), vectors(layers=2))
    chosen = (opened, ["one"], BASE, ["one"], 3, "after_prompt", "", 9, 0.0, 0, 0.5, 0.0)
    assert "no direction for layer 3" in _words(*chosen)
    assert "<p" in _words(*chosen)
    known, _, shown, hidden = _sliders(opened, ["one"], 3, [], "one", 0.5, 0.0)
    assert known == ["one"]
    assert "maximum" not in shown
    assert (shown["visible"], hidden["visible"]) == (True, False)
    _, _, shown, _ = _sliders(opened, ["one"], 1, [], "one", 0.5, 0.0)
    assert shown["maximum"] == opened.reach("one", 1) == 5 * shown["value"] == 100 * shown["step"] == -shown["minimum"]
    _, color, moved, _ = _sliders(opened, ["two", "one"], 1, ["one"], "one", 1e6, 0.0)
    assert moved["value"] == moved["maximum"]
    assert (color["choices"], color["value"], color["visible"]) == (["two", "one"], "one", True)


@pytest.mark.slow
def test_the_command_opens_on_the_embedded_model_and_ends_by_itself(tmp_path):
    pytest.importorskip("gradio")
    port = free_port()
    command = [sys.executable, "-m", "caa.cli", "play", "--port", str(port)]
    how: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # As in a terminal: what a shell starts in the background is deaf to Ctrl+C, and so are its children.
    how["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, **how) as running:
        try:
            assert f"http://127.0.0.1:{port}/" in running.stdout.readline()
            assert "tiny-chat" in httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=20)
        finally:
            running.kill()
    assert running.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_browser
def test_every_control_does_what_it_says(served):
    opened, address = served
    first = Setting(2, {"ai_coordination": 0.3})
    with window() as w:
        page = Page(w, address)
        page.press("Send")
        asked = opened.question
        texts = expected(opened, asked, first)
        page.until(lambda: page.said("unsteered") + page.said("steered") == texts)
        assert texts[0] != texts[1]
        assert opened.settings == [first]
        assert w.page.get_by_label("Your message").input_value() == ""
        assert w.page.locator("#steered span.along").first.get_attribute("title").startswith("+0.")
        assert "cosine of a token with ai_coordination" in w.page.locator(".legend").inner_text()
        w.screenshot("playground", whole=False)
        page.ask("And then?")
        page.until(lambda: len(page.said("steered")) == 2 and len(opened.settings) == 2)
        assert w.page.locator("#unsteered .asked").all_inner_texts() == [asked, "And then?"]
        page.press("Clear")
        page.until(lambda: not page.said("steered"))

        page.slide("ai_coordination: multiplier", 0)
        page.force("Nothing is steered")
        page.slide("ai_coordination: multiplier", -0.5)
        page.force("ai_coordination x -0.5")
        page.slide("Layer (block output, from 0)", 3)
        page.force("at layer 3")
        page.choose("Scope: which tokens are steered", "everywhere")
        page.force("on every token")
        page.choose("Finetune, worn by both sides", "tuned")
        page.force("Both sides wear the finetune tuned.")
        page.choose("Vectors", "refusal")
        page.force("ai_coordination x -0.5", "refusal x +0.3")
        page.slide("refusal: multiplier", 0.4)
        page.force("refusal x +0.4")
        w.page.get_by_label("System prompt").fill("Be kind.")
        page.slide("Longest answer, in tokens", 5)
        page.slide("Temperature (0: the most probable token)", 0.9)
        w.page.get_by_label("Seed of what is drawn").fill("7")
        page.force("drawn at temperature 0.9, on both sides by the seed 7")
        second = Setting(3, {"ai_coordination": -0.5, "refusal": 0.4}, "tuned", "everywhere", "Be kind.", 5, 0.9, 7)
        page.ask("Would you help?")
        page.until(lambda: page.said("steered") == expected(opened, "Would you help?", second)[1:])
        assert opened.settings[-1] == second
        colors = w.page.locator("#steered .said").inner_html()
        page.choose("Color by", "refusal")
        page.until(lambda: w.page.locator("#steered .said").inner_html() != colors)
        assert "with refusal" in w.page.locator(".legend").inner_text()

        save_and_save_again(page, opened, second)
        page.ask(" ")
        page.toast("there is no message")
        page.ask("why " * 1900)
        page.toast("Clear the conversation")
        assert page.said("steered") == expected(opened, "Would you help?", second)[1:]
        assert page.calm() == []
    check_left_alone(opened)


def save_and_save_again(page: Page, opened: Session, setting: Setting) -> None:
    name = page.page.get_by_label("Save as a steered adapter")
    name.fill("my-1")
    page.press("Save")
    folder = opened.out / "my-1"
    page.page.locator("#saved code", has_text=f"caa generate PROMPT --steered {folder}").wait_for()
    loaded = SteeringWrapper.from_pretrained(folder)
    assert list(map(str, loaded.interventions)) == list(map(str, opened.interventions(setting)))
    assert loaded.adapters == ["tuned"]
    page.press("Save")
    page.toast("my-1 is there already; choose another name")
    name.fill("../up")
    page.press("Save")
    page.toast("'../up' is no name for a folder")
    name.fill(HOSTILE[25:60])
    page.press("Save")
    page.toast(f"{HOSTILE[25:60]!r} is no name for a folder")
    assert [path.name for path in opened.out.iterdir()] == ["my-1"]


@pytest.mark.slow
@needs_browser
def test_a_message_waits_on_the_page_while_a_vector_is_being_found(served, monkeypatch):
    """Its slider still says 0, and the steered side would be unsteered without a word."""
    opened, address = served
    found, find = threading.Event(), opened.vector
    monkeypatch.setattr(opened, "vector", lambda name: found.wait(30) and find(name))
    monkeypatch.setattr(opened, "has", lambda name: found.is_set())
    with window() as w:
        w.page.goto(address)
        w.page.get_by_role("button", name="Send").click()
        w.page.locator("#steered .waits", has_text="The vector ai_coordination is being found").wait_for()
        assert w.page.locator("#steered .asked").inner_text() == opened.question
        w.screenshot("playground-waiting", whole=False)
        assert not w.page.locator(".said").count()
        found.set()
        w.page.locator("#steered .said").wait_for()
        assert opened.settings[-1] == Setting(2, {"ai_coordination": 0.3})
        assert not w.page.locator(".waits").count()


@pytest.mark.slow
@needs_browser
def test_an_answer_streams_stops_and_ends_when_the_page_is_gone(served):
    opened, address = served
    with window() as w:
        page = Page(w, address)
        page.slide("Longest answer, in tokens", 900)
        page.ask("ENDLESS")
        page.until(lambda: page.said("steered"))
        early = page.said("steered")[0]
        page.until(lambda: len(page.said("steered")[0]) > len(early))
        page.press("Stop")
        page.until(lambda: not threads())
        check_left_alone(opened)
        w.page.wait_for_timeout(300)
        kept = page.said("steered")[0]
        assert kept.startswith(early)
        assert w.page.locator("#steered .said span").count() < 900
        w.page.wait_for_timeout(300)
        assert page.said("steered") == [kept]

        page.ask("ENDLESS")
        page.until(lambda: len(page.said("steered")) == 2)
        page.press("Clear")
        page.until(lambda: not threads() and page.said("steered") == [])
        w.page.wait_for_timeout(300)
        assert page.said("steered") == [], "a late piece brought the answer back"

        page.ask("ENDLESS")
        page.until(lambda: page.said("steered"))
        assert page.calm() == []
        assert opened.wrapper.interventions
    left = time.monotonic()
    while threads() and time.monotonic() - left < 3:
        time.sleep(0.02)
    check_left_alone(opened)


@pytest.mark.slow
@needs_browser
def test_hostile_and_very_long_answers_do_no_harm(served):
    _, address = served
    with window() as w:
        page = Page(w, address)
        page.ask("HOSTILE")
        page.until(lambda: page.said("steered") == [HOSTILE * 3])
        assert w.page.locator("#steered img, #steered script").count() == 0
        assert w.page.locator("#unsteered span").first.get_attribute("title") == "+0.500"
        page.ask(HOSTILE)
        page.until(lambda: w.page.locator("#steered .asked").last.inner_text() == HOSTILE)
        page.press("Clear")
        page.until(lambda: not page.said("steered"))

        page.ask("LONG")
        page.until(lambda: page.said("steered"))
        while "word9999" not in w.page.locator("#steered .said").evaluate("e => e.textContent.slice(-20)"):
            w.page.wait_for_timeout(200)
            frame(w)  # the page draws while it is written to: else this would wait for ever
            assert w.page.locator("#steered .said span").count() <= SHOWN
        assert w.page.locator("#steered .said span").count() == SHOWN
        assert "8,000 earlier tokens are not shown" in w.page.locator("#steered .cut").inner_text()
        ends = [w.page.locator(each).last.bounding_box() for each in ("#steered", "#steered .said span")]
        assert ends[0]["y"] < ends[1]["y"] < ends[0]["y"] + ends[0]["height"], "the end is out of sight"
        page.slide("ai_coordination: multiplier", 0.5)
        page.force("ai_coordination x +0.5")
        assert page.calm() == []


def frame(opened: Window) -> None:
    """Wait until the page draws again."""
    opened.page.evaluate("() => new Promise(done => requestAnimationFrame(done))")


CONTRAST = """element => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const pixel = (...colors) => {
        colors.forEach(color => { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1) });
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = rgb => rgb.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const style = getComputedStyle(element), page = getComputedStyle(document.body).backgroundColor;
    const [ink, ground] = [light(pixel(style.color)), light(pixel(page, style.backgroundColor))];
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
}"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("name", "how"),
    [("playground-phone", {"width": 390, "height": 844}), ("playground-dark", {"color_scheme": "dark"})],
)
def test_it_is_readable_on_a_phone_and_in_the_dark(served, name, how):
    _, address = served
    with window(**how) as w:
        page = Page(w, address)
        page.press("Send")
        w.page.locator("#steered .along").first.wait_for()
        page.until(lambda: len(page.said("unsteered")[0]) > 40)
        w.screenshot(name)
        assert w.page.evaluate("document.documentElement.scrollWidth") <= w.page.viewport_size["width"]
        asked, panes = (w.page.locator(each).first.bounding_box() for each in ("#component-0, .controls", "#steered"))
        if "width" in how:
            assert panes["y"] < asked["y"], "on a phone the talk comes first"
        shaded = w.page.locator("#steered .said span, #unsteered .said span, .force, .asked")
        assert min(shaded.nth(n).evaluate(CONTRAST) for n in range(shaded.count())) > 4.5
        dark = w.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 150) == ("color_scheme" in how)
        assert page.calm() == []


def test_template_arguments_reach_the_conversation():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ mood }}" + tokenizer.chat_template
    chat = ChatFormat(tokenizer, arguments={"mood": "calm"})
    opened = Session(SteeringWrapper(tiny_model()), chat, vectors())
    assert opened._prompt(said("Hello?"), "") == chat.encode("Hello?")
    assert opened._prompt(said("Hello?"), "") != ChatFormat(tokenizer).encode("Hello?")
