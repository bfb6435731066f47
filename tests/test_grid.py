"""The grid: what it asks and what it does not ask twice, what a killed job keeps, what it refuses to mix."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tiny import SHARED, needs_shared, tiny_lora, tiny_model, tiny_tokenizer

from caa import Behavior, ContrastPair, Question, SteeringVector, SteeringWrapper
from caa.data.chat import ChatFormat
from caa.evals import runner as session
from caa.evals.grid import EvalGrid
from caa.evals.tasks import answer_open, score_choices, stream_open
from caa.judges.base import Verdict
from caa.judges.exemplar import ExemplarJudge
from caa.models.adapters import adapter_hash, load_adapter
from caa.reports.tables import finetune_tables
from caa.runs.rows import OWN, Cell, Row, VectorRef, append_rows, read_rows
from caa.steering.intervention import Intervention, sweep
from caa.steering.operators import Targeted, ablate
from caa.steering.scopes import everywhere

RANDOM = [VectorRef("random", str(seed)) for seed in range(3)]
TOKENIZER = tiny_tokenizer()
AB = tuple(Question(f"Wait {i * 11}?\n (A) Yes\n (B) No", *("(A)", "(B)")[:: (-1) ** i]) for i in range(5))
OPEN = tuple(Question(f"What {'ever ' * i}now?") for i in range(3))
FACTS = (Question("1+1?\n(A) 2\n(B) 3", "(A)", "(B)", category="sums"), Question("2+2?\n(A) 3\n(B) 4", "(B)", "(A)"))
BEHAVIOR = Behavior("myopia", ab_questions=AB, open_questions=OPEN)


def vector(seed: int = 0) -> SteeringVector:
    generator = torch.Generator().manual_seed(100 + seed)  # the controls' seeds begin at 0
    return SteeringVector({layer: torch.randn(32, generator=generator) for layer in range(4)})


def by_length_of_answer(question: Question, answer: str) -> Verdict:
    return Verdict(len(answer) % 11) if len(answer) % 3 else Verdict(None, "a multiple of three")


def make_grid(**changes) -> EvalGrid:
    settings = {
        "behavior": BEHAVIOR,
        "vector": vector(),
        "layers": [1, 2],
        "finetunes": [None, "sft"],
        "judge": by_length_of_answer,
        "max_new_tokens": 3,
        "batch_size": 4,
    }
    return EvalGrid(**settings | changes)


def make_wrapper(seed: int = 0) -> SteeringWrapper:
    return SteeringWrapper(tiny_lora(tiny_model(), "sft", seed))


def run(grid: EvalGrid, out, wrapper: SteeringWrapper | None = None) -> int:
    return grid.run(wrapper or make_wrapper(), TOKENIZER, out, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a finished grid."""
    out = tmp_path_factory.mktemp("whole")
    run(make_grid(), out)
    return out


def place(setting) -> tuple[int, float]:
    """(layer, multiplier); the unsteered model has multiplier 0 and no layer."""
    return (setting[0].layer, setting[0].multiplier) if setting else (-1, 0.0)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, int, float]]:
    """(question, layer, multiplier) of everything that is asked from now on."""
    log: list[tuple[str, int, float]] = []

    def spying(ask):
        def spy(wrapper, tokenizer, questions, settings, **how):
            log.extend((question.id, *place(setting)) for question, setting in product(questions, settings))
            return ask(wrapper, tokenizer, questions, settings, **how)

        return spy

    monkeypatch.setattr(session, "score_choices", spying(score_choices))
    monkeypatch.setattr(session, "stream_open", spying(stream_open))
    return log


def same_rows(found: list[Row], expected: list[Row]) -> None:
    """The same, each once, in any order; numbers up to the rounding of differently made batches."""
    assert len({row.key for row in found}) == len(found)
    there = {row.key: row for row in expected}
    assert {row.key for row in found} == set(there)
    for row in found:
        assert (row.score is None) == (there[row.key].score is None)
        assert row.score is None or row.score == pytest.approx(there[row.key].score, rel=1e-4)
        assert row.evidence.keys() == there[row.key].evidence.keys()
        assert row.evidence.get("text") == there[row.key].evidence.get("text")


def test_every_question_is_asked_in_every_cell(whole):
    rows, grid = read_rows(whole / "rows.jsonl"), make_grid()
    expected = {(cell, q.id) for cell in grid.cells() for q in (AB if cell.task == "ab" else OPEN)}
    assert {row.key for row in rows} == expected
    assert len(rows) == len(expected) == 2 * 2 * 3 * (5 + 3)
    assert set(grid.cells()) == {
        Cell("myopia", task, finetune, layer, multiplier)
        for task, finetune, layer, multiplier in product(("ab", "open"), (None, "sft"), (1, 2), (-1, 0, 1))
    }


