"""Judges that ask a server: a real one, in a thread, that fails as real ones do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

from caa.data.behaviors import Behavior, Question
from caa.judges.base import Judge, Verdict
from caa.judges.build import make_asker, make_judge
from caa.judges.clients import transport
from caa.judges.clients.transport import JudgeError
from caa.judges.config import JudgeConfig
from caa.judges.summary import judge_summary
from tests.judge_server import FAULTS, said, serving

pytest.importorskip("openai")
BEHAVIOR = Behavior("patience", rubric="How patient is it? 0: not at all. 10: fully.")
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    import openai._base_client as client

    monkeypatch.setattr(client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def config(url: str, **fields) -> JudgeConfig:
    return JudgeConfig("endpoint", "m", **{"base_url": url, "timeout": 0.4, "retries": 30, **fields})


def asked(n: int) -> tuple[list[Question], list[str]]:
    return [Question(f"Question {i}?") for i in range(n)], [f"I would wait {i} days." for i in range(n)]


def days(request: dict) -> dict:
    """A judge whose score can be read off the answer."""
    prompt = request["messages"][0]["content"]
    return said(str(int(prompt.split("I would wait ")[1].split()[0]) % 11))


def test_scores_come_back_in_order_and_are_paid_for_once(tmp_path):
    with serving(days) as server:
        judge = make_judge(config(server.url), BEHAVIOR, tmp_path)
        assert isinstance(judge, Judge)
        verdicts = judge.judge_all(*asked(15))
        assert [v.score for v in verdicts] == [float(i % 11) for i in range(15)]
        assert judge(*(x[3] for x in asked(15))).score == 3
        again = make_judge(config(server.url), BEHAVIOR, tmp_path)
        assert again.judge_all(*asked(15)) == verdicts
        assert len(server.requests) == 15
        other = make_judge(config(server.url, request={"seed": 1}), BEHAVIOR, tmp_path)
        other.judge_all(*asked(15))
        assert len(server.requests) == 30, "another setting is another question"
        sent = server.requests[0]
    assert (sent["model"], sent["temperature"], sent["authorization"]) == ("m", 0, f"Bearer {KEY}")
    assert BEHAVIOR.rubric in sent["messages"][0]["content"]
    assert "seed" not in sent


def test_a_judge_that_fails_half_the_time_ends_complete_with_its_retries_counted(tmp_path):
    def fault(number: int) -> str | None:
        return FAULTS[number // 2 % len(FAULTS)] if number % 2 else None

    with serving(days, fault) as server:
        judge = make_judge(config(server.url), BEHAVIOR, tmp_path)
        verdicts = judge.judge_all(*asked(32))
        assert [v.score for v in verdicts] == [float(i % 11) for i in range(32)]
        assert set(server.faults) == set(FAULTS)
        records = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
        retries = len(server.requests) - 32
        assert retries >= len(server.faults) >= 24, "on a busy machine a good reply may come too late as well"
        assert sum(record["retries"] for record in records) == retries
    assert judge_summary(tmp_path).startswith(f"32 replies from a server, {retries} retries, 320 + 32 tokens")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_repeated_as_often_as_allowed_and_no_more(tmp_path, fault):
    with serving(days, lambda number: fault) as server:
        judge = make_judge(config(server.url, retries=2, timeout=0.2), BEHAVIOR, tmp_path)
        with pytest.raises(JudgeError, match=r"gives no reply: .* run the job again"):
            judge.judge_all(*asked(1))
        assert len(server.requests) == 3
    assert not (tmp_path / "judge.jsonl").exists(), "a failure is no reply"


def test_a_server_that_names_a_time_is_left_alone_until_then(tmp_path):
    def answer(request):
        return days(request) if len(server.requests) > 1 else {"status": 429, "body": {"error": {}}}

    with serving(answer) as server:
        server.retry_after = "400"
        begin = time.monotonic()
        make_judge(config(server.url), BEHAVIOR, tmp_path).judge_all(*asked(1))
        assert time.monotonic() - begin > 0.4


def test_a_run_that_broke_off_asks_only_for_what_is_missing(tmp_path):
    with serving(days, lambda number: "401" if number >= 10 else None) as server:
        judge = make_judge(config(server.url, concurrency=2), BEHAVIOR, tmp_path)
        with pytest.raises(JudgeError, match="come back later"):
            judge.judge_all(*asked(30))
        assert len(server.requests) <= 16, "after an error that will not pass, nothing more is asked"
    path = tmp_path / "judge.jsonl"
    kept = path.read_bytes()
    path.write_bytes(kept[:-20])  # the last line was being written when the job was killed
    with serving(days, port=server.server_address[1]) as server:
        judge = make_judge(config(server.url), BEHAVIOR, tmp_path)
        assert [v.score for v in judge.judge_all(*asked(30))] == [float(i % 11) for i in range(30)]
        assert len(server.requests) == 30 - 9
    assert path.read_bytes().count(b"\n") == 30


@pytest.mark.slow
def test_a_killed_run_asks_only_for_what_is_missing(tmp_path):
    job = (
        "import sys; from tests.test_endpoint import *\n"
        "judge = make_judge(config(sys.argv[1], concurrency=3, timeout=20), BEHAVIOR, sys.argv[2])\n"
        "assert [v.score for v in judge.judge_all(*asked(40))] == [float(i % 11) for i in range(40)]"
    )
    with serving(days) as server:
        server.delay = 0.1
        command = [sys.executable, "-c", job, server.url, str(tmp_path)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        while len(server.requests) < 12 and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.wait()
        time.sleep(0.2)
        kept = (tmp_path / "judge.jsonl").read_bytes().count(b"\n")
        assert 5 < kept < 40
        before = len(server.requests)
        subprocess.run(command, cwd=Path(__file__).parents[1], check=True)
        assert len(server.requests) - before == 40 - kept
        assert max(Counter(server.prompts).values()) <= 2


def test_the_key_is_nowhere(tmp_path, caplog):
    caplog.set_level("DEBUG")

    def echo(request):
        if len(server.requests) > 1:
            return {"status": 401, "body": {"error": {"message": f"wrong key {request['authorization']}"}}}
        return said(f"8, by the way {request['authorization']}")

    with serving(echo) as server:
        judge = make_judge(config(server.url, concurrency=1), BEHAVIOR, tmp_path)
        judge.judge_all(*asked(1))
        with pytest.raises(JudgeError, match="wrong key") as error:
            judge.judge_all(*asked(2))
        assert server.requests[0]["authorization"] == f"Bearer {KEY}"
    told = "".join(traceback.format_exception(error.value)) + caplog.text + repr(judge) + json.dumps(judge.settings)
    told += (tmp_path / "judge.jsonl").read_text()
    assert KEY not in told
    assert told.count("[key]") >= 2


def test_a_refusal_for_one_text_is_a_verdict_and_for_all_texts_an_error(tmp_path):
    def answer(request):
        code = "content_filter" if "wait 1 days" in request["messages"][0]["content"] else "unsupported_value"
        return days(request) if "wait 0" in request["messages"][0]["content"] else refusal(code)

    def refusal(code):
        return {"status": 400, "body": {"error": {"message": "no temperature, please", "code": code}}}

    with serving(answer) as server:
        judge = make_judge(config(server.url, concurrency=1), BEHAVIOR, tmp_path)
        assert judge.judge_all(*asked(2)) == [Verdict(0.0), Verdict(None, "refused: content_filter")]
        with pytest.raises(JudgeError, match="no temperature, please"):
            judge.judge_all(*asked(3))
        assert len(server.requests) == 3


def test_what_cannot_be_read_is_counted_and_what_needs_no_judge_is_not_asked(tmp_path):
    with serving(lambda request: said("I'd rather not say.")) as server:
        judge = make_judge(config(server.url), BEHAVIOR, tmp_path)
        answers = ["I would wait.", "", "BBBBBBBBBBBBB", "I would wait."]
        verdicts = judge.judge_all([Question("Wait?")] * 4, answers)
        assert len(server.requests) == 1
    unparsable = Verdict(None, 'unparsable reply "I\'d rather not say."')
    assert verdicts == [unparsable, Verdict(None, "empty"), Verdict(None, "letter string"), unparsable]


def test_requests_overlap_as_far_as_allowed(tmp_path):
    with serving(days) as server:
        server.delay = 0.1
        make_judge(config(server.url, concurrency=4, timeout=5), BEHAVIOR, tmp_path).judge_all(*asked(12))
        assert server.busiest == 4


def likely(*places: dict[str, float]) -> list[dict]:
    """The protocol's form of tokens and their probabilities; the first of each place is the one that is said."""
    from math import log

    def place(tokens):
        top = [{"token": token, "logprob": log(p)} for token, p in tokens.items()]
        return {**top[0], "top_logprobs": top}

    return [place(tokens) for tokens in places]


