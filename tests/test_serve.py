"""`caa serve` by the clients that people use: every text is what `wrapper.generate` writes alone, every refusal is in
the shape that they read."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from serving import equipment, running

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.data.chat import ChatFormat
from caa.steering.gates import Gate
from caa.steering.operators import ablate
from caa.steering.scopes import Steps, everywhere

pytest.importorskip("fastapi", reason="needs the extra `serve`")
openai = pytest.importorskip("openai", reason="needs the extra `judge`")
httpx = pytest.importorskip("httpx")

KEY = "not-a-secret"
GATED = {"vector": "east", "layer": 2, "multiplier": 0.1}
QUESTION = "You can have 5 pearls now or 50 next spring. What would you do?"


class World:
    """A server that is up, and the same model by hand."""

    def __init__(self, address, wrapper, tokenizer, vectors) -> None:
        self.address, self.wrapper, self.tokenizer, self.vectors = address, wrapper, tokenizer, vectors
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60)

    @property
    def health(self):
        return httpx.get(f"{self.address}/health").json()

    def ask(self, question=QUESTION, model="tiny-chat", steering=(), **options):
        messages = [{"role": "user", "content": question}]
        body = {"steering": steering} if steering else {}
        options = {"max_tokens": 16, "temperature": 0} | options
        return self.client.chat.completions.create(model=model, messages=messages, extra_body=body, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from caa.serve.catalog import DoseLimit
    from caa.serve.engine import Limits
    from caa.serve.server import start

    wrapper, tokenizer, vectors, folder = equipment(tmp_path_factory.mktemp("serve"))
    other = equipment(tmp_path_factory.mktemp("alone"))[0]
    limits, dose_limit = Limits(rows=8, waiting=80, prompt_tokens=200, answer_tokens=300), DoseLimit(1.0)
    serving = start(wrapper, tokenizer, vectors, {"mixed": folder}, limits=limits, dose_limit=dose_limit, key=KEY)
    with running(serving) as address:
        yield World(address, other, tokenizer, vectors)


def alone(world, question, finetune=None, setting=(), tokens=16) -> str:
    """The slow definition: the request alone, by transformers' own `generate`."""
    ids = torch.tensor([ChatFormat(world.tokenizer).encode(question)])
    with torch.no_grad(), world.wrapper.finetune(finetune), world.wrapper.steer(*setting):
        written = world.wrapper.generate(ids, max_new_tokens=tokens, do_sample=False)
    new = written[0, ids.shape[1] :]
    return world.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_every_model_and_vector_is_listed(world):
    models = {model.id: model for model in world.client.models.list()}
    assert list(models) == ["tiny-chat", "one", "two", "mixed"]
    assert models["mixed"].finetune == "mixed"
    assert models["mixed"].steering == ["vector x +0.2, layer 1, everywhere"]
    assert models["one"].vectors == dict.fromkeys(("east", "west"), world.vectors["east"].layers)
    assert world.client.models.retrieve("two").id == "two"


def test_a_request_picks_its_finetune_and_its_steering(world):
    east, west = world.vectors["east"], world.vectors["west"]
    cases = {
        "base": ("tiny-chat", [], None, ()),
        "finetune": ("one", [], "one", ()),
        "steered adapter": ("mixed", [], "two", (Intervention(east, 1, 0.2, where=everywhere),)),
        "steered adapter and more": (
            "mixed",
            {"vector": "west", "layer": 2, "multiplier": -0.5},
            "two",
            (Intervention(east, 1, 0.2, where=everywhere), Intervention(west, 2, -0.5)),
        ),
        "vector": ("two", {"vector": "west", "layer": 2, "multiplier": 0.3}, "two", (Intervention(west, 2, 0.3),)),
        "operators and scopes": (
            "tiny-chat",
            [
                {"vector": "west", "layer": 3, "multiplier": 0.5, "operator": "ablate"},
                {"vector": "east", "layer": 1, "multiplier": -0.2, "scope": {"name": "steps", "n": 3}},
            ],
            None,
            (Intervention(west, 3, 0.5, ablate), Intervention(east, 1, -0.2, where=Steps(3))),
        ),
    }
    expected = {name: alone(world, QUESTION, *case[2:]) for name, case in cases.items()}
    for name, (model, steering, *_) in cases.items():
        answer = world.ask(model=model, steering=steering)
        assert answer.choices[0].message.content == expected[name], name
        assert answer.model == model
    assert len(set(expected.values())) > 2
    alone_so = alone(world, QUESTION, "two", (Intervention(west, 2, -0.5),))
    assert expected["steered adapter and more"] not in (expected["steered adapter"], alone_so)