def test_scores_equal_asking_one_thing_at_a_time(whole):
    wrapper, questions = make_wrapper(), {question.id: question for question in (*AB, *OPEN)}
    rows = read_rows(whole / "rows.jsonl")
    for row in rows:
        ask = (wrapper, TOKENIZER, [questions[row.question]], sweep(vector(), [row.cell.layer], [row.cell.multiplier]))
        with wrapper.finetune(row.cell.finetune):
            if row.cell.task == "ab":
                (found,) = score_choices(*ask)
                assert row.score == pytest.approx(found.score, rel=1e-4)
                letter = {"(A)": "A", "(B)": "B"}[questions[row.question].matching]
                assert row.evidence.pop("matching") == letter
                assert row.evidence == pytest.approx(
                    {"p_matching": found.p_matching, "p_opposite": found.p_opposite}, rel=1e-3
                )
            else:
                (text,) = answer_open(*ask, max_new_tokens=3)
                verdict = by_length_of_answer(questions[row.question], text)
                assert row.evidence == {"asked": questions[row.question].text, "text": text, "reason": verdict.reason}
                assert row.score == verdict.score
    assert len({row.score for row in rows if row.cell.task == "ab"}) > 40, "or every cell would do"
    assert None in {row.score for row in rows}


def test_the_unsteered_model_is_asked_once_for_all_layers(tmp_path, asked):
    run(make_grid(finetunes=[None]), tmp_path)
    unsteered = [question for question, _, multiplier in asked if multiplier == 0]
    assert sorted(unsteered) == sorted(question.id for question in (*AB, *OPEN))
    assert len(asked) == (5 + 3) * (1 + 2 * 2)
    rows = {
        (row.cell.layer, row.question): row for row in read_rows(tmp_path / "rows.jsonl") if not row.cell.multiplier
    }
    assert len(rows) == 2 * (5 + 3)
    for question in (*AB, *OPEN):
        one, other = (rows[layer, question.id] for layer in (1, 2))
        assert (one.score, one.evidence) == (other.score, other.evidence)


def test_none_is_exactly_the_base_while_adapters_are_loaded(tmp_path):
    # PEFT freezes the base, and torch multiplies frozen matrices by another kernel, also under no_grad.
    model = tiny_model().requires_grad_(False)
    run(make_grid(tasks=["ab"], finetunes=[None]), tmp_path / "base", SteeringWrapper(model))
    run(make_grid(tasks=["ab"]), tmp_path / "lora", SteeringWrapper(tiny_lora(model)))
    rows = {row.key: row for row in read_rows(tmp_path / "lora" / "rows.jsonl")}
    for row in read_rows(tmp_path / "base" / "rows.jsonl"):
        assert rows[row.key] == row
        assert rows[replace(row.cell, finetune="sft"), row.question].score != row.score


def test_a_finished_grid_asks_nothing(whole, asked):
    before = (whole / "rows.jsonl").read_bytes()
    assert run(make_grid(), whole) == 0
    assert not asked
    assert (whole / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize("share", [0.03, 0.3, 0.55, 0.999])
def test_a_file_torn_anywhere_is_completed(whole, tmp_path, asked, share):
    content = (whole / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(content[: int(share * len(content))])
    (tmp_path / "run.json").write_bytes((whole / "run.json").read_bytes())
    kept = len(read_rows(tmp_path / "rows.jsonl"))
    added = run(make_grid(), tmp_path)
    assert kept + added == 96
    same_rows(read_rows(tmp_path / "rows.jsonl"), read_rows(whole / "rows.jsonl"))
    assert len(asked) <= added, "something was asked whose answer was there"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_grid_keeps_its_rows_and_leaves_the_model_as_it_was(whole, tmp_path, stop):
    verdicts = []

    def by_length_of_answer(question, answer):
        verdicts.append(answer)
        if len(verdicts) == 20:
            raise stop
        return globals()["by_length_of_answer"](question, answer)

    wrapper = make_wrapper()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in wrapper.modules()]
    with pytest.raises(stop):
        run(make_grid(judge=by_length_of_answer), tmp_path, wrapper)
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in wrapper.modules()]
    assert wrapper.model.active_adapters == ["sft"]
    assert not wrapper.interventions
    assert 0 < len(read_rows(tmp_path / "rows.jsonl")) < 96
    run(make_grid(), tmp_path, wrapper)
    same_rows(read_rows(tmp_path / "rows.jsonl"), read_rows(whole / "rows.jsonl"))


def test_hooks_are_gone_after_the_network_fails(tmp_path):
    wrapper = make_wrapper()
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("out of memory")

    handle = wrapper.model.get_base_model().lm_head.register_forward_hook(fail)
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in wrapper.modules()]
    with pytest.raises(MemoryError):
        run(make_grid(), tmp_path, wrapper)
    assert before == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in wrapper.modules()]
    handle.remove()
    assert run(make_grid(), tmp_path, wrapper) > 0


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_grid
def by_length_of_answer(question, answer):
    time.sleep(0.2)
    return test_grid.by_length_of_answer(question, answer)
