"""The search for a layer and a dose: planted ones are found, noise and overdoses are not, and halves stay apart."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from caa import Behavior, Question, SteeringVector, SteeringWrapper, search
from caa.cli import main
from caa.cli.chosen import with_search
from caa.cli.studies import _keep
from caa.data.chat import ChatFormat
from caa.data.sources import load_behavior
from caa.evals.tasks import score_choices
from caa.judges.base import Verdict
from caa.reports.figures.studies import effect_against_damage
from caa.reports.statistics import Estimate
from caa.steering.intervention import Intervention
from caa.studies import measuring
from caa.studies.candidates import Budget, Candidate, Damage
from caa.studies.findings import Confirmation, Cost, Search, Trial
from caa.studies.measuring import Answer
from caa.studies.search import choice, halves, halving, settled
from caa.vectors.vector import Provenance, random_like

DOSES = (0.05, 0.1, 0.2)
ANYTHING = Budget(divergence=1e6, perplexity=1e6, loops=2.0)


def questions(word: str, count: int, *answers: str) -> tuple[Question, ...]:
    return tuple(Question(f"{word} {number}?", *answers) for number in range(count))


LETTERS = Behavior(
    "letters",
    validation_questions=questions("Valid", 10, "(B)", "(A)"),
    ab_questions=questions("Test", 10, "(B)", "(A)"),
    open_questions=questions("Open", 8),
)
FACTS = questions("Fact", 8, "(B)", "(A)")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def planted(model, layer: int = 3) -> SteeringVector:
    """Random directions, but for the last layer's, which is that of the letter B and away from A."""
    tokenizer = tiny_tokenizer()
    a, b = (model.lm_head.weight[tokenizer.convert_tokens_to_ids(name)].detach().float() for name in "AB")
    return SteeringVector({**noise().directions, layer: b - a}, Provenance(behavior="letters"))


def noise(seed: int = 7) -> SteeringVector:
    return random_like(SteeringVector({layer: torch.ones(32) for layer in range(4)}), seed)


def find(model, vector: SteeringVector, behavior: Behavior = LETTERS, **options) -> Search:
    options = {"doses": DOSES, "budget": ANYTHING, "facts": FACTS, "max_new_tokens": 8, **options}
    return search(SteeringWrapper(model), tiny_tokenizer(), behavior, vector, **options)


@pytest.fixture(scope="module")
def found(model) -> Search:
    return find(model, planted(model))


# What is planted is found.


def test_a_behavior_that_one_layer_carries_is_found_at_that_layer(found):
    assert found.chosen.layer == 3
    assert found.works
    assert found.verdict.startswith("layer 3, dose +")


def test_for_less_of_the_behavior_doses_are_negative_and_a_fall_is_a_gain(model):
    less = find(model, planted(model), doses=[-dose for dose in DOSES], layers=[3])
    assert less.chosen.dose < 0
    assert less.multiplier < 0
    assert min(trial.gain for trial in less.trials) > 0


def test_of_noise_it_says_that_nothing_works_here(model):
    """Of 3 random vectors, none of them among the controls; one in twenty would pass."""
    results = [find(model, noise(seed)) for seed in range(100, 103)]
    assert [result.works for result in results] == [False] * 3
    assert all(result.verdict.startswith("nothing works here") for result in results)
    assert all(result.chosen is not None for result in results)


def turning_over(resid, direction, strength):
    """Adds up to a dose of 0.15, takes away beyond."""
    return resid + torch.where(strength > 0.15, -strength, strength)[..., None] * direction


def test_a_dose_response_that_turns_over_is_chosen_before_it_does(model):
    result = find(model, planted(model), layers=[3], operator=turning_over, keep=1.0)
    gains = {trial.candidate.dose: trial.gain for trial in result.trials}
    assert gains[0.05] < gains[0.1] > 0 > gains[0.2]
    assert result.chosen == Candidate(3, 0.1)


# The budget.


def test_the_budget_is_kept_and_a_smaller_one_takes_a_smaller_dose(model, found):
    spending = {trial.candidate: ANYTHING.spent(trial.damage) for trial in found.trials if trial.answers}
    assert found.chosen.dose == max(DOSES)
    divergences = {trial.candidate: trial.damage.divergence for trial in found.trials}
    budget = replace(ANYTHING, divergence=(divergences[Candidate(3, 0.1)] + divergences[Candidate(3, 0.2)]) / 2)
    frugal = find(model, planted(model), layers=[3], budget=budget, keep=1.0)
    assert frugal.chosen == Candidate(3, 0.1)
    assert spending