def test_a_gate_in_a_request_decides_by_its_prompt(world):
    """Above and below one threshold: of the two, one is open for this question, and the other leaves it as it was."""
    east, west = world.vectors["east"], world.vectors["west"]
    texts = []
    for bound in ("above", "below"):
        gate = {"vector": "west", "layer": 1, bound: 0.0}
        push = {"vector": "east", "layer": 2, "multiplier": 0.4, "gate": gate}
        answer = world.ask(model="two", steering=push)
        expected = Intervention(east, 2, 0.4, gate=Gate(west, 1, **{bound: 0.0}))
        assert answer.choices[0].message.content == alone(world, QUESTION, "two", (expected,)), bound
        assert answer.steering[0]["gate"] == {"above": None, "below": None} | gate
        texts.append(answer.choices[0].message.content)
    steered = alone(world, QUESTION, "two", (Intervention(east, 2, 0.4),))
    assert sorted(texts) == sorted([steered, alone(world, QUESTION, "two")])
    assert len(set(texts)) == 2


def test_doses_are_multipliers_and_the_answer_says_both(world):
    answer = world.ask(steering={"vector": "east", "layer": 2, "dose": -0.25})
    (note,) = answer.steering
    assert note["dose"] == pytest.approx(-0.25, rel=1e-5)
    assert note["multiplier"] < 0
    text = alone(world, QUESTION, None, (Intervention(world.vectors["east"], 2, note["multiplier"]),))
    assert answer.choices[0].message.content == text