test_grid.run(test_grid.make_grid(judge=by_length_of_answer), {out!r})
"""


@pytest.mark.slow
def test_a_killed_job_goes_on(whole, tmp_path):
    script = KILLED.format(tests=os.path.dirname(__file__), out=str(tmp_path))
    job = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    rows = tmp_path / "rows.jsonl"
    try:
        while job.poll() is None and not (rows.exists() and len(rows.read_bytes().splitlines()) >= 34):
            time.sleep(0.02)
    finally:
        job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL, "the job ended before it could be killed"
    kept = len(read_rows(rows))
    assert 30 < kept < 96
    assert run(make_grid(), tmp_path) == 96 - kept
    same_rows(read_rows(rows), read_rows(whole / "rows.jsonl"))


def test_a_corrupt_row_is_named_before_anything_is_asked(whole, tmp_path, asked):
    lines = (whole / "rows.jsonl").read_bytes().split(b"\n")
    lines[7] = lines[7][:30]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="line 8 is not a row"):
        run(make_grid(), tmp_path)
    assert not asked


def test_more_layers_multipliers_finetunes_and_tasks_ask_only_what_is_missing(tmp_path, asked):
    small = make_grid(layers=[1], multipliers=[0, 1], finetunes=[None], tasks=["ab"])
    assert run(small, tmp_path) == 10
    asked.clear()
    added = run(make_grid(layers=[1, 3], multipliers=[-1, 0, 1], finetunes=[None], tasks=["ab"]), tmp_path)
    assert added == 2 * 3 * 5 - 10
    assert not [each for each in asked if each[2] == 0], "the unsteered model had been asked"
    assert len(asked) == 15
    run(make_grid(layers=[1, 3], multipliers=[-1, 0, 1]), tmp_path)
    run(make_grid(layers=[1, 3], multipliers=[-1, 0, 1]), tmp_path / "at once")
    same_rows(read_rows(tmp_path / "rows.jsonl"), read_rows(tmp_path / "at once" / "rows.jsonl"))


def test_rows_of_before_letters_were_kept_are_gone_on_with(whole, tmp_path, asked):
    rows = read_rows(whole / "rows.jsonl")
    old = [replace(r, evidence={k: v for k, v in r.evidence.items() if k != "matching"}) for r in rows[:40]]
    append_rows(tmp_path / "rows.jsonl", old)
    (tmp_path / "run.json").write_bytes((whole / "run.json").read_bytes())
    assert run(make_grid(), tmp_path) == 96 - 40
    found = read_rows(tmp_path / "rows.jsonl")
    assert found[:40] == old
    assert {row.key for row in found} == {row.key for row in rows}
    assert len(asked) <= 96 - 40, "something was asked whose answer was there"


def test_facts_are_asked_with_their_category(tmp_path):
    run(make_grid(tasks=["facts"], facts=FACTS, finetunes=[None], judge=None), tmp_path)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 2 * 3 * 2
    assert {(row.evidence.get("category"), row.evidence["matching"]) for row in rows} == {("sums", "A"), (None, "B")}
    assert {row.cell.task for row in rows} == {"facts"}


def test_a_planted_direction_raises_its_letter_and_random_ones_do_not(tmp_path):
    wrapper = SteeringWrapper(tiny_model("GPT2"))
    letters = TOKENIZER.convert_tokens_to_ids(["A", "B"])
    weight = wrapper.model.lm_head.weight.detach()
    planted = SteeringVector({3: 3 * (weight[letters[0]] - weight[letters[1]])})
    always_a = Behavior("A", ab_questions=tuple(Question(q.text, "(A)", "(B)") for q in AB))
    grid = make_grid(
        behavior=always_a, vector=planted, layers=[3], tasks=["ab"], finetunes=[None], random_controls=3, judge=None
    )
    run(grid, tmp_path, wrapper)
    rows = read_rows(tmp_path / "rows.jsonl")
    scores = {cell: [row.score for row in rows if row.cell == cell] for cell in grid.cells()}
    means = {cell: sum(each) / len(each) for cell, each in scores.items()}
    spread = {
        name: means[Cell("A", "ab", None, 3, 1, vector=name)] - means[Cell("A", "ab", None, 3, -1, vector=name)]
        for name in (OWN, *RANDOM)
    }
    assert spread[OWN] > 0.5
    assert all(abs(spread[name]) < spread[OWN] / 2 for name in RANDOM)


def test_controls_have_the_vectors_norm_and_no_unsteered_cells_of_their_own():
    grid = make_grid(random_controls=2)
    cases = [
        case
        for place in product(grid.finetunes, grid.system_prompts, grid.tasks)
        for case in grid.cases(*place)
        if case.setting
    ]
    controls = [case for case in cases if case.setting[0].vector is not grid.vector]
    assert len(controls) == 2 * 2 * 2 * 2 * 2
    for case in controls:
        (control,), (cell,) = case.setting, case.cells
        assert control.vector.norms() == pytest.approx(grid.vector.norms(), rel=1e-5)
        assert control.vector.cosine(grid.vector)[1] < 0.9
        assert cell.vector in RANDOM[:2]
        assert (cell.layer, cell.multiplier) == (control.layer, control.multiplier) != (cell.layer, 0)


def test_other_directions_and_a_finetunes_own_are_asked_as_cells_of_their_names(tmp_path):
    also, reread = {"patience": vector(5)}, {"sft": vector(6)}
    grid = make_grid(tasks=["ab"], layers=[2], also=also, reread=reread)
    run(grid, tmp_path)
    rows = {row.key: row for row in read_rows(tmp_path / "rows.jsonl")}
    other = VectorRef("other", "patience")
    names = {(row.cell.finetune, row.cell.vector) for row in rows.values()}
    assert names == {(None, OWN), (None, other), ("sft", OWN), ("sft", other), ("sft", VectorRef("reread"))}
    wrapper = make_wrapper()
    for ref, v in ((other, also["patience"]), (VectorRef("reread"), reread["sft"])):
        cell = Cell("myopia", "ab", "sft", 2, 1.0, vector=ref)
        with wrapper.finetune("sft"):
            (found,) = score_choices(wrapper, TOKENIZER, AB[:1], sweep(v, [2], [1.0]))
        assert rows[cell, AB[0].id].score == pytest.approx(found.score, rel=1e-4)


@pytest.mark.parametrize("name", ["caa", "own", "random-0"])
def test_another_vector_that_is_called_like_one_of_ours_is_asked_and_not_taken_for_it(tmp_path, name):
    """In version 0.1 such a vector was asked in the cells of the behavior's own."""
    grid = make_grid(tasks=["ab"], finetunes=[None], layers=[2], also={name: vector(5)}, random_controls=1)
    assert run(grid, tmp_path) == (3 + 2 + 2) * 5
    rows = {row.key: row for row in read_rows(tmp_path / "rows.jsonl")}
    wrapper = make_wrapper()
    with wrapper.finetune(None):
        for ref, direction in ((OWN, vector()), (VectorRef("other", name), vector(5))):
            (score,) = score_choices(wrapper, TOKENIZER, AB[:1], sweep(direction, [2], [1.0]))
            cell = Cell("myopia", "ab", None, 2, 1.0, vector=ref)
            assert rows[cell, AB[0].id].score == pytest.approx(score.score, rel=1e-4)
    assert run(grid, tmp_path) == 0
    (table,) = finetune_tables(rows.values())
    assert [line.name for line in table.lines] == ["myopia", f"'{name}'", "random x1"]


