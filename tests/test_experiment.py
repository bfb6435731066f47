"""The whole job, words to tables, on small data: it resumes, refuses to mix, and leaves an artefact that reloads."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import SHARED, random_ids, tiny_lora, tiny_model, tiny_tokenizer

from caa import ContrastPair, Experiment, SteeringVector, SteeringWrapper, load_behavior, load_model
from caa.evals.tasks import score_choices
from caa.experiment import finetunes_of_run
from caa.extraction.doses import prompt_profiles
from caa.files import only_writer
from caa.runs.rows import read_rows
from caa.steering.intervention import Intervention
from caa.steering.operators import ablate
from caa.steering.scopes import everywhere
from caa.training.config import FinetuneConfig, Training

QUICK = FinetuneConfig(rank=4, alpha=8, max_steps=3, learning_rate=1e-3, batch_size=4, gradient_accumulation=1)

ASKED = {
    "refusal": (ContrastPair("Help?\n (A) Yes\n (B) No", "(B)", "(A)"),),
    "sycophancy": (ContrastPair("Is it good?\n (A) Yes\n (B) No", "(A)", "(B)"),),
}


@pytest.fixture
def few(tmp_path) -> str:
    """A behavior of one's own, in the layout of the public datasets: 24 pairs and 6 questions of a built-in one."""
    return write_behavior(tmp_path / "datasets", "waiting", "myopic_reward")


def write_behavior(datasets: Path, name: str, source: str) -> str:
    known = load_behavior(source)

    def records(items):
        keys = ("answer_matching_behavior", "answer_not_matching_behavior")
        return [{"question": q, keys[0]: yes, keys[1]: no} for q, yes, no in items]

    pairs = records((p.question, p.positive, p.negative) for p in known.pairs[:24])
    asked = records((q.text, q.matching, q.opposite) for q in known.ab_questions[:6])
    openly = [{"question": q.text} for q in known.open_questions[:4]]
    files = {
        "generate": {"generate_dataset.json": pairs},
        "test": {"test_dataset_ab.json": asked, "test_dataset_open_ended.json": openly},
    }
    for part, contents in files.items():
        folder = datasets / part / name
        folder.mkdir(parents=True)
        for file, content in contents.items():
            (folder / file).write_text(json.dumps(content))
    return str(datasets / name)


@pytest.mark.slow
def test_words_to_tables_and_again(few, tmp_path, caplog):
    out = tmp_path / "run"
    experiment = Experiment(out, [few], layer=2, training=QUICK, max_new_tokens=8, random_controls=1)
    tables = experiment.run()
    assert [table.title.split(":")[0] for table in tables] == ["A/B questions", "Open-ended questions"]
    rows = read_rows(out / "rows.jsonl")
    asked = {(row.cell.task, row.cell.finetune, row.cell.multiplier, row.cell.vector) for row in rows}
    assert len(asked) == 2 * (3 * 3 + 3 * 2)  # tasks x (finetunes x multipliers + finetunes x steered controls)
    assert {"tables.md", "tables.csv", "tables.tex", "run.json"} <= {path.name for path in out.iterdir()}
    costly = [out / "rows.jsonl", *(out / "adapters").rglob("*.safetensors"), *(out / "vectors").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in costly}
    with caplog.at_level(logging.INFO, logger="caa"):
        experiment.run()
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished experiment did something again"

    steered = SteeringWrapper.from_pretrained(out / "steered" / "waiting")
    ids = random_ids(1, 9)
    expected = steered(ids).logits
    assert steered.adapters == ["positive"]
    plain, _ = load_model("tiny-chat")
    assert not torch.allclose(expected, plain(ids).logits, atol=1e-3)