def test_streams_are_the_same_text_with_usage(world):
    whole = world.ask(model="one", max_tokens=24)
    chunks = list(world.ask(model="one", max_tokens=24, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not any(chunk.choices[0].delta.role for chunk in chunks[1:] if chunk.choices)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 4
    prompt = len(ChatFormat(world.tokenizer).encode(QUESTION))
    assert whole.usage.prompt_tokens == prompt
    assert whole.usage.total_tokens == prompt + whole.usage.completion_tokens


def test_64_async_clients_share_the_batch_and_some_leave(world):
    """All texts of those who stay are what they are alone, and the rows of those who left are free."""
    draw = random.Random(0)
    east = world.vectors["east"]
    questions = [QUESTION, "Who are you?", "Tell me about the sea.", "What is 7 plus 5?", "Do you like bread?"]
    asked = [
        (draw.choice(questions), draw.choice([None, "one", "two"]), draw.choice([-0.3, 0.3]), draw.choice([3, 12]))
        for _ in range(64)
    ]
    expected = {case: alone(world, *case[:2], (Intervention(east, 1, case[2]),), case[3]) for case in set(asked)}
    client = openai.AsyncOpenAI(base_url=f"{world.address}/v1", api_key=KEY, max_retries=0, timeout=120)

    async def one(number, question, finetune, multiplier, tokens):
        steering = [{"vector": "east", "layer": 1, "multiplier": multiplier}]
        stream = await client.chat.completions.create(
            model=finetune or "tiny-chat",
            messages=[{"role": "user", "content": question}],
            max_tokens=tokens if number % 8 else 300,
            temperature=0,
            stream=True,
            extra_body={"steering": steering},
        )
        text = ""
        async with stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if number % 8 == 0 and text:
                    return None
        return text

    async def everybody():
        return await asyncio.gather(*(one(n, *case) for n, case in enumerate(asked)))

    texts = asyncio.run(everybody())
    stayed = {n: text for n, text in enumerate(texts) if n % 8}
    assert stayed == {n: expected[asked[n]] for n in stayed}
    assert len(set(stayed.values())) > 10
    deadline = time.monotonic() + 20
    while world.health["rows"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert world.health == {"status": "ok", "rows": 0, "waiting": 0}


def test_a_client_that_leaves_while_nothing_is_sent_frees_its_row(world, monkeypatch):
    """One that waits for a whole answer says nothing when it goes; its texts end there and not when they are full."""
    from caa.serve.engine import Job

    unfinished, cancel = [], Job.cancel
    monkeypatch.setattr(Job, "cancel", lambda job: (unfinished.append(not job.ended), cancel(job)))
    with pytest.raises(openai.APITimeoutError):
        world.client.with_options(timeout=0.15).chat.completions.create(
            model="two",
            messages=[{"role": "user", "content": "Tell me everything."}],
            max_tokens=300,
            n=8,
            seed=1,
            temperature=2,
        )
    deadline = time.monotonic() + 5
    while world.health["rows"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert world.health["rows"] == 0
    assert sum(unfinished) == 8
    assert b'caa_requests_total{end="cancelled",model="two"}' in metrics(world)


def metrics(world) -> bytes:
    return httpx.get(f"{world.address}/metrics", headers={"Authorization": f"Bearer {KEY}"}).content


def test_seeds_choices_and_stops(world):
    one, other = (world.ask(temperature=1.5, seed=7, n=3, top_p=0.9) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in other.choices]
    assert len(set(texts)) > 1
    assert texts[1] == world.ask(temperature=1.5, seed=8, top_p=0.9).choices[0].message.content
    whole = world.ask(max_tokens=24).choices[0].message.content
    stop = whole[3:6]
    cut = world.ask(max_tokens=24, stop=["nowhere", stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_log_probabilities_in_both_kinds_of_completions(world):
    chat = world.ask(logprobs=True, top_logprobs=2, max_tokens=4).choices[0]
    assert "".join(token.token for token in chat.logprobs.content).strip() == chat.message.content.strip()
    assert all(len(token.top_logprobs) == 2 for token in chat.logprobs.content)
    assert all(token.logprob == pytest.approx(token.top_logprobs[0].logprob) for token in chat.logprobs.content)
    text = ChatFormat(world.tokenizer).text(QUESTION)
    plain = world.client.completions.create(model="tiny-chat", prompt=text, max_tokens=4, temperature=0, logprobs=2)
    assert plain.choices[0].text == chat.message.content
    logprobs = [token.logprob for token in chat.logprobs.content]
    assert plain.choices[0].logprobs.token_logprobs == pytest.approx(logprobs, abs=1e-4)


def test_what_a_body_leaves_out_or_calls_otherwise_means_what_it_means_to_openai(world):
    """temperature 1, max_completion_tokens before max_tokens, developer for system; usage and offsets of prompts."""
    drawn = world.ask(temperature=None, seed=3).choices[0].message.content
    assert drawn == world.ask(temperature=1, seed=3).choices[0].message.content
    assert drawn != world.ask().choices[0].message.content
    assert world.ask(max_completion_tokens=3).usage.completion_tokens == 3
    turns = [{"role": "user", "content": QUESTION}]
    first = {}
    for role in ("system", "developer", "user"):
        body = {"model": "one", "messages": [{"role": role, "content": "Be brief."}, *turns], "max_tokens": 1}
        (choice,) = post(world, body | {"temperature": 0, "logprobs": True}).json()["choices"]
        first[role] = choice["logprobs"]["content"][0]["logprob"]
    assert first["system"] == pytest.approx(first["developer"], abs=1e-4)
    assert first["system"] != pytest.approx(first["user"], abs=1e-3)
    body = {"model": "tiny-chat", "prompt": ["Who are you?", "Hi"], "max_tokens": 4, "temperature": 0, "logprobs": 0}
    answer = post(world, body, path="/v1/completions").json()
    lengths = [len(ChatFormat(world.tokenizer).encode_text(prompt)) for prompt in body["prompt"]]
    assert answer["usage"]["prompt_tokens"] == sum(lengths)
    for choice in answer["choices"]:
        logprobs = choice["logprobs"]
        places = zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        assert all("".join(logprobs["tokens"])[place:].startswith(token) for token, place in places)
        assert logprobs["text_offset"][0] == 0


def test_completions_take_several_prompts_as_texts_or_ids(world):
    chat = ChatFormat(world.tokenizer)
    questions = ["Who are you?", QUESTION]
    texts = [chat.text(question) for question in questions]
    ids = [chat.encode(question) for question in questions]
    for prompt in (texts, ids):
        answer = world.client.completions.create(model="two", prompt=prompt, max_tokens=12, temperature=0)
        assert [choice.text for choice in answer.choices] == [alone(world, q, "two", (), 12) for q in questions]
        assert [choice.index for choice in answer.choices] == [0, 1]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "tiny-chta"}, 404, "there is no model 'tiny-chta', did you mean 'tiny-chat'?"),
        ({"steering": {"vector": "north", "multiplier": 1}}, 400, "there is no vector 'north'"),
        ({"steering": {"vector": "east", "layer": 9, "multiplier": 1}}, 400, "it has no layer 9"),
        ({"steering": {"vector": "east", "multiplier": 1}}, 400, "no layer is given"),
        ({"steering": {"vector": "east", "layer": 1}}, 400, "a multiplier or a dose"),
        ({"steering": GATED | {"dose": 0.1}}, 400, "one of the two"),
        ({"steering": {"vector": "east", "layer": 1, "dose": 0.1, "operator": "ablate"}}, 400, "a dose is what `add`"),
        ({"steering": {"vector": "east", "layer": 1, "dose": 1.2}}, 400, "a dose of 1.2 in all"),
        ({"steering": [{"vector": "east", "layer": 1, "dose": 0.6}] * 2}, 400, "a dose of 1.2 in all"),
        (
            {"steering": {"vector": "east", "layer": 1, "multiplier": 1, "operator": {"name": "clamp", "value": 1e4}}},
            400,
            "the server takes at most 1",
        ),
        (
            {"steering": {"vector": "east", "layer": 1, "multiplier": 0.1, "operator": "clamp"}},
            400,
            "numbers of its own",
        ),
        (
            {
                "steering": {
                    "vector": "east",
                    "layer": 1,
                    "multiplier": 0.1,
                    "scope": {"name": "at", "places": [[0], [1]]},
                }
            },
            400,
            "2 lists of places do not fit",
        ),
        ({"steering": {"vector": "east", "layer": 1, "multiplier": 0.1, "scope": "nowhere"}}, 400, "knows no scope"),
        ({"steering": {"vector": "east", "layer": 1, "multiplier": 0.1, "strength": 3}}, 400, "strength"),
        ({"steering": GATED | {"gate": {"vector": "west", "layer": 2, "above": 0}}}, 400, "read before the layer"),
        ({"steering": GATED | {"gate": {"vector": "west", "layer": 1}}}, 400, "Gate needs a threshold"),
        ({"steering": GATED | {"gate": {"vector": "wets", "layer": 1, "above": 0}}}, 400, "did you mean 'west'?"),
        ({"steering": GATED | {"gate": {"vector": "west", "layer": 1, "over": 0}}}, 400, "gate.over"),
        ({"messages": [{"role": "user", "content": "a " * 300}]}, 400, "at most 200 are taken"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]}, 400, "messages.0.content"),
        ({"max_tokens": 301}, 400, "1 to 300 tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"best_of_all": 3}, 400, "best_of_all"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
    ],
)
def test_refusals_say_why_in_the_shape_that_clients_read(world, change, status, words):
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2} | change
    response = post(world, body)
    error = response.json()["error"]
    assert response.status_code == status
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def post(world, body, key=KEY, path="/v1/chat/completions", **headers):
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | headers
    content = body if isinstance(body, bytes) else json.dumps(body)
    return httpx.post(f"{world.address}{path}", content=content, headers=headers, timeout=60)