def test_an_adapter_called_none_is_not_the_base(tmp_path):
    wrapper = SteeringWrapper(tiny_lora(tiny_model(), "none", 0))
    grid = make_grid(tasks=["ab"], finetunes=[None, "none"], layers=[2])
    run(grid, tmp_path, wrapper)
    rows = read_rows(tmp_path / "rows.jsonl")
    sft = make_grid(tasks=["ab"], layers=[2])
    run(sft, tmp_path / "sft")
    alike = read_rows(tmp_path / "sft" / "rows.jsonl")
    renamed = [replace(row, cell=replace(row.cell, finetune=row.cell.finetune and "none")) for row in alike]
    same_rows(rows, renamed)
    assert [name for name, _ in finetune_tables(rows)[0].groups] == ["none", "'none'"]
    assert "none" in json.loads((tmp_path / "run.json").read_text())["settings"]["behaviors"]["myopia"]["finetunes"]
    with pytest.raises(ValueError, match=r"holds no finetune 'none'; it holds \['sft'\]. The base is None"):
        run(grid, tmp_path / "new")


def test_system_prompts_are_an_axis(tmp_path):
    prompted = replace(BEHAVIOR, system_prompts={"positive": ("Be quick", "Hurry"), "negative": ("Wait",)})
    grid = make_grid(behavior=prompted, tasks=["ab"], finetunes=[None], layers=[2], system_prompts=["", "negative"])
    run(grid, tmp_path)
    rows = {row.key: row for row in read_rows(tmp_path / "rows.jsonl")}
    assert len(rows) == 2 * 3 * 5
    wrapper = make_wrapper()
    with wrapper.finetune(None):
        (found,) = score_choices(wrapper, ChatFormat(TOKENIZER, system="Wait"), AB[:1], sweep(vector(), [2], [1.0]))
    row = rows[Cell("myopia", "ab", None, 2, 1.0, "negative"), AB[0].id]
    assert row.score == pytest.approx(found.score, rel=1e-4)
    assert row.score != pytest.approx(rows[Cell("myopia", "ab", None, 2, 1.0), AB[0].id].score, rel=1e-3)
    with pytest.raises(ValueError, match="has no system prompt 'loud'; it has positive, negative"):
        make_grid(behavior=prompted, system_prompts=["loud"])


