"""Texts that come and go in one engine, against the slow definition: `wrapper.generate`, one request at a time."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Event

import pytest
import torch
from tiny import random_ids, tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.models import slots
from caa.serve.engine import BusyError, ClosedError, End, Engine, Job, Limits, Piece, Request
from caa.serve.sampling import Sampler, Sampling, nucleus
from caa.serve.transcript import Transcript
from caa.steering.gates import Gate
from caa.steering.operators import ablate
from caa.steering.scopes import First, everywhere

V, W = (
    SteeringVector(
        {layer: torch.randn(32, generator=torch.Generator().manual_seed(layer + 7 * n)) for layer in range(4)}
    )
    for n in range(2)
)
LOUD = SteeringVector({2: torch.full((32,), 1e30)})
GREEDY = Sampling(temperature=0)
SETTINGS = [
    (),
    (Intervention(V, 2, 1.5),),
    (Intervention(V, 2, -1.5),),
    (Intervention(W, 1, 1.0, where=everywhere),),
    (Intervention(W, 3, 1.0, ablate), Intervention(V, 0, 2.0, where=First(2))),
]


def finetuned() -> SteeringWrapper:
    """A model with two LoRAs that do something."""
    model = tiny_lora(tiny_model(), "one", seed=1)
    model.add_adapter("two", model.peft_config["one"])
    return SteeringWrapper(model.eval())


def slow(wrapper: SteeringWrapper, tokenizer, request: Request) -> str:
    """The definition of a greedy answer: the request alone, by transformers' own `generate`."""
    ids = torch.tensor([list(request.prompt)])
    with torch.no_grad(), wrapper.finetune(request.finetune), wrapper.steer(*request.setting):
        written = wrapper.generate(ids, max_new_tokens=request.max_tokens, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text[: min((text.find(stop) for stop in request.stops if stop in text), default=len(text))]


def requests(count: int, seed: int, finetunes=(None, "one", "two"), settings=SETTINGS) -> list[Request]:
    draw = random.Random(seed)
    return [
        Request(
            random_ids(1, draw.choice([1, 2, 5, 9, 30]), seed + n)[0].tolist(),
            draw.randint(1, 24),
            draw.choice(finetunes),
            draw.choice(settings),
            GREEDY,
            draw.choice([(), (), ("e", "zz"), (" 4",)]),
        )
        for n in range(count)
    ]


class Listener:
    """Collects one answer; leaves after so many pieces, if it is told to."""

    def __init__(self, leaves_after: int = -1) -> None:
        self.pieces: list[Piece] = []
        self.end: End | None = None
        self.ended = Event()
        self.leaves_after, self.job = leaves_after, None

    def __call__(self, event: Piece | End) -> None:
        if isinstance(event, End):
            assert not self.ended.is_set(), "an answer ends once"
            self.end = event
            self.ended.set()
        else:
            self.pieces.append(event)
            if len(self.pieces) == self.leaves_after:
                self.job.cancel()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def ask(engine: Engine, request: Request, leaves_after: int = -1) -> Listener:
    listener = Listener(leaves_after)
    ready = Event()

    def receive(event):
        ready.wait()
        listener(event)

    listener.job = engine.submit(request, receive)
    ready.set()
    return listener


def served(wrapper, asked, tokenizer, limits=None) -> list[str]:
    engine = Engine(wrapper, tokenizer, limits or Limits(rows=5))
    try:
        listeners = [ask(engine, request) for request in asked]
        for listener in listeners:
            assert listener.ended.wait(60)
            assert not listener.end.error, listener.end
        return [listener.text for listener in listeners]
    finally:
        engine.close()


def test_every_text_is_what_it_is_alone_whoever_comes_and_leaves():
    """Requests of random finetunes, settings, lengths and stops arrive while others are written, and some leave."""
    wrapper, tokenizer, draw = finetuned(), tiny_tokenizer(), random.Random(3)
    asked = requests(40, 3)
    expected = [slow(wrapper, tokenizer, request) for request in asked]
    engine, listeners = Engine(wrapper, tokenizer, Limits(rows=6)), []
    assert engine.pools
    assert engine.mixed == {"one", "two"}
    for n, request in enumerate(asked):
        listeners.append(ask(engine, request, draw.choice([-1, -1, -1, 2])))
        if n % 7 == 6:
            assert listeners[draw.randrange(n)].ended.wait(60)
    for listener, text in zip(listeners, expected, strict=True):
        assert listener.ended.wait(60)
        if listener.end.reason == "cancelled":
            assert text.startswith(listener.text)
        else:
            assert listener.text == text
    reasons = [listener.end.reason for listener in listeners]
    assert {"stop", "length", "cancelled"} <= set(reasons)
    assert len(set(expected)) > 25, "or any answer would do"
    engine.close()
    assert (engine.busy, engine.waiting) == (0, 0)


@pytest.mark.parametrize("family", ["GPT2", "Gemma2", "Bloom", "GPTNeo", "Mamba", "RecurrentGemma"])
def test_families_answer_as_they_do_alone_pooled_or_not(family):
    wrapper, tokenizer = SteeringWrapper(tiny_model(family)), tiny_tokenizer()
    asked = [replace(request, stops=()) for request in requests(3, 1, (None,), SETTINGS[1:4])]
    assert served(wrapper, asked, tokenizer, Limits(prompt_tokens=40, answer_tokens=24)) == [
        slow(wrapper, tokenizer, request) for request in asked
    ]


def test_adapters_that_cannot_share_a_pass_take_turns():
    """PEFT would pass the names of rows over for other kinds than LoRA, and the base would wear one, unseen."""
    from peft import LoHaConfig, get_peft_model

    config = LoHaConfig(r=2, target_modules=["q_proj", "down_proj"], init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config, adapter_name="one")
    model.add_adapter("two", config)
    wrapper, tokenizer, asked = SteeringWrapper(model.eval()), tiny_tokenizer(), requests(12, 5)
    engine = Engine(wrapper, tokenizer)
    assert engine.mixed == frozenset()
    engine.close()
    assert served(wrapper, asked, tokenizer) == [slow(wrapper, tokenizer, request) for request in asked]


def test_gated_texts_are_what_they_are_alone_beside_others():
    wrapper, tokenizer = finetuned(), tiny_tokenizer()
    gates = [Gate(V, 1, above=0.0), Gate(V, 1, below=0.0)]
    asked = requests(9, 4, settings=[(), *((Intervention(V, 2, 2.0, gate=gate),) for gate in gates)])
    assert served(wrapper, asked, tokenizer) == [slow(wrapper, tokenizer, request) for request in asked]


def test_drawn_texts_and_log_probabilities_do_not_depend_on_company():
    wrapper, tokenizer = finetuned(), tiny_tokenizer()
    draws = [Sampling(0.8, 0.9, seed) for seed in range(12)]
    asked = [replace(r, sampling=draw, top_logprobs=3) for r, draw in zip(requests(12, 6), draws, strict=True)]
    alone, together = Engine(wrapper, tokenizer, Limits(rows=1)), None
    answers = [alone.answer(request) for request in asked]
    alone.close()
    together = Engine(wrapper, tokenizer, Limits(rows=12))
    with ThreadPoolExecutor(12) as threads:
        others = list(threads.map(together.answer, asked))
    together.close()
    assert [answer.text for answer in answers] == [answer.text for answer in others]
    for one, other in zip(answers, others, strict=True):
        assert [info.token for info in one.infos] == [info.token for info in other.infos]
        values = [torch.tensor([info.logprob for info in answer.infos]) for answer in (one, other)]
        assert torch.allclose(*values, atol=1e-4)
    assert any(answer.text != slow(wrapper, tokenizer, r) for answer, r in zip(answers, asked, strict=True))


def test_what_is_held_back_for_a_stop_string_is_told_when_the_text_ends():
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    request = Request(random_ids(1, 5, 3)[0].tolist(), 8, sampling=GREEDY)
    text = slow(wrapper, tokenizer, request)
    with closing(Engine(wrapper, tokenizer)) as engine:
        assert engine.answer(replace(request, stops=(text[-1] + "never",))).text == text


def test_log_probabilities_are_the_models_own():
    wrapper, tokenizer = finetuned(), tiny_tokenizer()
    request = Request(random_ids(1, 6)[0].tolist(), 1, "two", SETTINGS[3], Sampling(2.0, 0.5, 1), top_logprobs=4)
    engine = Engine(wrapper, tokenizer)
    (info,) = engine.answer(request).infos
    engine.close()
    with torch.no_grad(), wrapper.finetune("two"), wrapper.steer(*SETTINGS[3]):
        expected = wrapper(torch.tensor([request.prompt])).logits[0, -1].log_softmax(-1)
    assert info.logprob == pytest.approx(float(expected[info.token]), abs=1e-4)
    assert [token for token, _ in info.top] == expected.topk(4).indices.tolist()


def test_a_row_without_numbers_ends_alone():
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    (fine, *_) = requests(1, 0, (None,))
    engine = Engine(wrapper, tokenizer)
    broken = ask(engine, replace(fine, setting=(Intervention(LOUD, 2, 1e38),), max_tokens=20))
    other = ask(engine, replace(fine, max_tokens=20, stops=()))
    assert broken.ended.wait(60)
    assert other.ended.wait(60)
    engine.close()
    assert "no numbers any more under vector x +1e+38, layer 2" in broken.end.error
    assert other.text == slow(wrapper, tokenizer, replace(fine, max_tokens=20, stops=()))


def test_logits_that_overflow_are_an_error_and_no_token():
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    (request,) = requests(1, 0, (None,))
    with closing(Engine(wrapper, tokenizer)) as engine:
        wrapper.model.lm_head.register_forward_hook(
            lambda module, arguments, logits: logits.index_fill(-1, torch.tensor([7]), torch.inf)
        )
        with pytest.raises(RuntimeError, match="no numbers any more"):
            engine.answer(request)


def test_a_pass_that_fails_ends_its_texts_and_not_the_engine(monkeypatch):
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    (request,) = requests(1, 0, (None,))
    engine, run_pass = Engine(wrapper, tokenizer), SteeringWrapper.run_pass
    monkeypatch.setattr(SteeringWrapper, "run_pass", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(RuntimeError, match="could not go on"):
        engine.answer(request)
    monkeypatch.setattr(SteeringWrapper, "run_pass", run_pass)
    text = engine.answer(request).text
    engine.close()
    assert text == slow(wrapper, tokenizer, request)


@pytest.mark.parametrize("place", ["pass", "room"])
def test_who_arrives_where_memory_runs_out_ends_alone(monkeypatch, place):
    """In the pass over its prompt, or where half of the layers have new room; what is written goes on in the old."""
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    first, large, last = (Request(random_ids(1, n, n)[0].tolist(), 20, sampling=GREEDY) for n in (5, 30, 9))
    expected = [slow(wrapper, tokenizer, request) for request in (first, last)]
    run_pass, room, rooms = SteeringWrapper.run_pass, slots._room, []

    def scarce_pass(wrapper, **inputs):
        if inputs["input_ids"].shape[1] > 1:
            raise torch.OutOfMemoryError
        return run_pass(wrapper, **inputs)

    def scarce_room(states, rows, columns):
        rooms.extend([rows] * (rows > 1))
        if len(rooms) > 4:
            raise torch.OutOfMemoryError
        return room(states, rows, columns)

    one, two, three, rooms_then = Listener(), Listener(), Listener(), []
    with closing(Engine(wrapper, tokenizer)) as engine:

        def receive(event):
            one(event)
            if len(one.pieces) == 3 and not rooms_then:
                rooms_then.append(0)
                scarce = {"pass": (SteeringWrapper, "run_pass", scarce_pass), "room": (slots, "_room", scarce_room)}
                monkeypatch.setattr(*scarce[place])
                engine.submit(large, receive_error)

        def receive_error(event):
            monkeypatch.undo()
            rooms_then.extend(layer.keys.shape[0] for rows in engine._groups.values() for layer in rows.cache.layers)
            two(event)
            engine.submit(last, three)

        engine.submit(first, receive)
        assert all(listener.ended.wait(60) for listener in (one, two, three))
    assert "no memory for this prompt" in two.end.error
    assert rooms_then == [0, 1, 1, 1, 1], "each layer has the room that it had"
    assert [one.text, three.text] == expected
    assert not rooms or len(rooms) == 5


def test_what_is_too_long_or_too_much_is_refused_in_words():
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    engine = Engine(wrapper, tokenizer, Limits(rows=1, waiting=1, prompt_tokens=10, answer_tokens=40))
    (request,) = requests(1, 0, (None,))
    long = replace(request, prompt=[5] * 10, max_tokens=40, setting=SETTINGS[1])
    with pytest.raises(ValueError, match="the prompt has 11 tokens, and at most 10 are taken"):
        engine.submit(replace(request, prompt=[5] * 11), print)
    with pytest.raises(ValueError, match="no tokens"):
        engine.submit(replace(request, prompt=[]), print)
    with pytest.raises(ValueError, match="1 to 40 tokens, and max_tokens is 41"):
        engine.submit(replace(request, max_tokens=41), print)
    engine._join = lambda: None  # nobody gets a row
    engine.submit(long, lambda event: None)
    with pytest.raises(BusyError, match="1 requests wait already"):
        engine.submit(long, print)
    engine.close()
    with pytest.raises(ClosedError):
        engine.submit(long, print)


def test_closing_ends_what_is_written_and_leaves_the_model_as_it_was():
    wrapper, tokenizer = finetuned(), tiny_tokenizer()
    wrapper.model.set_adapter("two")
    hooks = sum(len(module._forward_hooks) for module in wrapper.modules())
    engine = Engine(wrapper, tokenizer, Limits(rows=1))
    asked = [replace(request, max_tokens=200, stops=()) for request in requests(3, 8)]
    listeners = [ask(engine, request) for request in asked]
    engine.close()
    assert all(listener.ended.is_set() for listener in listeners)
    assert listeners[-1].end.reason == "cancelled"
    assert wrapper.interventions == ()
    assert wrapper.model.active_adapters == ["two"]
    assert sum(len(module._forward_hooks) for module in wrapper.modules()) == hooks


def test_pieces_are_the_text_whatever_its_tokens():
    """Characters of several tokens, spaces that only stand between words, special tokens, stops across tokens."""
    _, tokenizer = load_model("tiny-chat")
    draw = random.Random(0)
    texts = ["naïve 🦜 café, l'été: ÆØÅ 漢字", "a stop in the mid\ndle of it", " two  spaces "]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    ids += [[draw.randrange(len(tokenizer)) for _ in range(40)] for _ in range(200)]
    for tokens in ids:
        whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for stops in [(), ("d\nd",), ("the", "e m", "q")]:
            transcript, pieces = Transcript(tokenizer, stops), []
            for token in tokens:
                pieces.append(transcript.add(token))
                if transcript.stopped:
                    break
            pieces.append(transcript.end())
            end = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
            assert "".join(pieces) == whole[:end]


def test_a_stop_string_in_what_is_held_back_ends_the_text_too():
    """One token may hold a stop string and the first byte of a character, and be the last."""

    class Halves:
        def decode(self, ids, **_):
            return "".join(["so", " it\nQ: \ufffd"][token] for token in ids)

    listener = Listener()
    job = Job(Request([0], 2, stops=("\nQ:",)), Halves(), listener, lambda: None)
    for token in (0, 1):
        listener(Piece(job.transcript.add(token)))
    job.end("length")
    assert (listener.text, listener.end.reason) == ("so it", "stop")


def test_draws_follow_the_distribution_inside_the_nucleus():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    sampler = Sampler(Sampling(1.0, 1.0, 0))
    counts = torch.bincount(torch.tensor([sampler.token(logits) for _ in range(4000)]), minlength=4) / 4000
    assert torch.allclose(counts, logits.exp(), atol=0.03)
    narrow = Sampler(Sampling(1.0, 0.75, 0))
    assert {narrow.token(logits) for _ in range(200)} == {1, 2}
    assert nucleus(torch.tensor([1.0, 0.0]), 0.5).tolist() == [True, False]
    assert Sampler(Sampling(0.0)).token(logits) == 1
    sharp = Sampler(Sampling(1e-4, 1.0, 0))
    assert {sharp.token(logits) for _ in range(50)} == {1}


def test_what_cannot_be_served_is_refused():
    wrapper = SteeringWrapper(tiny_model(), Intervention(V, 2, 1.0))
    with pytest.raises(ValueError, match="steered already"):
        Engine(wrapper, tiny_tokenizer())
    wrapper.unsteer()
