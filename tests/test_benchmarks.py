"""The benchmarks: the harness counts right, and a run with very little to do goes through and is right but for time."""

from __future__ import annotations

import doctest
import json
import mmap
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from benchmarks import generating, harness, loops, versions
from benchmarks.batches import rendered
from benchmarks.extraction import unique_tokens
from benchmarks.generating import same
from benchmarks.harness import Contender, Timing, alternate
from benchmarks.machine import machine
from benchmarks.memory import many_pairs, measured, watched
from benchmarks.report import Claim, Report, new_stem, write
from benchmarks.run import main
from benchmarks.scaling import least_work
from benchmarks.subjects import SHORT, lengthened, subject
from caa import Question
from caa.data.chat import ChatFormat
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]


def test_contenders_take_turns_and_each_begins_a_round():
    called: list[str] = []
    work = [Contender(name, lambda name=name: called.append(name)) for name in "abc"]
    timings, _ = alternate(work, repeats=3)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab"
    assert [len(timing.seconds) for timing in timings] == [3, 3, 3]


def test_a_part_of_a_job_is_scaled_to_the_whole(monkeypatch):
    monkeypatch.setattr(harness, "once", lambda run: 2.0)
    (whole, part), results = alternate([Contender("whole", lambda: 1), Contender("part", lambda: 2, share=0.25)], 5)
    assert whole.seconds == (2.0,) * 5
    assert part.seconds == (8.0,) * 5
    assert results == {"whole": 1, "part": 2}
    with pytest.raises(ValueError, match="share"):
        Contender("none", lambda: 0, share=0)


def test_a_ratio_is_slow_over_fast_and_a_claim_knows_its_side():
    report = Report("t", "s", [Timing("slow", (1.0, 6.0, 9.0)), Timing("fast", (1.0, 2.0, 9.0))])
    report.ratio("at least", "slow", "fast", 2.5, at_least=True)
    report.ratio("at most", "slow", "fast", 2)
    report.ratio("never measured", "slow", "nobody")
    assert [(claim.value, claim.met) for claim in report.claims] == [(3.0, True), (3.0, False)]
    assert Claim("told", 1.0).met is None
    assert "**no**" in report.markdown()


def test_results_are_never_overwritten(tmp_path):
    record = {"slug": "cpu-2-cores", "date": "2026-01-02T03:04:05"}
    stem = new_stem(tmp_path, record)
    write(stem, record, [])
    assert stem.name == "cpu-2-cores-2026-01-02T0304"
    assert new_stem(tmp_path, record).name == f"{stem.name}-2"


def test_the_machine_is_on_record():
    record = machine()
    assert record["cores"] >= 1
    assert record["threads"] == torch.get_num_threads()
    assert record["torch"] == torch.__version__
    assert record["processor"]


def test_texts_come_as_long_as_they_were_asked_for():
    tokenizer = tiny_tokenizer()
    texts = lengthened(tokenizer, [Question(f"Which is number {n}?") for n in range(6)], 400)
    lengths = [len(ChatFormat(tokenizer).encode(text)) for text in texts]
    assert 300 <= min(lengths) < max(lengths) <= 600
    assert all(text.endswith(f"number {n}?") for n, text in enumerate(texts))
    assert len({pair.question for pair in many_pairs(3000)}) == 3000


@pytest.fixture(scope="module")
def tiny():
    model = tiny_model()
    model.config.max_position_embeddings = 4096
    return subject("tiny", model, tiny_tokenizer(), SHORT)


def test_every_loop_gives_the_probabilities_of_the_plain_model(tiny):
    settings = tiny.settings((1.0,))
    slow = loops.reference(tiny, tiny.questions, settings)
    assert (slow - loops.unsteered(tiny, tiny.questions, 2)).abs().max() > 1e-3, "nothing was steered"
    torch.testing.assert_close(loops.cell_by_cell(tiny, tiny.questions, settings, 2), slow, atol=1e-5, rtol=0)
    unsteered = loops.reference(tiny, tiny.questions, tiny.settings((0.0,))[:1])
    torch.testing.assert_close(loops.unsteered(tiny, tiny.questions, 1), unsteered, atol=1e-6, rtol=0)


def test_steering_vectors_does_the_same_where_it_is_installed(tiny):
    pytest.importorskip("steering_vectors", reason="`make bench` installs it")
    settings = tiny.settings((1.0,))
    slow = loops.reference(tiny, tiny.questions, settings)
    for loop in (loops.by_steering_vectors, loops.by_steering_vectors_with_cache):
        torch.testing.assert_close(loop(tiny, tiny.questions, settings, 2), slow, atol=1e-5, rtol=0)