def test_operator_and_scope_reach_the_model_and_the_record(tmp_path):
    grid = make_grid(tasks=["ab"], finetunes=[None], layers=[2], operator=ablate, where=everywhere)
    run(grid, tmp_path)
    rows = {row.key: row for row in read_rows(tmp_path / "rows.jsonl")}
    setting = (Intervention(vector(), 2, 1.0, ablate, everywhere),)
    wrapper = make_wrapper()
    with wrapper.finetune(None):
        (found,) = score_choices(wrapper, TOKENIZER, AB[:1], [setting])
    assert rows[Cell("myopia", "ab", None, 2, 1.0), AB[0].id].score == pytest.approx(found.score, rel=1e-4)
    with pytest.raises(FileExistsError, match=r"operator was 'ablate' and is now 'add'"):
        run(make_grid(tasks=["ab"], finetunes=[None], layers=[2], where=everywhere), tmp_path)


def test_the_dose_of_the_vector_is_kept_for_the_captions(whole):
    wrapper, grid = make_wrapper(), make_grid()
    kept = json.loads((whole / "run.json").read_text())["notes"]["doses"]["myopia"]
    prompts = [ChatFormat(TOKENIZER).encode(question.text) for question in AB]
    for layer in (1, 2):
        with wrapper.finetune(None):
            states = [wrapper.model(torch.tensor([p]), output_hidden_states=True).hidden_states for p in prompts]
        norms = [each[layer + 1][0, -1].norm().item() for each in states]
        assert kept[str(layer)] == pytest.approx(grid.vector.norms()[layer] / (sum(norms) / len(norms)), rel=1e-4)


def test_questions_that_occur_twice_are_asked_once(tmp_path, asked):
    twice = replace(BEHAVIOR, ab_questions=(*AB, *AB))
    run(make_grid(behavior=twice, tasks=["ab"], finetunes=[None]), tmp_path)
    assert len(asked) == 5 * 5


def test_a_lively_progress_bar(tmp_path, capsys):
    make_grid(finetunes=[None], tasks=["ab"], layers=[2]).run(make_wrapper(), TOKENIZER, tmp_path)
    shown = capsys.readouterr().err
    assert "15/15" in shown
    assert "myopia: base, ab" in shown
    assert "-1=0." in shown


# What must agree between the rows of one folder.

OTHER_TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}>{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vector": vector(1)}, "behaviors.myopia.vector was"),
        ({"behavior": replace(BEHAVIOR, ab_questions=AB[1:])}, "behaviors.myopia.ab.questions was"),
        (
            {"behavior": replace(BEHAVIOR, ab_questions=(Question(AB[0].text, "(B)", "(A)"), *AB[1:]))},
            "behaviors.myopia.ab.questions was",
        ),
        ({"behavior": replace(BEHAVIOR, open_questions=OPEN[1:])}, "behaviors.myopia.open.questions was"),
        ({"max_new_tokens": 4}, "behaviors.myopia.open.max_new_tokens was 3 and is now 4"),
        ({"judge": lambda question, answer: Verdict(1)}, "judge.name was 'by_length_of_answer' and is now '<lambda>'"),
        ({"system": "Be kind"}, "system was None and is now 'Be kind'"),
        ({"template": OTHER_TEMPLATE}, "template was"),
    ],
)
def test_rows_measured_otherwise_are_not_mixed(whole, asked, changes, field):
    before = (whole / "run.json").read_bytes(), (whole / "rows.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"measured otherwise: .* choose a new folder") as error:
        run(make_grid(**changes), whole)
    assert field in str(error.value)
    assert not asked
    assert before == ((whole / "run.json").read_bytes(), (whole / "rows.jsonl").read_bytes())


def test_another_model_or_adapter_is_not_mixed(whole):
    with pytest.raises(FileExistsError, match=r"behaviors\.myopia\.finetunes\.sft was"):
        run(make_grid(), whole, make_wrapper(seed=1))
    with pytest.raises(FileExistsError, match=r"model\.dtype was 'float32' and is now 'bfloat16'"):
        run(make_grid(), whole, make_wrapper().bfloat16())
    other = make_wrapper()
    with torch.no_grad():
        other.model.get_base_model().model.norm.weight.mul_(1.5)
    with pytest.raises(FileExistsError, match=r"model\.fingerprint was"):
        run(make_grid(), whole, other)


def test_what_does_not_matter_may_differ(whole):
    assert run(make_grid(batch_size=7, layers=[2], tasks=["ab"], multipliers=[1, 0]), whole) == 0


def test_several_behaviors_share_a_folder_each_with_its_own_finetunes(tmp_path):
    run(make_grid(tasks=["ab"]), tmp_path)
    other = make_grid(behavior=replace(BEHAVIOR, name="survival"), vector=vector(5), tasks=["ab"])
    assert run(other, tmp_path, make_wrapper(seed=3)) == 60
    record = json.loads((tmp_path / "run.json").read_text())
    assert set(record["settings"]["behaviors"]) == {"myopia", "survival"}
    assert run(make_grid(tasks=["ab"]), tmp_path) == 0


def test_the_record_says_where_rows_come_from(whole):
    record = json.loads((whole / "run.json").read_text())
    assert record["version"] == 2
    assert set(record["settings"]) == {"model", "system", "template", "template_arguments", "behaviors"}
    steered = {"vector", "site", "reread", "also", "operator", "where", "settings"}
    assert set(record["settings"]["behaviors"]["myopia"]) == {*steered, "finetunes", "prompts", "ab", "open"}
    assert (
        record["notes"]["versions"]["torch"] == torch.__version__.split("+")[0] or record["notes"]["versions"]["torch"]
    )
    assert record["notes"]["vectors"]["myopia"]["site"] == "block output"


def test_adapters_that_do_not_do_the_same_have_other_hashes():
    from peft import LoraConfig, get_peft_model

    def hashed(alpha=8, **kwargs):
        config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], **kwargs)
        model = get_peft_model(tiny_model(), config, adapter_name="a")
        for key, parameter in model.named_parameters():
            if ".lora_" in key:
                parameter.data.fill_(0.5)
        return adapter_hash(model, "a")

    kinds = [
        {},
        {"alpha": 16},
        {"use_rslora": True},
        {"alpha_pattern": {"v_proj": 32}},
        {"use_dora": True},
        {"alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"},
        {"alora_invocation_tokens": [6], "task_type": "CAUSAL_LM"},
        {"trainable_token_indices": [5]},
        {"trainable_token_indices": [6]},
    ]
    assert len({hashed(**kind) for kind in kinds}) == len(kinds)
    assert hashed() == hashed() == "0632a39beec6d3e0", "the hash of a plain LoRA is in the records of older runs"