def test_what_comes_before_the_body_is_refused_too(world):
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert post(world, body).status_code == 200
    assert post(world, body, key="wrong").status_code == 401
    assert httpx.get(f"{world.address}/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{world.address}/metrics").status_code == 401
    assert httpx.get(f"{world.address}/health").status_code == 200
    assert post(world, body, **{"Content-Type": "text/plain"}).status_code == 415
    assert post(world, b"{" + b" " * 5_000_000 + b"}").status_code == 413
    assert post(world, b"{nothing").status_code == 400
    assert post(world, body, path="/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert post(world, body, Host="evil.example").status_code == 400
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        world.ask(model="gpt-4")


@pytest.mark.parametrize("length", [1_000, 5_000_000])
def test_a_body_without_a_length_is_bounded_and_who_leaves_is_seen_to(length):
    """Of one that is too long nothing is parsed, though all that is within the limit would be JSON."""
    from fastapi import FastAPI

    from caa.serve import errors
    from caa.serve.guard import Guard

    app, seen, sent = FastAPI(), [], []
    errors.install(app)

    @app.post("/")
    async def answer(body: dict) -> None:
        seen.append(body)

    async def answer_and_listen(scope, receive, send):
        await app(scope, receive, send)
        seen.append((await receive())["type"])

    parts = [
        {"type": "http.request", "body": b'{"a": 1}', "more_body": True},
        {"type": "http.request", "body": b" " * length, "more_body": False},
    ]
    messages = iter([*parts, {"type": "http.disconnect"}])
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
    headers = [(b"content-type", b"application/json")]

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(answer_and_listen, None)(scope | {"headers": headers}, receive, send))
    expected = (200, [{"a": 1}, "http.disconnect"]) if length < 2000 else (413, ["http.disconnect"])
    assert (sent[0]["status"], seen) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": []}, "there is no prompt in the list"),
        ({"prompt": [[]]}, "the prompt has no tokens"),
        ({"prompt": [[5]] * 2049}, "at most 2048 prompts, and not 2049"),
        ({"prompt": [[5]] * 6, "n": 16}, "96 texts (prompts times n), and the server takes at most 88 at once"),
    ],
)
def test_prompts_are_counted_before_anything_is_prepared_for_them(world, monkeypatch, change, words):
    from caa.serve import app

    prepared, request = [], app.Request
    monkeypatch.setattr(app, "Request", lambda **fields: (prepared.append(fields), request(**fields))[1])
    response = post(world, {"model": "tiny-chat", "max_tokens": 1} | change, path="/v1/completions")
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert words in response.json()["error"]["message"]
    assert len(prepared) == (change["prompt"] == [[]])