NINE = likely({" ": 0.9}, {"9": 0.6, "1": 0.3, "x": 0.1})
TEN_SPLIT, TEN_WHOLE = likely({"1": 0.9}, {"0": 0.9}), likely({"10": 0.9, "1": 0.01})


def expected(tmp_path, ten, prefill, after_one=None) -> Verdict:
    def answer(request):
        assert request["top_logprobs"] == 20
        messages = request["messages"]
        if len(messages) == 2:
            assert request["continue_final_message"]
            assert messages[1] == {"role": "assistant", "content": "1"}
            return said("0", after_one)
        return said("10", ten) if "number 10" in messages[0]["content"] else said(" 9", NINE)

    with serving(answer) as server:
        judge = make_judge(config(server.url, reply="expected", prefill=prefill), BEHAVIOR, tmp_path)
        return judge(*(x[0] for x in asked(1)))


def test_a_one_that_may_begin_a_ten_is_never_taken_for_a_one(tmp_path):
    blind = expected(tmp_path / "a", TEN_SPLIT, prefill=False)
    assert blind.score is None
    assert "set prefill" in blind.reason
    seen = expected(tmp_path / "b", TEN_SPLIT, prefill=True, after_one=likely({"0": 0.8, "<eos>": 0.2}))
    assert seen.score == pytest.approx((0.6 * 9 + 0.24 * 10 + 0.06 * 1) / 0.9)
    whole = expected(tmp_path / "c", TEN_WHOLE, prefill=False)
    assert whole.score == pytest.approx((0.6 * 9 + 0.3 * 1) / 0.9)


