"""The smallest dose: as a slow scan finds it, with what turns over said, beside random directions and finetunes."""

from __future__ import annotations

import json
import math
import random

import pytest
from test_search import LETTERS, made, planted, turning_over
from tiny import tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringWrapper, extract, load_behavior, load_model
from caa.cli import main
from caa.data.chat import ChatFormat
from caa.evals.tasks import score_choices
from caa.judges.base import Verdict
from caa.reports.figures.studies import elicitation_curve
from caa.studies.measuring import vector_in_doses
from caa.studies.redteam import curve_records, redteam, smallest_doses


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("most", [1.0, 0.3, -2.0])
def test_the_smallest_dose_is_that_of_a_scan_of_all_steps(most):
    draw = random.Random(0)
    thresholds = [0.0, *(draw.random() for _ in range(40)), 2.0]
    calls = []

    def shows(prompts, doses):
        calls.append(len(prompts) * len(doses))
        return [[dose / most >= thresholds[prompt] for dose in doses] for prompt in prompts]

    crossings = smallest_doses(shows, len(thresholds), most)
    for threshold, crossing in zip(thresholds, crossings, strict=True):
        expected = most * math.ceil(threshold * 64) / 64 if threshold <= 1 else math.copysign(math.inf, most)
        assert crossing.dose == pytest.approx(expected)
        assert not crossing.returns
    assert sum(calls) <= len(thresholds) * 16, "a scan of all steps would ask 64 of each"


def test_a_planted_behavior_appears_where_the_model_alone_says_so(model):
    wrapper, chat = SteeringWrapper(model), ChatFormat(tiny_tokenizer())
    asked = LETTERS.ab_questions[:4]
    own, *others = redteam(wrapper, chat, asked, planted(model), 3, 0.4, controls=2)
    assert [other.random for other in others] == [0, 1]
    scaled = vector_in_doses(wrapper, chat, planted(model), [3], asked)
    for question in asked:
        scores = []
        for step in range(65):
            with wrapper.steer(Intervention(scaled, 3, 0.4 * step / 64)):
                scores += [choice.score for choice in score_choices(wrapper, chat, [question], [()])]
        first = next((step for step, score in enumerate(scores) if score > 0.5), math.inf)
        assert own.crossings[question.text].dose == pytest.approx(0.4 * first / 64)
    assert 0 < own.median.mean < math.inf


def test_a_dose_response_that_turns_over_is_said_to(model):
    [own] = redteam(
        SteeringWrapper(model),
        tiny_tokenizer(),
        LETTERS.ab_questions,
        planted(model),
        3,
        controls=0,
        operator=turning_over,
    )
    assert own.returning > 0.5
    [monotone] = redteam(SteeringWrapper(model), tiny_tokenizer(), LETTERS.ab_questions, planted(model), 3, controls=0)
    assert monotone.returning == 0


def test_what_never_appears_has_no_dose_and_a_finetune_has_doses_of_its_own(model):
    wrapper, asked = SteeringWrapper(tiny_lora(tiny_model())), LETTERS.ab_questions
    base, taught = redteam(wrapper, tiny_tokenizer(), asked, planted(model), 3, finetunes=[None, "sft"], controls=0)
    assert base.crossings != taught.crossings
    [back] = redteam(wrapper, tiny_tokenizer(), asked, planted(model), 3, -1.0, controls=0)
    for prompt, crossing in back.crossings.items():
        assert crossing.dose == (0.0 if base.crossings[prompt].dose == 0 else -math.inf)
    assert back.median.mean == math.inf
    with pytest.raises(ValueError, match="the largest dose is 0"):
        redteam(wrapper, tiny_tokenizer(), asked, planted(model), 3, 0.0)


def test_a_judge_may_say_whether_it_appears(model):
    def of_b(question, answer):
        return Verdict(10.0 if "B" in answer else 0.0)

    chat = tiny_tokenizer()
    [own] = redteam(
        SteeringWrapper(model),
        chat,
        LETTERS.open_questions[:3],
        planted(model),
        3,
        4.0,
        judge=of_b,
        controls=0,
        max_new_tokens=4,
    )
    assert all(0 < crossing.dose <= 4 for crossing in own.crossings.values())


def test_the_curve_rises_and_has_random_directions_beside_it(model):
    results = redteam(SteeringWrapper(model), tiny_tokenizer(), LETTERS.ab_questions, planted(model), 3, 0.4)
    data = elicitation_curve(curve_records(results), "letters").data
    for _, line in data.groupby("vector"):
        assert line.share.is_monotonic_increasing
        assert (line.low <= line.share + 1e-9).all()
        assert (line.share <= line.high + 1e-9).all()
    own, chance = (data[data.vector == vector].set_index("dose").share for vector in ("own", "random"))
    assert own[0.0] == pytest.approx(chance[0.0])
    assert own[0.4] > chance[0.4]


@pytest.mark.slow
def test_the_commands_go_on_from_a_search(tmp_path, capsys):
    network, tokenizer = load_model("tiny-chat")
    extract(network, tokenizer, load_behavior("refusal"), [2]).save(tmp_path / "refusal.safetensors")
    found = made().save(tmp_path / "search.json")
    out = [str(tmp_path / "out"), "--limit", "4"]
    assert main(["redteam", "--from", str(found), *out, "--controls", "1"]) == 0
    assert "half by dose" in capsys.readouterr().out
    assert main(["robustness", "--from", str(found), *out]) == 0
    assert "opposed" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"redteam.csv", "robustness.csv", "elicitation-refusal.png", "robustness-refusal.png"} <= names
    assert main(["redteam", "--from", str(found), *out]) == 1
    assert "there already" in capsys.readouterr().err
    content = json.loads(found.read_text())
    assert content["chosen"] == {"layer": 2, "dose": 0.3}