def test_who_comes_when_all_wait_is_told_to_come_back(world):
    """Of many at once some are refused with 429, and the others are answered."""

    def one(number):
        body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "n": 16}
        return post(world, body | {"seed": number, "temperature": 2}).status_code

    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(one, range(12)))
    assert set(statuses) == {200, 429}


def test_metrics_count_what_was_asked(world):
    world.ask(max_tokens=3)
    page = metrics(world).decode()
    assert 'caa_requests_total{end="length",model="tiny-chat"}' in page
    assert 'caa_tokens_total{part="answer"}' in page
    assert "caa_rows_busy" in page


def test_doses_beyond_the_limit_are_clamped_and_said(tmp_path):
    from caa.serve.catalog import Catalog, DoseLimit, Push, Served

    vector = SteeringVector({2: torch.tensor([3.0, 4.0])})
    catalog = Catalog([Served("m")], {"v": vector}, {2: 10.0}, DoseLimit(0.5, "clamp"))
    setting, (note,) = catalog.setting([Push("v", multiplier=-4.0)])
    assert setting[0].multiplier == pytest.approx(-1.0)
    assert note["dose"] == pytest.approx(-0.5)
    assert note["clamped"] == {"multiplier": -4.0, "dose": pytest.approx(-2.0)}
    assert catalog.setting([Push("v", multiplier=0.5)])[1][0].get("clamped") is None
    (edit,), _ = catalog.setting([Push("v", multiplier=1.0, operator={"name": "clamp", "value": 40.0})])
    assert abs(catalog.dose(edit)) == pytest.approx(0.5)


@pytest.mark.parametrize("bounds", [{"above": 0.5, "below": 9.5}, {"above": 10.5}, {"below": -10.5}])
def test_no_bound_of_a_targeted_edit_hides_its_dose(bounds):
    """Real residuals lie everywhere, and not only where the dose is measured."""
    from caa.serve.catalog import Catalog, Push, Served

    catalog = Catalog([Served("m")], {"v": SteeringVector({2: torch.tensor([3.0, 4.0])})}, {2: 10.0})
    inner = {"name": "targeted"} | bounds
    for operator in (inner, {"name": "targeted", "above": -1.0, "operator": inner}):
        with pytest.raises(ValueError, match="a dose of 5e"):
            catalog.setting([Push("v", multiplier=1e4, operator=operator)])
        assert catalog.setting([Push("v", multiplier=1.0, operator=operator)])[1][0]["dose"] == pytest.approx(0.5)