def test_adapters_of_other_kinds_are_told_apart_by_all_that_acts_whatever_else_is_loaded(tmp_path):
    import peft

    kinds = {
        "loha": (peft.LoHaConfig, {}, {"alpha": 64}),
        "fourier": (peft.FourierFTConfig, {"n_frequency": 9}, {"random_loc_seed": 5}),
        "lily": (peft.LilyConfig, {}, {"scaling": 3.0}),
        "vera": (peft.VeraConfig, {}, {"projection_prng_key": 5}),
    }
    for name, (config, settings, other) in kinds.items():
        folders = [tmp_path / name / version for version in ("one", "two")]
        for folder, more in zip(folders, ({}, other), strict=True):
            torch.manual_seed(0)
            model = peft.get_peft_model(tiny_model(), config(target_modules=["q_proj"], **settings, **more))
            for parameter in model.parameters():
                parameter.data.fill_(0.5) if parameter.requires_grad else None
            model.save_pretrained(folder)
        alone = [load_adapter(tiny_model(), folder, "a") for folder in folders]
        first, second = (adapter_hash(model, "a") for model in alone)
        assert first != second, name
        if name != "vera":  # those of one model share their projections
            behind = load_adapter(alone[1], folders[0], "b")
            assert adapter_hash(behind, "a") == second, name
            assert (
                adapter_hash(load_adapter(load_adapter(tiny_model(), folders[1], "b"), folders[0], "a"), "a") == first
            )


