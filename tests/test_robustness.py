"""Robustness over prompts: a family on which a planted setting fails is named, and questions keep their meaning."""

from __future__ import annotations

import pytest
from test_search import LETTERS, planted, questions
from tiny import tiny_lora, tiny_model, tiny_tokenizer

from caa import Behavior, Intervention, Question, SteeringWrapper
from caa.data.behaviors import options
from caa.data.chat import ChatFormat
from caa.evals.tasks import score_choices
from caa.reports.figures.studies import robustness_by_prompt
from caa.studies.prompts import prompt_families
from caa.studies.robustness import prompt_records, robustness

CASE = Question("Wait?\n\nChoices:\n (A) Yes, gladly\n (B) No", "(A)", "(B)")
PLAIN = LETTERS.ab_questions
TURNED = questions("Turned", 10, "(A)", "(B)")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_family_of_prompts_on_which_it_fails_is_named_and_comes_first(model):
    setting = Intervention(planted(model), 3, 1.0)
    [result] = robustness(SteeringWrapper(model), tiny_tokenizer(), {"plain": PLAIN, "turned": TURNED}, setting)
    plain, turned = result.families["plain"], result.families["turned"]
    assert plain.consistency > 0.9 > -0.9 > turned.consistency
    assert (plain.wrong.mean, turned.wrong.mean) == (0.0, 1.0)
    assert result.wrong.mean == 0.5
    assert 0.2 < result.wrong.low < 0.5 < result.wrong.high < 0.8
    assert {effect.family for effect in result.worst_first[:10]} == {"turned"}
    assert abs(result.consistency) < 0.3
    assert result.spread > 2 * plain.spread
    opposite = Intervention(planted(model), 3, -1.0)
    [back] = robustness(SteeringWrapper(model), tiny_tokenizer(), {"plain": PLAIN}, opposite)
    assert back.wrong.mean == 0.0, "less of the behavior is the right way of a negative dose"


def test_each_effect_is_that_of_its_prompt_alone_in_each_finetune(model):
    wrapper, chat = SteeringWrapper(tiny_lora(tiny_model())), ChatFormat(tiny_tokenizer())
    setting = Intervention(planted(model), 3, 0.5)
    results = robustness(wrapper, chat, {"plain": PLAIN[:3]}, setting, finetunes=[None, "sft"])
    for result in results:
        with wrapper.finetune(result.finetune):
            for effect, question in zip(result.effects, PLAIN, strict=False):
                [before] = score_choices(wrapper, chat, [question], [()])
                with wrapper.steer(setting):
                    [after] = score_choices(wrapper, chat, [question], [()])
                assert effect.gain == pytest.approx(after.score - before.score, abs=1e-5)
    assert results[0].effects != results[1].effects
    with pytest.raises(ValueError, match="no intervention"):
        robustness(wrapper, chat, {"plain": PLAIN})


def test_every_family_asks_for_the_same(model):
    behavior = Behavior("waiting", system_prompts={"negative": ("Never wait.",), "positive": ("Always wait.",)})
    families = prompt_families(behavior, [CASE, *PLAIN])
    assert len(families["plain"]) == len(families["opposed"]) == 11
    assert len(families["options swapped"]) == len(families["in words"]) == 1, (
        "of questions without options there is none"
    )
    for family, members in families.items():
        chosen = options(members[0].text).get((members[0].matching or "").strip("()"), members[0].matching)
        assert chosen == "Yes, gladly", family
        assert "Wait?" in members[0].text
    assert "Never wait." in families["opposed"][0].text
    assert "Always wait." in prompt_families(behavior, [CASE], sign=-1.0)["opposed"][0].text
    chat = ChatFormat(tiny_tokenizer())
    assert len({tuple(chat.encode(members[0].text)) for members in families.values()}) == len(families)


def test_the_picture_has_a_point_for_every_prompt(model):
    setting = Intervention(planted(model), 3, 1.0)
    results = robustness(SteeringWrapper(model), tiny_tokenizer(), {"plain": PLAIN, "turned": TURNED}, setting)
    figure = robustness_by_prompt(prompt_records(results), "letters")
    assert len(figure.data) == 20
    assert list(figure.data.family[:10]) == ["turned"] * 10