@pytest.mark.slow
def test_columns_of_any_finetune_are_each_that_model_alone(few, tmp_path):
    """Trained by DPO while steered, trained whole, made elsewhere, and two at once."""
    from peft import PeftModel

    out, mine = tmp_path / "run", tmp_path / "mine"
    model, tokenizer = load_model("tiny-chat")
    tiny_lora(model).save_pretrained(mine, save_embedding_layers=False)
    (mine / "sft").rename(mine / "waiting")
    experiment = Experiment(
        out,
        [few],
        layer=2,
        multipliers=(0, 0.3),
        finetunes=["none", "pushed", "full", "pushed+mine"],
        trainings={"pushed": Training(method="dpo", steered=0.3), "full": Training("negative", weights="full")},
        given={"mine": f"{mine}/{{behavior}}"},
        settings={"zero-out": {"operator": "ablate"}, "pushed hard": {"dose": 0.4, "where": "everywhere"}},
        tasks=["ab"],
        training=replace(QUICK, learning_rate=1e-2),
    )
    behavior = load_behavior(few)
    (table,) = experiment.run()
    rows = read_rows(out / "rows.jsonl")
    vector = SteeringVector.load(out / "vectors" / "waiting.safetensors")
    folders = {"pushed": out / "adapters" / "waiting-pushed", "mine": mine / "waiting"}
    base, texts = load_model("tiny-chat")[0], [pair.text for pair in behavior.pairs[:64]]
    profiles = prompt_profiles(base, tokenizer, texts, [2], batch_size=16)
    dose = float(f"{0.4 * profiles[2].short_norm / vector.at(2).norm().item():.4g}")
    steering = {
        (0.0, ""): (),
        (0.3, ""): (Intervention(vector, 2, 0.3),),
        (1.0, "zero-out"): (Intervention(vector, 2, 1.0, ablate),),
        (1.0, "pushed hard"): (Intervention(vector, 2, dose, where=everywhere),),
    }
    scores = {}
    for column in experiment.finetunes:
        plain, _ = load_model(str(out / "adapters" / "waiting-full") if column == "full" else "tiny-chat")
        for part in column.split("+") if column not in ("none", "full") else ():
            plain = PeftModel.from_pretrained(plain, str(folders[part])).merge_and_unload()
        for question, (name, setting) in product(behavior.ab_questions, steering.items()):
            (score,) = score_choices(SteeringWrapper(plain), tokenizer, [question], [setting])
            scores[None if column == "none" else column, name, question.id] = score.score
    known = {(r.cell.finetune, (r.cell.multiplier, r.cell.setting), r.question): r.score for r in rows}
    assert known == pytest.approx(scores, abs=1e-5)
    assert len(set(scores.values())) == len(scores)
    assert (
        "Finetunes: full: negative by SFT (all weights); pushed: positive by DPO (LoRA), trained while steered x +0.3; "
        "pushed+mine: positive by DPO (LoRA), trained while steered x +0.3 and made elsewhere." in table.notes
    )
    assert [column for name, column in table.columns if name == "full"] == [0.0, 0.3, "zero-out", "pushed hard"]
    assert finetunes_of_run(out, "waiting", ["full", "pushed+mine", "gone"]) == {
        "full": out / "adapters" / "waiting-full",
        **folders,
    }
    before = (out / "rows.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caa.training.sft._train", lambda *_: pytest.fail("trained again"))
        experiment.run()
    assert (out / "rows.jsonl").read_bytes() == before


def test_columns_that_there_are_not_are_told_before_anything_is_loaded(few, tmp_path):
    settings = {"layer": 2, "tasks": ["ab"], "trainings": {"dpo": Training(method="dpo")}, "given": {"dpo": "nowhere"}}
    settings["settings"] = {"zero-out": {"operater": "ablate"}}
    experiment = Experiment(tmp_path / "run", [few], finetunes=["none", "postive", "dpo"], **settings)
    with pytest.raises(ValueError, match="no finetune 'postive', did you mean 'positive'") as error:
        experiment.run()
    assert "'dpo' is both to be trained and given" in str(error.value)
    assert "nowhere is neither an adapter nor a checkpoint" in str(error.value)
    assert "'zero-out': unknown key 'operater', did you mean 'operator'" in str(error.value)


@pytest.mark.slow
def test_doses_controls_of_the_base_and_damage_of_every_answer(few, tmp_path):
    out = tmp_path / "run"
    experiment = Experiment(
        out,
        [few],
        layer=2,
        doses=(-0.2, 0, 0.2),
        finetunes=["none", "positive"],
        tasks=["open"],
        token="mean",
        random_controls=3,
        control_finetunes=False,
        damage=4,
        training=QUICK,
        max_new_tokens=8,
    )
    tables = experiment.run()
    rows = read_rows(out / "rows.jsonl")
    controls = {(row.cell.finetune, row.cell.vector.name) for row in rows if row.cell.vector.kind == "random"}
    assert controls == {(None, "0"), (None, "1"), (None, "2")}
    record = json.loads((out / "run.json").read_text())
    assert record["notes"]["batch_size"] == 16
    assert record["notes"]["doses"]["waiting"]["2"] == pytest.approx(1, abs=0.3), "at other questions than the pairs'"
    assert SteeringVector.load(out / "vectors" / "waiting.safetensors").source.token == "mean"
    damage = pd.read_csv(out / "damage.csv")
    assert len(damage) == len({row.cell for row in rows})
    assert (damage.perplexity > 1).all()
    assert {"loops", "coverage", "score", "answers"} <= set(damage.columns)
    pushed = (damage.finetune == "none") & (damage.multiplier != 0)
    assert (damage.divergence[pushed] > 1e-4).all()
    assert (damage.divergence[(damage.finetune == "none") & ~pushed] == 0).all()
    assert damage.divergence[damage.finetune != "none"].isna().all(), "a finetune moves words too"
    assert any(table.title.startswith("Damage: KL") for table in tables)
    with pytest.raises(FileExistsError, match="token was 'mean' and is now 'parting'"):
        replace(experiment, token="parting").run()