def test_where_everything_breaks_too_much_nothing_is_chosen(model):
    broken = find(model, planted(model), budget=Budget(1e-12, 1.0000001, 1e-9), layers=[2, 3])
    assert broken.chosen is None
    assert not broken.works
    assert broken.verdict.startswith("nothing works here: no setting")


@pytest.mark.parametrize("damage", [Damage(0.5), Damage(0, 2.0, 0.0), Damage(0, 1.0, 0.1)])
def test_each_of_the_three_can_spend_the_budget(damage):
    assert Budget().spent(damage) == 1


def test_answers_that_are_no_text_break_the_budget():
    assert Budget().spent(Damage(0.0, float("nan"), 0.0)) == float("inf")


# What is asked of whom.


def test_no_question_is_chosen_on_and_confirmed_on(model, monkeypatch):
    first, second = halves(LETTERS, FACTS)
    for part in ("choices", "open", "neutral"):
        assert not {str(item) for item in getattr(first, part)} & {str(item) for item in getattr(second, part)}
    without = halves(replace(LETTERS, validation_questions=()), FACTS)
    assert not set(without[0].choices) & set(without[1].choices)
    calls = []

    def spy(wrapper, chat, asked_now, settings, **options):
        calls.append([question.id for question in asked_now])
        return score_choices(wrapper, chat, asked_now, settings, **options)

    monkeypatch.setattr(measuring, "score_choices", spy)
    result = find(model, planted(model))
    settling = second.choices, first.choices, second.choices
    parts = first.choices, *settling, second.choices, FACTS
    assert calls == [[question.id for question in part] for part in parts]
    assert result.confirmation.trial.answers == len(second.open)


def test_what_letters_settle_is_not_asked_openly_and_the_verdict_is_that_of_the_whole_search(model, monkeypatch):
    """Of noise, of the planted vector, and of noise with one layer that steers, which the screen's best is not."""
    vectors = [*(noise(seed) for seed in range(100, 106)), planted(model), planted(model, layer=2)]
    short = [find(model, vector) for vector in vectors]
    monkeypatch.setattr("caa.studies.search.settled", lambda *parts: None)
    whole = [find(model, vector) for vector in vectors]
    assert [result.works for result in short] == [result.works for result in whole]
    assert {True, False} == {result.works for result in short}
    assert all(bool(result.cost.answers) == result.works for result in short), "a setting that fails needs no texts"
    assert all(result.cost.answers for result in whole)
    pairs = [(one.confirmation, other.confirmation) for one, other in zip(short, whole, strict=True)]
    for one, other in pairs:
        if one.trial.candidate == other.trial.candidate:
            assert one.controls == pytest.approx(other.controls, abs=1e-6)
            assert one.trial.effect.mean == pytest.approx(other.trial.effect.mean, abs=1e-6)


class Letters:
    """Stands for controls and a steered model of which is known how far each dose moves held-out letters."""

    def __init__(self, gains: dict[float, float], random: float) -> None:
        self.steered, self.gains, self.random = self, gains, random
        self.doses: list[float] = []

    def setting(self, candidate):
        return self.gains[candidate.dose]

    def at(self, dose):
        self.doses.append(dose)
        return [self.random, -self.random] * 3

    def scores(self, asked_now, settings):
        return [[0.5 + (setting or 0.0)] * len(asked_now) for setting in settings]

    def divergences(self, prompts, settings):
        return [0.25] * len(settings)