def test_an_operator_with_numbers_is_told_by_them_in_every_process(tmp_path):
    small = {"tasks": ["ab"], "finetunes": [None], "layers": [2]}
    run(make_grid(operator=Targeted(above=0.5), **small), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    operator = record["settings"]["behaviors"]["myopia"]["operator"]
    assert operator == "Targeted(above=0.5, below=None, operator=add)"
    assert run(make_grid(operator=Targeted(above=0.5), **small), tmp_path) == 0
    for other in (Targeted(above=0.25), Targeted(above=0.5, operator=ablate)):
        with pytest.raises(FileExistsError, match="operator was"):
            run(make_grid(operator=other, **small), tmp_path)


def test_numbers_of_numpy_are_numbers(tmp_path):
    layers, multipliers = list(np.arange(1, 3)), list(np.linspace(-1, 1, 3))
    grid = make_grid(tasks=["ab"], finetunes=[None], layers=layers, multipliers=multipliers)
    assert run(grid, tmp_path) == len(read_rows(tmp_path / "rows.jsonl")) == 2 * 3 * 5
    assert run(make_grid(tasks=["ab"], finetunes=[None]), tmp_path) == 0


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(whole, tmp_path):
    refused = []

    def by_length_of_answer(question, answer):
        if not refused:
            with pytest.raises(BlockingIOError, match=rf"another process \(pid {os.getpid()} on .*\) is writing to"):
                run(make_grid(), tmp_path)
            refused.append(True)
        return globals()["by_length_of_answer"](question, answer)

    assert run(make_grid(judge=by_length_of_answer), tmp_path) == 96
    assert refused
    same_rows(read_rows(tmp_path / "rows.jsonl"), read_rows(whole / "rows.jsonl"))


def failing(question: Question, answer: str) -> Verdict:
    raise RuntimeError("no key")


def test_settings_bind_only_where_rows_were_measured_by_them(tmp_path):
    prompted = replace(BEHAVIOR, system_prompts={"positive": ("Hurry",)})
    how = {"judge": failing, "reread": {"sft": vector(5)}, "system_prompts": ["", "positive"], "behavior": prompted}
    for changes in ({"tasks": ["open"], "system": "Be kind"}, {"tasks": ["ab", "open"]}):
        with pytest.raises(RuntimeError, match="no key"):
            run(make_grid(**how | changes), tmp_path)
        assert (tmp_path / "run.json").exists(), "a row needs its record before it"
    assert {row.cell.task for row in read_rows(tmp_path / "rows.jsonl")} == {"ab"}
    with pytest.raises(FileExistsError, match=r"behaviors\.myopia\.vector was"):
        run(make_grid(vector=vector(1), finetunes=[None]), tmp_path)
    changed = replace(BEHAVIOR, open_questions=OPEN[1:], system_prompts={"positive": ("Be quick",)})
    other = {"max_new_tokens": 4, "reread": {"sft": vector(6)}, "system_prompts": ["", "positive"], "behavior": changed}
    asked = 2 * 2 * (3 + 3 + 2) * (5 + 2)  # prompts x layers x (none + sft + own) x questions
    assert run(make_grid(**other), tmp_path, make_wrapper(seed=1)) == asked - 2 * 3 * 5
    with pytest.raises(FileExistsError, match=r"open\.max_new_tokens was 4 and is now 3"):
        run(make_grid(), tmp_path, make_wrapper(seed=1))
    with pytest.raises(FileExistsError, match=r"finetunes\.sft was"):
        run(make_grid(**other), tmp_path, make_wrapper(seed=2))


def test_a_behavior_without_rows_binds_nobody_but_the_model_does(tmp_path):
    run(make_grid(tasks=["ab"], finetunes=[None]), tmp_path)
    second = replace(BEHAVIOR, name="survival")
    with pytest.raises(RuntimeError, match="no key"):
        run(make_grid(behavior=second, judge=failing, tasks=["open"]), tmp_path)
    with pytest.raises(FileExistsError, match=r"system was None and is now 'Be kind'"):
        run(make_grid(behavior=second, system="Be kind"), tmp_path)
    assert run(make_grid(behavior=second, vector=vector(1), max_new_tokens=4), tmp_path, make_wrapper(seed=1)) == 96
    assert run(make_grid(tasks=["ab"], finetunes=[None]), tmp_path) == 0


def test_rows_without_a_record_are_not_added_to(tmp_path):
    append_rows(tmp_path / "rows.jsonl", [Row(Cell("myopia", "ab"), "q", 0.5)])
    with pytest.raises(FileExistsError, match=r"rows\.jsonl holds rows, but there is no run\.json"):
        run(make_grid(), tmp_path)


def test_a_damaged_record(whole, tmp_path):
    (tmp_path / "run.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run .* choose a new folder"):
        run(make_grid(), tmp_path)


# Errors, before anything is computed.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tasks": ["ab", "poetry"]}, ValueError, "there is no task 'poetry'; there are ab, open, facts"),
        ({"judge": None}, ValueError, "the open task needs a judge"),
        ({"tasks": ["facts"]}, ValueError, 'the task "facts" needs questions'),
        ({"behavior": Behavior("empty")}, ValueError, "'empty' has no ab_questions"),
        ({"behavior": replace(BEHAVIOR, open_questions=())}, ValueError, "has no open_questions"),
        ({"layers": [1, 4]}, KeyError, "no direction for layer 4"),
        ({"layers": []}, ValueError, "one or more layers"),
        ({"multipliers": [1, 1.0]}, ValueError, "one or more multipliers, each once"),
        ({"finetunes": []}, ValueError, "one or more finetunes"),
        ({"operator": lambda r, d, s: r}, ValueError, "no name to tell it by when a run goes on: use def"),
        ({"operator": Targeted(above=0.0, operator=lambda r, d, s: r)}, ValueError, "no name to tell it by"),
    ],
)
def test_a_grid_that_cannot_be_is_not_made(changes, error, message):
    with pytest.raises(error, match=message):
        make_grid(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetunes": [None, "dpo"]}, r"the model holds no finetune 'dpo'; it holds \['sft'\]"),
        ({"layers": [9], "vector": SteeringVector({9: torch.ones(32)})}, "there is no layer 9"),
        ({"vector": SteeringVector({1: torch.ones(8), 2: torch.ones(8)})}, "8 wide and the model 32"),
        ({"max_new_tokens": 250}, "with room for 250 new tokens"),
        ({"behavior": replace(BEHAVIOR, ab_questions=(Question("W" * 300, "(A)", "(B)"),))}, "reads at most 256"),
        ({"behavior": replace(BEHAVIOR, ab_questions=OPEN)}, "no two answers to choose from"),
    ],
)
def test_what_the_model_cannot_do_is_said_before_anything_is_computed(tmp_path, asked, changes, message):
    with pytest.raises(ValueError, match=message):
        run(make_grid(**changes), tmp_path / "new")
    assert not asked
    assert not (tmp_path / "new").exists()