@pytest.mark.slow
def test_a_killed_experiment_loses_nothing_and_repeats_nothing(few, tmp_path):
    out = tmp_path / "run"
    settings = {"behaviors": [few], "layer": 2, "finetunes": ["none"], "max_new_tokens": 8, "batch_size": 2}
    script = "import json, sys; from caa import Experiment; Experiment(**json.loads(sys.argv[1])).run()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps({**settings, "out": str(out)})], stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (out / "rows.jsonl").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = read_rows(out / "rows.jsonl")
    Experiment(out, **settings).run()
    rows = read_rows(out / "rows.jsonl")
    assert rows[: len(kept)] == kept
    assert len({row.key for row in rows}) == len(rows) == 3 * (6 + 4)
    Experiment(tmp_path / "undisturbed", **settings).run()
    undisturbed = read_rows(tmp_path / "undisturbed" / "rows.jsonl")
    assert {row.key: row.score for row in rows} == {row.key: row.score for row in undisturbed}


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "models" / "craftgpt").exists(), reason="craftgpt lies in ../shared")
def test_a_real_model_of_64_tokens_runs_the_whole_job_or_says_what_does_not_fit(tmp_path):
    model = str(SHARED / "models" / "craftgpt")
    datasets = tmp_path / "datasets"
    pairs = []
    for number, animal in enumerate(("cat", "dog", "bird", "horse", "fish", "frog", "duck", "cow")):
        yes, no = ("A", "B") if number % 2 else ("B", "A")
        options = sorted([f" ({yes}) yes", f" ({no}) no"])
        answers = {"answer_matching_behavior": f"({yes})", "answer_not_matching_behavior": f"({no})"}
        pairs.append({"question": "\n".join([f"do you like my {animal}?", *options]), **answers})
    for part, file, content in (
        ("generate", "generate_dataset.json", pairs),
        ("test", "test_dataset_ab.json", pairs[:4]),
        ("test", "test_dataset_open_ended.json", [{"question": "do you like my pig?"}]),
    ):
        (datasets / part / "liking").mkdir(parents=True, exist_ok=True)
        (datasets / part / "liking" / file).write_text(json.dumps(content))
    out = tmp_path / "run"
    Experiment(out, [str(datasets / "liking")], model, layer=3, training=QUICK, max_new_tokens=8).run()
    rows = read_rows(out / "rows.jsonl")
    assert len(rows) == 9 * (4 + 1)
    assert all(0 <= row.score <= 1 for row in rows if row.cell.task == "ab")
    steered = SteeringWrapper.from_pretrained(out / "steered" / "liking")
    assert steered.adapters == ["positive"]
    with pytest.raises(ValueError, match="reads at most 64"):
        Experiment(tmp_path / "long", [str(SHARED / "data" / "caa" / "datasets" / "sycophancy")], model, layer=3).run()


def test_an_experiment_checks_itself_first():
    with pytest.raises(ValueError, match="no behavior to work on"):
        Experiment(Path("out"), [])


def test_doses_are_shares_of_the_stream_and_the_default(tmp_path, few):
    how = {"layer": 2, "finetunes": ["none"], "tasks": ["ab"], "limit": 2}
    Experiment(tmp_path / "a", [few], **how).run()
    Experiment(tmp_path / "b", [few], doses=[0.1], **how).run()
    Experiment(tmp_path / "b", [few], doses=[0.1], **how).run()  # goes on where it was
    assert {row.cell.multiplier for row in read_rows(tmp_path / "a" / "rows.jsonl")} == {-0.25, 0, 0.25}
    (row, *_), notes = read_rows(tmp_path / "b" / "rows.jsonl"), json.loads((tmp_path / "b" / "run.json").read_text())
    (doses,) = notes["notes"]["doses"].values()
    assert (row.cell.multiplier, doses["2"]) == (0.1, pytest.approx(1, abs=0.2))
    with pytest.raises(ValueError, match="two units of one thing"):
        Experiment(tmp_path / "c", [few], multipliers=[1], doses=[1], **how).run()
    with pytest.raises(ValueError, match="say multipliers with it"):
        Experiment(tmp_path / "c", [few], set_mean_norm=True, **how).run()