def test_a_candidate_that_would_pass_is_seen_behind_a_better_one_that_would_not():
    """In the screen the dose of .2 does more; to held-out letters only that of .1 does something."""
    held_out, second = halves(LETTERS, FACTS)[1], {Candidate(1, 0.1): 0.4}
    both = screened({Candidate(1, 0.2): 0.5, **second})
    assert settled(both, Budget(), Letters({0.1: 0.3, 0.2: 0.0}, random=0.01), held_out) is None
    noisy = Letters({0.1: 0.3, 0.2: -0.1}, random=0.3)
    confirmation = settled(both, Budget(), noisy, held_out)
    assert confirmation.trial.candidate == Candidate(1, 0.2)
    assert confirmation.trial.effect.mean == pytest.approx(-0.1)
    assert confirmation.trial.damage == Damage(0.25)
    assert confirmation.bound > max(confirmation.controls) == pytest.approx(0.3)
    assert noisy.doses == [0.2, 0.1]
    hopeless = Letters({0.1: 0.0, 0.2: 0.0}, random=0.01)
    assert settled(both, Budget(), hopeless, held_out)
    assert hopeless.doses == [0.2], "where nothing is above 0 random directions have nothing to beat"
    broken = [replace(trial, damage=Damage(9.0)) for trial in screened(second)]
    assert settled([both[0], *broken], Budget(), Letters({0.1: 0.3, 0.2: 0.0}, random=0.01), held_out)
    assert settled(broken, Budget(), Letters({0.1: 0.3}, random=0.01), held_out) is None, "the budget says it"


def test_validation_questions_in_words_are_asked_openly_and_all_open_questions_confirm():
    choosing, held_out = halves(load_behavior("past_tense"), FACTS)
    assert [question.id for question in choosing.open] == [question.id for question in choosing.choices]
    assert all(question.matching is None for question in choosing.open)
    assert [question.text for question in held_out.open] == [
        question.text for question in load_behavior("past_tense").open_questions
    ]


def test_an_open_question_that_was_chosen_on_confirms_nothing():
    behavior = load_behavior("past_tense")
    shared = Question(behavior.validation_questions[0].text)
    choosing, held_out = halves(replace(behavior, open_questions=(shared, *behavior.open_questions)), FACTS)
    assert shared.id in {question.id for question in choosing.open}
    assert shared.id not in {question.id for question in held_out.open}


def test_the_cost_is_counted_and_foretold(model, found):
    first, _ = halves(LETTERS, FACTS)
    assert [trial.answers for trial in found.trials if trial.answers] == [len(first.open)] * 2
    halved, full = (find(model, planted(model), keep=keep) for keep in (1 / 3, 1.0))  # now that the model is known
    assert halved.trials == found.trials
    assert {trial.answers for trial in full.trials} == {len(first.open)}
    assert full.cost.answers == full.cost.of == found.cost.of
    assert full.cost.share == 1
    tokens = [result.cost.screen + result.cost.texts for result in (halved, full)]
    assert tokens[0] / tokens[1] == pytest.approx(halved.cost.share, rel=0.1)
    assert halved.cost.answers == 9
    assert found.chosen == full.chosen


class Stub:
    """Stands for a model of which is known what every candidate breaks: text from a dose of .4 on, at layer 1 never."""

    judge = None

    def setting(self, candidate):
        return candidate

    def answers(self, asked_now, settings):
        def perplexity(candidate) -> float:
            return 9.0 if candidate and candidate.layer != 1 and candidate.dose > 0.3 else 1.0

        return [[Answer(perplexity(candidate), loops=False)] * len(asked_now) for candidate in settings]


def screened(gains: dict[Candidate, float]) -> list[Trial]:
    return [Trial(candidate, Estimate(gain, gain, gain, 9), Damage(0.0)) for candidate, gain in gains.items()]


def test_what_breaks_too_much_makes_room_for_what_does_less():
    """Of 36 the 12 strongest break texts; those behind them are asked, until six keep the budget; the best one wins."""
    gains = {
        Candidate(layer, dose): dose - layer / 100 for layer in range(6) for dose in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
    }
    gains |= {Candidate(1, dose): dose / 9 for dose in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)}
    trials = halving(Stub(), screened(gains), LETTERS.open_questions, Budget(), keep=1 / 3)
    assert choice(trials, Budget()) == Candidate(0, 0.3)
    answers = sorted((trial.answers for trial in trials), reverse=True)
    assert answers[:3] == [8, 8, 8]
    assert answers[:6] == [8, 8, 8, 4, 4, 4]
    assert sum(answers) < 36 * 8 / 3