def test_the_floor_reads_a_prompt_once_and_both_letters(tiny):
    for pair, ids in zip(sorted(tiny.pairs, key=lambda pair: len(pair.question)), unique_tokens(tiny), strict=True):
        prompt = ChatFormat(tiny.tokenizer).encode(pair.question)
        assert len(ids) == len(prompt) + len(" (") + 2


def test_a_compiled_model_gives_the_same_answers(tiny):
    report = generating.compiled(tiny, SHORT, backend="eager")
    ratio, equal = report.claims
    assert equal.value == 1
    assert ratio.value > 0
    assert [timing.name for timing in report.timings] == [generating.EAGER, generating.COMPILED]


def test_the_least_work_counts_each_token_where_it_must_be_read(tiny):
    """Against FLOPs counted by hand for one question: 2 a weight and token, and attention."""
    length = len(rendered(tiny.tokenizer, tiny.questions)[0].ids)
    one = subject("one", tiny.model, tiny.tokenizer, SHORT)
    del one.questions[1:]
    weights = sum(p.numel() for p in one.model.model.layers[0].parameters())
    top, bottom = one.settings((1.0,))[-1], one.settings((1.0,))[0]
    head = 2 * 32 * one.model.config.vocab_size
    assert least_work(one, [top]).settings == head, "nothing lies above the last layer but the head"
    tail = 1 + len(" (")
    assert least_work(one, [bottom]).settings == head + 3 * tail * (2 * weights + 4 * 32 * length)
    assert least_work(one, [top]).weights == 4 * 2 * weights * length


def test_memory_is_watched_while_it_is_held():
    # Mapped anew: a tensor may be given memory that the process holds already.
    with watched() as sizes, mmap.mmap(-1, 64 * 2**20) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        time.sleep(0.5)
    assert max(sizes) - sizes[0] > 60 * 2**20


@pytest.mark.parametrize("module", [harness, generating, versions])
def test_the_examples_are_right(module):
    assert doctest.testmod(module).attempted
    assert not doctest.testmod(module).failed


def test_the_same_answers_are_found_in_another_order():
    table = [f"{f}{q}{s}" for f in "abc" for q in "01" for s in "xyz"]
    nine = [f"{f}{q}{s}" for f in "abc" for s in "xyz" for q in "01"]
    assert same(table, nine, questions=2, settings=3) == 1
    assert same(table, [*nine[:-1], "other"], questions=2, settings=3) == 17 / 18


def test_a_version_beside_itself_does_every_job_and_gives_the_same(monkeypatch):
    monkeypatch.setitem(versions.QUESTIONS, "tiny-chat", 2)
    monkeypatch.setattr(versions, "STEPS", 3)
    jobs = versions.Jobs("tiny-chat", "tiny-chat")
    jobs.behavior = replace(jobs.behavior, pairs=jobs.behavior.pairs[:9])
    for job in ("open 2", "sweep 6", "extract", "step"):
        report = versions.compare(
            {versions.HERE: jobs, versions.OTHER: jobs}, "tiny-chat", job, 1 if job == "step" else 2
        )
        ratio, equal = report.claims
        assert equal.value == 1
        assert ratio.value == statistics.median(b / a for a, b in zip(*(t.cpu for t in report.timings), strict=True))


@pytest.mark.slow
def test_the_short_form_runs_and_its_numbers_are_right(tmp_path, monkeypatch):
    """Times are not looked at; what must be equal is. Memory is measured here, not in two more processes."""
    monkeypatch.setattr("benchmarks.memory._in_a_process", measured)
    monkeypatch.setattr(logging, "set_verbosity_error", lambda: None)
    main(["--short", "--out", str(tmp_path)])
    (written,) = tmp_path.glob("*.json")
    record = json.loads(written.read_text())
    assert record["machine"]["short"] is True
    assert len(record["reports"]) >= 6
    assert all(len(timing["seconds"]) >= 2 for report in record["reports"] for timing in report["timings"])
    claims = [claim for report in record["reports"] for claim in report["claims"]]
    exact = [claim for claim in claims if "difference" in claim["text"]]
    assert len(exact) >= 4
    assert all(claim["met"] is not False for claim in exact), exact
    assert (tmp_path / f"{written.stem}.md").exists()
    assert (tmp_path / f"{written.stem}-scaling.csv").exists()