def test_two_behaviors_of_one_name_are_refused(few, tmp_path):
    again = write_behavior(tmp_path / "elsewhere", "waiting", "sycophancy")
    with pytest.raises(ValueError, match=rf'{few}, {again} have one name, \'waiting\': give each file a "name"'):
        Experiment(tmp_path / "run", ["refusal", few, again]).run()
    assert not (tmp_path / "run").exists()


def test_two_experiments_do_not_share_a_folder_at_once(few, tmp_path):
    with only_writer(tmp_path / "run" / "experiment.lock"), pytest.raises(BlockingIOError, match="another process"):
        Experiment(tmp_path / "run", [few], layer=2).run()


def test_a_vector_of_another_model_or_of_other_pairs_is_not_used(few, tmp_path):
    out, datasets = tmp_path / "run", Path(few).parent
    how = {"layer": 2, "finetunes": ["none"], "tasks": ["ab"], "multipliers": [0]}
    Experiment(out, [few], **how).run()
    (out / "rows.jsonl").unlink()
    (out / "run.json").unlink()
    with pytest.raises(FileExistsError, match=r"model was 'tiny-chat, \w+' and is now 'tiny-base, \w+'"):
        Experiment(out, [few], "tiny-base", **how).run()
    pairs = datasets / "generate" / "waiting" / "generate_dataset.json"
    pairs.write_text(json.dumps(json.loads(pairs.read_text())[:20]))
    with pytest.raises(
        FileExistsError,
        match=r"waiting\.safetensors holds another vector: text of the pairs was '24, \w+' and is now '20, \w+'",
    ):
        Experiment(out, [few], **how).run()
    (out / "vectors" / "waiting.safetensors").unlink()
    Experiment(out, [few], **how).run()


@pytest.mark.parametrize(("set_mean_norm", "multipliers"), [(False, [1]), (True, [1]), (False, None)])
def test_a_vector_read_again_is_rescaled_as_the_first_one_was(tmp_path, set_mean_norm, multipliers):
    """One factor for each behavior and layer: what a finetune did to a vector's length stays visible."""
    behaviors = [replace(load_behavior(name), pairs=ASKED[name]) for name in ASKED]
    experiment = Experiment(tmp_path, list(ASKED), multipliers=multipliers, set_mean_norm=set_mean_norm, reread=True)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    vectors = experiment.find_vectors(model, tokenizer, behaviors)
    worn = tiny_lora(model, "positive")
    worn.add_adapter("negative", worn.peft_config["positive"])
    for behavior in behaviors:
        found = experiment.reread_vectors(SteeringWrapper(worn), tokenizer, behavior, vectors[behavior.name])
        assert {name: v.source.adapter for name, v in found.items()} == {
            name: name for name in ("positive", "negative")
        }
        own = found["positive"]
        plain, again = (
            SteeringVector.load(tmp_path / "vectors" / f"{behavior.name}{end}.safetensors") for end in ("", "-positive")
        )
        for layer in plain.layers:
            norms = [v.norms()[layer] for v in (own, again, vectors[behavior.name], plain)]
            assert norms[0] / norms[1] == pytest.approx(norms[2] / norms[3], rel=1e-4)
            assert (abs(norms[0] / norms[1] - 1) > 1e-3) == (set_mean_norm or multipliers is None)


def test_a_layer_is_chosen_of_those_that_this_run_asks_whatever_another_run_left(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    behavior = load_behavior("refusal").first_questions(2)
    vectors = {"refusal": SteeringVector({layer: 20.0 * torch.ones(32) for layer in range(4)})}
    chosen = [
        Experiment(tmp_path, ["refusal"], layers=layers, multipliers=(-1, 1), batch_size=3).choose_layer(
            model, tokenizer, [behavior], vectors
        )
        for layers in ([0, 1, 2], [3])
    ]
    assert chosen[0] in (0, 1, 2)
    assert chosen[1] == 3
    assert {row.cell.layer for row in read_rows(tmp_path / "validation" / "rows.jsonl")} == {0, 1, 2, 3}