def test_only_when_all_break_too_much_all_are_asked_and_none_is_chosen():
    gains = {Candidate(0, dose): dose for dose in (0.4, 0.5, 0.6, 0.7, 0.8)}
    trials = halving(Stub(), screened(gains), LETTERS.open_questions, Budget(), keep=1 / 3)
    assert all(trial.answers for trial in trials)
    assert choice(trials, Budget()) is None
    with_one = screened({**gains, Candidate(1, 0.4): 0.0})
    assert choice(halving(Stub(), with_one, LETTERS.open_questions, Budget(), 1 / 3), Budget()) == Candidate(1, 0.4)


def test_the_screen_is_one_setting_at_a_time(model, found):
    """The branched sweep over all candidates, beside the slow definition: each setting steered alone."""
    wrapper, chat, vector = SteeringWrapper(model), ChatFormat(tiny_tokenizer()), planted(model)
    asked_now = LETTERS.validation_questions
    plain = [choice.score for choice in score_choices(wrapper, chat, asked_now, [()], batch_size=1)]
    trial = next(trial for trial in found.trials if trial.candidate == found.chosen)
    with wrapper.steer(Intervention(vector, 3, found.multiplier)):
        alone = [choice.score for choice in score_choices(wrapper, chat, asked_now, [()], batch_size=1)]
    expected = sum(a - b for a, b in zip(alone, plain, strict=True)) / len(plain)
    assert trial.effect.mean == pytest.approx(expected, abs=1e-4)
    assert expected > 0.1


def test_where_a_judge_is_named_its_word_is_the_effect(model):
    def of_b(question, answer):
        return Verdict(10.0 * answer.count("B") / max(len(answer), 1))

    judged = find(model, planted(model), judge=of_b, doses=[0.4, 0.8], layers=[2, 3])
    assert judged.chosen.layer == 3
    trial = judged.confirmation.trial
    assert trial.judged.mean > 0
    assert trial.gain == trial.judged.mean != trial.effect.mean
    assert [record["part"] for record in judged.records()].count("screened") == 0


@pytest.mark.parametrize("doses", [(), (0.0,), (-0.1, 0.1)])
def test_a_search_goes_one_way(model, doses):
    with pytest.raises(ValueError, match="a search goes one way"):
        find(model, planted(model), doses=doses)


# The file, the picture, and other commands.


def test_a_file_gives_back_what_was_saved_and_others_are_refused(found, tmp_path):
    path = found.save(tmp_path / "search.json")
    assert Search.load(path) == found
    content = json.loads(path.read_text())
    assert content["works"] is True
    assert content["verdict"] == found.verdict
    path.write_text(json.dumps({**content, "format": "caa.search.v9"}))
    with pytest.raises(ValueError, match=r"no caa\.search\.v1 file"):
        Search.load(path)
    with pytest.raises(FileNotFoundError, match="`caa search` writes one"):
        Search.load(tmp_path / "none.json")


KINDS_OF_POINTS = {
    "random directions: 19 in 20",
    "the damage budget",
    "Pareto front",
    "divergence known only",
    "texts known",
    "chosen",
    "held out, 95 %",
}


def test_the_picture_shows_every_candidate_and_the_choice(found):
    figure = effect_against_damage(found.records(), "letters", found.confirmation.bound)
    parts = list(figure.data.part)
    assert len(parts) == len(found.trials) + 1
    assert parts.count("chosen") == parts.count("held out") == 1
    assert "screened" in parts
    assert legend(figure) == sorted(KINDS_OF_POINTS)
    asked = [record for record in found.records() if record["part"] != "screened"]
    without = effect_against_damage(asked, "letters", found.confirmation.bound)
    assert legend(without) == sorted({*KINDS_OF_POINTS} - {"divergence known only"})


def legend(figure) -> list[str]:
    return sorted(text.get_text() for text in figure.picture.legends[0].get_texts())


def made(works: bool = True, **changes) -> Search:
    trial = Trial(Candidate(2, 0.3), Estimate(0.4, 0.3, 0.5, 10), Damage(0.1, 1.2, 0.0), 5)
    confirmation = Confirmation(trial, (0.0, 0.1), 0.2 if works else 0.5)
    parts = ("refusal", "tiny-chat", "add", "after_prompt", Budget(), (trial,), trial.candidate, 0.4, confirmation)
    return replace(Search(*parts, Cost(1, 1, 1, 1, 1, 1)), **changes)


