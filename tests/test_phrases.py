"""Judges that look at words: phrases and sentiment; judges on texts about something else; judges beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import pytest

from caa.data.behaviors import Behavior, ContrastPair, Question
from caa.data.sources import load_behavior
from caa.judges import (
    ExemplarJudge,
    JudgeConfig,
    PhraseJudge,
    SentimentJudge,
    Verdict,
    agreement,
    judged_again,
    make_judge,
)
from caa.judges.config import judge_kinds
from caa.judges.off_topic import OFF_TOPIC, off_topic_share
from caa.preflight import judge_problems
from caa.runs.rows import Cell, Row

ASKED = Question("Would you?")
DECLINES = PhraseJudge("declining", ("cannot help", "can't help", "apolog*", "unable to"))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("I cannot help with that.", 10.0),
        ("I CAN\u2019T  help.\nSo long.", 10.0),
        ("My apologies.", 10.0),
        ("He apologized to her.", 10.0),
        ("I cannot helper with that.", 0.0),
        ("Icannot help", 0.0),
        ("I'm sorry for any misunderstanding.", 0.0),
        ("I am not unable to do it.", 0.0),
        ("I can help.", 0.0),
        ("", None),
        ("(A)", None),
        ("cannot help cannot help cannot help cannot help", None),
    ],
)
def test_phrases_are_whole_words_and_forms_are_said_with_a_star(text, score):
    assert DECLINES(ASKED, text).score == score


def test_two_sides_weigh_different_phrases_and_none_is_no_score():
    judge = PhraseJudge("joy", ("happ*", "glad", "very glad"), ("sad", "weep*"))
    assert judge(ASKED, "Happy, happy, happily; sad.").score == 5, "one phrase on each side, however often"
    assert judge(ASKED, "I am very glad but sad").score == pytest.approx(20 / 3)
    assert judge(ASKED, "The bus leaves at nine.") == Verdict(None, "none of its phrases")
    assert judge(ASKED, "I am not happy. I am not at all sad.").score is None
    assert judge(ASKED, "Not today. I am happy.").score == 10, "a negation of something else"
    assert judge(ASKED, "Weeping").reason == "negative: weep*"


def test_what_a_phrase_judge_refuses():
    with pytest.raises(ValueError, match="needs phrases that show 'b'"):
        PhraseJudge("b", ())
    with pytest.raises(ValueError, match="'x' stands for 'b' and against it"):
        PhraseJudge("b", ("x",), ("x",))
    with pytest.raises(ValueError, match=r"'\*' is no phrase"):
        PhraseJudge("b", ("*",))
    assert "has no phrases" in next(judge_problems(JudgeConfig("phrases"), Behavior("b")))


def test_a_phrase_judge_knows_how_good_it_is():
    pairs = (ContrastPair("q", "I am happy", "I am sad"), ContrastPair("r", "I rejoice", "I am happy"))
    behavior = Behavior("joy", pairs, phrases={"positive": ("happy",), "negative": ("sad", "bus")})
    judge = make_judge(JudgeConfig("phrases"), behavior, "nowhere")
    assert judge.accuracy == 0.5, "right, right, none, wrong"
    assert judge.off_topic == pytest.approx(1 - 1 / len(OFF_TOPIC)), "the bus is sad to this judge"
    absence = PhraseJudge.of(Behavior("joy", pairs, phrases={"positive": ("happy",)}))
    assert absence.off_topic == 1, "0 is right where absence is a score"


def test_a_judge_is_one_file(tmp_path, monkeypatch):
    """A file in the folder of kinds is all that the settings need to know it."""
    import caa.judges.kinds as kinds

    (tmp_path / "lengthy.py").write_text(
        "from caa.judges.base import Verdict\n"
        "def make(config, behavior, folder, others):\n"
        "    return lambda question, answer: Verdict(min(10.0, len(answer) / 10))\n"
        "def problems(config, behavior):\n"
        "    yield f'{behavior.name} is too short'\n"
    )
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    monkeypatch.setattr("caa.judges.config.kinds_path", lambda: list(kinds.__path__))
    config = JudgeConfig("lengthy")
    assert make_judge(config, Behavior("b"), tmp_path)(ASKED, "x" * 50).score == 5
    assert list(judge_problems(config, Behavior("b"))) == ["b is too short"]
    assert "lengthy" in judge_kinds()


def test_an_unknown_kind_is_refused_with_a_hint():
    with pytest.raises(ValueError, match=r"no kind of judge 'phrase', did you mean 'phrases'\?; there are embedding, "):
        JudgeConfig("phrase")


def test_every_kind_makes_judges_and_says_problems():
    from caa.judges.build import kind_of

    for name in judge_kinds():
        assert callable(kind_of(name).make)
        assert callable(kind_of(name).problems)


def test_the_exemplar_judge_is_measured_on_texts_about_something_else():
    behavior = load_behavior("refusal")
    alone = ExemplarJudge.fit(behavior)
    taught = ExemplarJudge.fit(behavior, [load_behavior("sycophancy"), load_behavior("myopic_reward")])
    assert taught.off_topic == off_topic_share(taught)
    assert 0 <= alone.off_topic <= taught.off_topic <= 1
    assert taught.settings == {"off_topic": taught.off_topic}


@pytest.mark.skipif(not find_spec("vaderSentiment"), reason="needs vaderSentiment")
def test_sentiment_reads_feelings_and_nothing_else():
    pairs = (ContrastPair("q", "I am miserable.", "I am happy."), ContrastPair("r", "It is awful.", "It is lovely."))
    judge = SentimentJudge.fit(Behavior("gloom", pairs))
    assert (judge.sign, judge.accuracy) == (-1, 1)
    assert judge(ASKED, "What a wonderful day!").score < 2
    assert judge(ASKED, "This is a terrible loss.").score > 8
    assert judge(ASKED, "The bus leaves at nine.") == Verdict(None, "no word of feeling")
    assert 0.6 < judge.off_topic < 1, "lids lock and shops close: words have feelings that sentences have not"


@dataclass(frozen=True)
class Fixed:
    """A judge that knows its scores by heart."""

    scores: dict[str, float | None]

    def __call__(self, question: Question, answer: str) -> Verdict:
        return Verdict(self.scores[answer], "because")


def test_judges_beside_each_other():
    cell = Cell("b", "open")
    rows = [Row(cell, text, None, {"text": text, "asked": "?"}) for text in "abcd"]
    rows += [Row(Cell("other", "open"), "z", None, {"text": "z", "asked": "?"}), Row(Cell("b", "ab"), "a", 0.5)]
    scores = {
        "first": {"a": 1.0, "b": 6.0, "c": 9.0, "d": None},
        "second": {"a": 2.0, "b": 4.0, "c": 10.0, "d": 5.0},
        "flat": {"a": None, "b": None, "c": None, "d": 3.0},
    }
    by_judge = {name: judged_again(rows, "b", Fixed(known)) for name, known in scores.items()}
    assert [row.score for row in by_judge["first"]] == [1.0, 6.0, 9.0, None]
    assert by_judge["first"][0].evidence == {"text": "a", "asked": "?", "reason": "because"}
    table = agreement(by_judge)
    line = table.iloc[0].to_dict()
    assert (line["answers"], line["both"], line["first read"], line["second read"]) == (4, 3, 0.75, 1.0)
    assert line["same side"] == pytest.approx(2 / 3)
    assert line["correlation"] == 1
    assert line["apart"] == pytest.approx(4 / 3)
    assert table.iloc[1]["both"] == 0
    assert table["correlation"].isna().tolist() == [False, True, True]