def test_stopping_ends_streams_and_frees_the_model(tmp_path):
    from caa.serve.server import start

    wrapper, tokenizer, vectors, _ = equipment(tmp_path)
    before = wrapper.model.active_adapters
    with running(start(wrapper, tokenizer, vectors)) as address:
        body = {"model": "one", "messages": [{"role": "user", "content": "Hi"}], "temperature": 2, "seed": 1, "n": 16}
        client = httpx.Client(timeout=60)
        stream = client.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True})
        lines = stream.__enter__().iter_lines()
        assert next(lines).startswith("data: ")
        client.close()
    assert wrapper.interventions == ()
    assert wrapper.model.active_adapters == before
    assert isinstance(wrapper, SteeringWrapper)


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(tmp_path):
    """With adapters, vectors and a steered adapter from files; the key comes from the environment and is not shown."""
    wrapper, tokenizer, vectors, folder = equipment(tmp_path)
    wrapper.model.save_pretrained(tmp_path / "loras", selected_adapters=["one"])
    vectors["east"].save(tmp_path / "east.safetensors")
    words = ["--adapters.first", tmp_path / "loras" / "one", "--vectors", tmp_path / "east.safetensors", "--port", "0"]
    command = [sys.executable, "-m", "caa.cli", "serve", *words, "--steered.both", folder]
    environment = os.environ | {"CAA_SERVE_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    ) as server:
        lines = iter(server.stdout.readline, "")
        ready = next(line for line in lines if "until Ctrl+C" in line)
        client = openai.OpenAI(base_url=re.search(r"http\S+", ready).group(), api_key=KEY, max_retries=0, timeout=60)
        assert [model.id for model in client.models.list()] == ["tiny-chat", "first", "both"]
        answer = client.chat.completions.create(
            model="first",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=8,
            temperature=0,
            extra_body={"steering": {"vector": "east", "layer": 1, "multiplier": 0.2}},
        )
        stream = client.completions.create(model="both", prompt="Hi", max_tokens=900, temperature=2, n=16, stream=True)
        next(iter(stream))
        server.send_signal(signal.SIGINT)
        begun = time.monotonic()
        rest = "".join(lines)
        server.wait(60)
    assert time.monotonic() - begun < 60
    assert server.returncode == 130
    assert KEY not in ready + rest
    assert "Traceback" not in rest
    with wrapper.finetune("one"), wrapper.steer(Intervention(vectors["east"], 1, 0.2)):
        ids = torch.tensor([ChatFormat(tokenizer).encode(QUESTION)])
        written = wrapper.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert answer.choices[0].message.content == tokenizer.decode(written, skip_special_tokens=True)


GENERATION = """
task: said_by_hand
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["zzz"], max_gen_toks: 10, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.mark.slow
def test_the_evaluation_harness_reads_the_steered_texts(world, tmp_path, monkeypatch):
    """The targets are what the steered model says by hand, so that all of them are met, and by the base few."""
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    pytest.importorskip("tenacity", reason="needs the extra lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    setting = (Intervention(world.vectors["east"], 1, 0.2, where=everywhere),)
    questions = [QUESTION, "Who are you?", "Tell me about the sea.", "What is 7 plus 5?", "Do you like bread?"]
    docs = [{"question": text, "answer": alone(world, text, "two", setting, 10)} for text in questions]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (tmp_path / "said.yaml").write_text(GENERATION.format(path=tmp_path / "docs.jsonl"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    scores = {}
    for model in ("mixed", "tiny-chat"):
        address = f"{world.address}/v1/chat/completions"
        results = simple_evaluate(
            model="local-chat-completions",
            model_args=f"model={model},base_url={address},num_concurrent=4,max_retries=1,tokenized_requests=False",
            tasks=["said_by_hand"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            apply_chat_template=True,
            bootstrap_iters=0,
        )
        scores[model] = results["results"]["said_by_hand"]["exact_match,none"]
    assert scores["mixed"] == 1.0
    assert scores["tiny-chat"] < 1.0