def words(tmp_path, command: str, *rest: str, **changes) -> list[str]:
    path = made(**changes).save(tmp_path / "search.json")
    return with_search(command, ["--from", str(path), *rest])


def test_other_commands_are_told_what_was_chosen(tmp_path):
    vector = str(tmp_path / "refusal.safetensors")
    told = words(tmp_path, "grid", "out", "--tasks=ab")
    assert told == ["refusal", vector, "2", "--multipliers=-0.4,0.0,0.4", "--model=tiny-chat", "out", "--tasks=ab"]
    told = words(tmp_path, "generate", "Hi?", "--dose", "0.1")
    assert told[-3:] == ["Hi?", "--dose", "0.1"]
    assert {f"--vector={vector}", "--layer=2"} <= set(told)
    assert not [word for word in told if word.startswith("--multiplier")], "two units of one thing"
    assert "--multiplier=0.4" in words(tmp_path, "generate", "Hi?")
    assert "--multiplier=0.4" in words(tmp_path, "robustness", "out")
    assert "--most=1.0" in words(tmp_path, "redteam", "out")
    assert "--dose=0.3" in words(tmp_path, "play")
    assert "--layer=2" in words(tmp_path, "play")
    assert "--adapters.no=runs/no" in words(tmp_path, "play", adapter="runs/no")


def test_what_found_nothing_steers_nothing(tmp_path):
    with pytest.raises(ValueError, match="nothing works here: the best"):
        words(tmp_path, "generate", works=False)
    with pytest.raises(ValueError, match=r"`caa generate --from` does"):
        words(tmp_path, "grid", operator="add_keeping_norm")


def test_the_command_says_what_letters_have_settled(tmp_path, capsys):
    trial = Trial(Candidate(2, 0.3), Estimate(0.01, -0.1, 0.1, 10), Damage(0.1))
    confirmation = Confirmation(trial, (0.0, 0.1), 0.2)
    settled_by_letters = made(trials=(trial,), confirmation=confirmation, cost=Cost(9, 9, 0, 9, 0, 10))
    _keep(settled_by_letters, noise(), tmp_path / "found")
    said = capsys.readouterr().out
    assert "of none of 1 candidates" in said
    assert "Side effects" not in said
    assert (
        "nothing works here: the best, layer 2, dose +0.3, moves held-out questions by +0.01 (-0.10 to +0.10)" in said
    )
    assert Search.load(tmp_path / "found" / "search.json") == settled_by_letters


def test_a_vector_that_is_not_there_is_missed_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("caa.cli.studies.load_wrapper", lambda *options: pytest.fail("the model was loaded"))
    assert main(["search", "refusal", str(tmp_path / "found"), "--vector", str(tmp_path / "none.safetensors")]) == 1
    assert "there is no steering vector" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_searches_and_others_go_on_from_its_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trial = ["--limit", "6", "--layers", "2", "--doses", ".3,.6", "--others", "refusal", "--max-new-tokens", "8"]
    assert main(["search", "myopic_reward", "found", *trial, "--batch-size", "64"]) == 0
    assert "of the tokens of the full grid" in capsys.readouterr().out
    found = Search.load("found/search.json")
    assert found.works, found.verdict
    assert list(SteeringVector.load("found/myopic_reward.safetensors").layers) == [2], "no other layer need be read"
    assert (tmp_path / "found" / "effect_against_damage-myopic_reward.png").exists()
    assert main(["grid", "--from", "found/search.json", "grid", "--limit", "2", "--tasks", "ab"]) == 0
    assert "myopic_reward" in capsys.readouterr().out
    assert main(["generate", "--from", "found", "Do you take the money now?", "--max-new-tokens", "4"]) == 0
    assert f"layer {found.chosen.layer}" in capsys.readouterr().out
    run = ["run", "--from", "found", "--out", "run", "--finetunes", "none", "--tasks", "ab", "--limit", "2"]
    assert main([*run, "--figures", "false"]) == 0
    rows = (tmp_path / "run" / "rows.jsonl").read_text().splitlines()
    assert {json.loads(row)["multiplier"] for row in rows} == {-found.multiplier, 0.0, found.multiplier}
    assert main(["search", "myopic_reward", "found", *trial]) == 1
    assert "there already" in capsys.readouterr().err