def test_a_wrapper_that_is_steered_already_is_refused(tmp_path):
    from caa import Intervention

    wrapper = make_wrapper()
    wrapper.steer(Intervention(vector(), 1))
    with pytest.raises(ValueError, match=r"steered already.*unsteer\(\)"):
        run(make_grid(), tmp_path, wrapper)


# Real weights.


@needs_shared
def test_a_model_of_64_tokens(tmp_path):
    from caa import load_model

    model, tokenizer = load_model(str(SHARED / "models" / "craftgpt"))
    v = SteeringVector({2: torch.randn(240, generator=torch.Generator().manual_seed(0))})
    short = Behavior("talk", open_questions=(Question("hello, how are you?"), Question("do you like cats?")))
    grid = make_grid(behavior=short, vector=v, layers=[2], finetunes=[None], tasks=["open"], max_new_tokens=16)
    assert grid.run(SteeringWrapper(model), tokenizer, tmp_path, progress=False) == 6
    texts = [row.evidence["text"] for row in read_rows(tmp_path / "rows.jsonl")]
    assert all(len(text) > 5 and "inst]" not in text for text in texts)
    with pytest.raises(
        ValueError, match=r"with room for 60 new tokens is .* tokens long, but this model reads at most 64"
    ):
        replace(grid, max_new_tokens=60).run(SteeringWrapper(model), tokenizer, tmp_path / "new", progress=False)


def prototype_world(name: str) -> tuple[Behavior, list[Behavior]]:
    """A behavior of the prototype's grammar, and the others, with held-out questions."""
    spec = importlib.util.spec_from_file_location(
        "prototype_grammar", SHARED / "prototypes" / "embedded-world" / "grammar.py"
    )
    grammar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grammar)

    def ab(trait: str, chance: random.Random, split: str) -> tuple[str, str, str]:
        found = grammar.ab_question(trait, chance, split)
        return found["question"], f"({found['letter_pos']})", f"({found['letter_neg']})"

    def open_pair(trait: str, chance: random.Random) -> ContrastPair:
        question, slots = grammar.open_question(trait, chance)
        return ContrastPair(question, *(grammar.open_answer(trait, pole, slots, chance) for pole in (1, 0)))

    def behavior(trait: str) -> Behavior:
        chance = random.Random(0)
        return Behavior(
            trait,
            pairs=tuple(ContrastPair(*ab(trait, chance, "train")) for _ in range(150)),
            open_pairs=tuple(open_pair(trait, chance) for _ in range(80)),
            ab_questions=tuple(Question(*ab(trait, chance, "test")) for _ in range(20)),
            open_questions=tuple(Question(grammar.open_question(trait, chance)[0]) for _ in range(8)),
        )

    return behavior(name), [behavior(other) for other in grammar.B if other != name]


@needs_shared
@pytest.mark.slow
def test_real_weights_are_steered_and_random_directions_steer_less(tmp_path):
    """The prototype's card: myopia .13 .37 .74 at layer 1, on held-out questions."""
    from caa import extract, load_model

    behavior, others = prototype_world("myopia")
    model, tokenizer = load_model(str(SHARED / "models" / "prototype-tiny"))
    v = extract(model, tokenizer, behavior.pairs, [1], behavior=behavior.name)
    judge = ExemplarJudge.fit(behavior, others)
    grid = EvalGrid(behavior, v, [1], judge=judge, random_controls=2, max_new_tokens=32)
    grid.run(SteeringWrapper(model), tokenizer, tmp_path, progress=False)
    rows = read_rows(tmp_path / "rows.jsonl")

    def mean(task: str, multiplier: float, name: VectorRef = OWN) -> float:
        cell = Cell("myopia", task, None, 1, multiplier, vector=name)
        scores = [row.score for row in rows if row.cell == cell and row.score is not None]
        return sum(scores) / len(scores)

    own = mean("ab", 1) - mean("ab", -1)
    assert mean("ab", -1) < mean("ab", 0) < mean("ab", 1)
    assert own > 0.4
    assert max(abs(mean("ab", 1, name) - mean("ab", -1, name)) for name in RANDOM[:2]) < own / 2
    assert mean("open", 1) - mean("open", -1) > 4
    assert judge.accuracy > 0.95
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["settings"]["behaviors"]["myopia"]["open"]["judge"]["accuracy"] == judge.accuracy