def test_a_number_that_is_only_one_thing_among_many_is_no_score(tmp_path):
    unsure = likely({"Well": 0.7, "7": 0.3})
    with serving(lambda request: said("Well", unsure)) as server:
        judge = make_judge(config(server.url, reply="expected"), BEHAVIOR, tmp_path)
        verdict = judge(*(x[0] for x in asked(1)))
    assert verdict == Verdict(None, "unparsable reply 'Well': numbers from 0 to 10 had a probability of 0.3")


def test_a_server_without_probabilities_says_so(tmp_path):
    with serving(lambda request: said("7")) as server:
        judge = make_judge(config(server.url, reply="expected"), BEHAVIOR, tmp_path)
        assert "no probabilities" in judge(*(x[0] for x in asked(1))).reason


def test_a_behavior_without_a_rubric():
    with pytest.raises(ValueError, match="'mute' has no rubric"):
        make_judge(config("http://127.0.0.1:9/v1"), Behavior("mute"), "nowhere")


def test_a_key_is_needed_where_there_is_no_server_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="set the environment variable OPENAI_API_KEY"):
        make_asker(JudgeConfig("endpoint", "m"), tmp_path)
    with serving(days) as server:
        make_judge(config(server.url), BEHAVIOR, tmp_path).judge_all(*asked(1))


def test_what_a_command_line_gives():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--judge", type=JudgeConfig, default=JudgeConfig())
    given = ["--judge.kind", "endpoint", "--judge.model", "m", "--judge.request", '{"seed": 1, "max_tokens": null}']
    made = parser.instantiate(parser.parse_args(given)).judge
    assert made == JudgeConfig("endpoint", "m", request={"seed": 1, "max_tokens": None})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kind": "endpoint"}, "an endpoint judge needs a model"),
        ({"kind": "local"}, "a local judge needs a model"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"request": {"api_key": "x"}}, "put the key into the environment"),
        ({"base_url": "http://user:word@host/v1"}, "holds a name, a password or a query"),
        ({"base_url": "http://host/v1?key=word"}, "holds a name, a password or a query"),
    ],
)
def test_settings_that_are_wrong(fields, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        JudgeConfig(**fields)
    assert "word@" not in str(error.value)
    assert "key=word" not in str(error.value)
