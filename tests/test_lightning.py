"""Lightning against `extract`, `EvalGrid` and `answer_open`; two real processes against one; steered training."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning_job import SIZES, behavior, facts, find_and_measure, make_data, make_module, make_trainer
from tiny import random_ids, tiny_lora, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader

from caa import EvalGrid, Intervention, SteeringVector, SteeringWrapper, extract
from caa.evals.tasks import answer_open
from caa.lightning.data import CAADataModule
from caa.lightning.metrics import ChoiceTable, RunningMean, on_grid
from caa.lightning.module import CAAModule
from caa.models.blocks import decoder_blocks
from caa.reports.tables import write_report
from caa.runs.rows import append_rows, read_rows
from caa.steering.intervention import sweep
from caa.steering.operators import add_keeping_norm
from caa.steering.scopes import everywhere
from caa.training.callback import SteeringCallback, prompt_lengths
from caa.vectors.vector import Provenance

ROOT = Path(__file__).parents[1]
BUILTIN_DATA = ROOT / "caa" / "data" / "builtin"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process finds, for both sizes."""
    return {size: find_and_measure(tmp_path_factory.mktemp("one"), 1, size) for size in SIZES}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    module, data = make_module(), make_data(7)
    trainer = make_trainer(folder, logger=CSVLogger(folder))
    trainer.fit(module, data)
    return SimpleNamespace(module=module, data=data, trainer=trainer, folder=folder)


# The same numbers as the plain functions.


def test_fit_finds_the_vector_of_extract(fitted):
    module, vector = fitted.module, fitted.module.vector
    expected = extract(module.wrapper.model, module.tokenizer, behavior(7).pairs, [1, 2], behavior="patience")
    assert vector.source == dataclasses.replace(expected.source, checks={})
    for layer in (1, 2):
        assert expected.at(layer).norm() > 1e-2, "a zero vector would agree with anything"
        torch.testing.assert_close(vector.at(layer), expected.at(layer), rtol=1e-5, atol=1e-5)


def test_all_layers_by_default():
    assert make_module(None).layers == [0, 1, 2, 3]
    assert make_module([3, 1, 1]).layers == [1, 3]


@pytest.mark.slow
def test_test_gives_the_rows_of_the_grid(tmp_path, fitted):
    module = fitted.module
    (logged,) = make_trainer(tmp_path).test(module, fitted.data, verbose=False)
    grid = EvalGrid(
        behavior(7), module.vector, [1, 2], (-0.5, 0, 2), (None, "sft"), ("ab", "facts"), facts=facts(7), batch_size=5
    )
    grid.run(module.wrapper, module.tokenizer, tmp_path, progress=False)
    expected = {row.key: row for row in read_rows(tmp_path / "rows.jsonl")}
    found = {row.key: row for row in module.rows}
    assert len(module.rows) == len(found) == 2 * 7 * 2 * 2 * 3
    assert found.keys() == expected.keys()
    for key, row in found.items():
        assert row.evidence.keys() == expected[key].evidence.keys()
        assert row.score == pytest.approx(expected[key].score, abs=1e-5)
        assert row.evidence["matching"] == expected[key].evidence["matching"]
        assert row.evidence["p_matching"] == pytest.approx(expected[key].evidence["p_matching"], abs=1e-5)
    cell = [row.score for row in module.rows if (row.cell.task, row.cell.finetune) == ("facts", "sft")]
    assert max(cell) - min(cell) > 1e-2, "or nothing was steered"
    means = {k: [r.score for r in module.rows if _name(r.cell) == k] for k in logged}
    assert logged == pytest.approx({k: sum(scores) / len(scores) for k, scores in means.items()})


def test_prompts_controls_other_vectors_and_operators_are_asked_as_the_grid_asks_them(tmp_path):
    """Every axis of a grid at once, with one vector for all: the same cells, the same scores."""
    prompted = replace(behavior(3), system_prompts={"positive": ("Be quick",)})
    vectors = [SteeringVector({2: torch.randn(32, generator=torch.Generator().manual_seed(s))}) for s in (7, 8, 9)]
    more = {"random_controls": 1, "also": {"caa": vectors[1]}, "reread": {"sft": vectors[2]}}
    more |= {"operator": add_keeping_norm, "where": everywhere, "system_prompts": ("", "positive")}
    module = make_module([2], multipliers=(0, 2), vector=vectors[0], **more)
    make_trainer(tmp_path).test(module, CAADataModule(prompted, batch_size=2), verbose=False)
    grid = EvalGrid(prompted, vectors[0], [2], (0, 2), (None, "sft"), ("ab",), **more)
    grid.run(module.wrapper, module.tokenizer, tmp_path, progress=False)
    expected = {row.key: row.score for row in read_rows(tmp_path / "rows.jsonl")}
    scores = {row.key: row.score for row in module.rows}
    assert len(expected) == len(module.rows) == (2 * (1 + 3) + 2 * (1 + 4)) * 3
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 5) for score in scores.values()}) > 30, "or every cell would do"
    make_trainer(tmp_path).predict(module, CAADataModule(prompted, batch_size=2))
    assert {row.cell for row in module.rows} == {replace(cell, task="open") for cell in grid.cells()}
    assert len({row.evidence["text"] for row in module.rows}) > 10


def _name(cell) -> str:
    finetune = "none" if cell.finetune is None else cell.finetune
    return f"{cell.task}/{finetune}/layer_{cell.layer}/{cell.multiplier:+g}"


@pytest.mark.slow
def test_predict_gives_the_texts_of_answer_open(tmp_path, fitted):
    module, questions = fitted.module, behavior(7).open_questions
    own = make_trainer(tmp_path).predict(module, fitted.data)
    rows = {row.key: row for row in module.rows}
    assert len(rows) == len(module.rows) == sum(map(len, own)) == 7 * 2 * 2 * 3
    for (cell, _), row in rows.items():
        question = next(q for q in questions if q.id == row.question)
        with module.wrapper.finetune(cell.finetune):
            settings = sweep(module.vector, [cell.layer], [cell.multiplier])
            (text,) = answer_open(module.wrapper, module.tokenizer, [question], settings, max_new_tokens=3)
        assert row.evidence == {"asked": question.text, "text": text}
        assert row.score is None
    assert len({row.evidence["text"] for row in module.rows}) > 20, "or nothing was steered"
    assert own[0][0].keys() >= {"finetune", "layer", "multiplier", "question", "asked", "text"}


def test_the_rows_make_a_report(tmp_path, fitted):
    make_trainer(tmp_path).test(fitted.module, fitted.data, verbose=False)
    append_rows(tmp_path / "rows.jsonl", fitted.module.rows)
    assert len(write_report(tmp_path)) >= 2


# Processes.


@pytest.mark.slow
def test_two_processes_give_exactly_the_numbers_of_one(tmp_path, one):
    """Odd numbers of items, and fewer items than processes."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # a product shared among threads is summed in another order
    }
    job = [sys.executable, str(ROOT / "tests" / "lightning_job.py"), str(tmp_path), "2"]
    done = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compute" not in done.stderr, "torchmetrics warns of a process that had nothing to do"
    both = [torch.load(tmp_path / f"2-{rank}.pt") for rank in (0, 1)]
    for size in SIZES:
        for found in (process[size] for process in both):
            for what in ("vector", "n_pairs", "logged", "rows", "answers"):
                assert found[what] == one[size][what], f"{what} of {size}"
        shared = [json.dumps(answer) for process in both for answer in process[size]["own"]]
        assert sorted(shared) == sorted(json.dumps(answer) for answer in one[size]["own"]), "each answered once"
    assert both[0][7]["own"]
    assert both[1][7]["own"]
    assert one[7]["n_pairs"] == 7


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 7])
def test_shares_hold_every_item_once_in_the_same_batches(processes, size):
    data, batches, steps = make_data(size), [], set()
    for rank in range(processes):
        data.trainer = SimpleNamespace(world_size=processes, global_rank=rank)
        share = list(data.test_dataloader())
        steps.add(len(share))
        batches += [(batch.task, batch.places) for batch in share if batch.items]
    assert len(steps) == 1, "a process with fewer steps would leave the others waiting"
    data.trainer = None
    assert sorted(batches) == sorted((batch.task, batch.places) for batch in data.test_dataloader())
    items = sorted((task, place) for task, places in batches for place in places)
    assert items == [(task, place) for task in ("ab", "facts") for place in range(size)]


def test_sums_do_not_depend_on_their_order():
    torch.manual_seed(0)
    terms = torch.randn(500, 3, 8) * 10 ** torch.empty(500, 3, 8).uniform_(-6, 3)
    plain = [torch.stack([t.double() / 3 for t in some]).cumsum(0)[-1] for some in (terms, terms.flip(0))]
    assert not torch.equal(*plain), "or the order would not matter anyway"
    whole, first, second = (RunningMean(3, 8) for _ in range(3))
    for number, term in enumerate(terms):
        whole.update(term / 3, 3)
        (first if number % 3 else second).update(terms[-1 - number] / 3, 3)
    assert torch.equal(whole.total, second.total + first.total) or torch.equal(whole.total, first.total + second.total)
    assert whole.n == first.n + second.n == 1500
    torch.testing.assert_close(whole.compute()["mean"], (terms / 3).double().mean(0), rtol=1e-6, atol=1e-9)
    assert (on_grid(terms) - terms.double()).abs().max() <= 2**-33


def test_a_question_asked_twice_is_an_error():
    table = ChoiceTable(1, 2)
    table.update([0], torch.ones(1, 1, 2))
    table.update([0], torch.ones(1, 1, 2))
    with pytest.raises(RuntimeError, match="1 questions were asked twice"):
        table.compute()


# Lightning's own things: loggers, checkpoints, limits, refusals.


def test_norms_are_logged(fitted):
    text = "".join(path.read_text() for path in fitted.folder.rglob("metrics.csv"))
    assert "norm/layer_1" in text
    logged = fitted.trainer.callback_metrics["norm/layer_2"].item()
    assert logged == pytest.approx(fitted.module.vector.norms()[2], rel=1e-6)


def test_a_checkpoint_holds_the_vector_and_not_the_model(tmp_path, fitted):
    (path,) = fitted.folder.rglob("*.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert set(state) == {"directions", "_extra_state"}
    wrapper = SteeringWrapper(tiny_lora(tiny_model()))
    again = CAAModule.load_from_checkpoint(path, model=wrapper, tokenizer=tiny_tokenizer(), weights_only=True)
    assert again.vector.source == fitted.module.vector.source
    assert again.hparams == fitted.module.hparams
    assert all(torch.equal(again.vector.at(layer), fitted.module.vector.at(layer)) for layer in (1, 2))
    fresh = make_module()
    make_trainer(tmp_path).test(fresh, fitted.data, ckpt_path=path, verbose=False)
    assert torch.equal(fresh.vector.at(2), fitted.module.vector.at(2))


def test_fitting_again_starts_anew(tmp_path):
    module, data = make_module([1]), make_data(3)
    make_trainer(tmp_path).fit(module, data)
    first = module.vector.at(1)
    make_trainer(tmp_path, max_epochs=5).fit(module, data)
    assert module.vector.source.n_pairs == 3
    assert torch.equal(module.vector.at(1), first)


def test_nothing_of_the_model_is_touched(tmp_path):
    module = make_module([1], finetunes=[None])
    model = module.wrapper.model
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    model.train()
    trainer = make_trainer(tmp_path)
    trainer.fit(module, make_data(3))
    trainer.test(module, make_data(3), verbose=False)
    assert model.training
    assert all(torch.equal(p, before[n][0]) and p.requires_grad == before[n][1] for n, p in model.named_parameters())
    assert [name for name, _ in module.named_parameters()] == ["directions"]
    assert not any(block._forward_hooks for block in decoder_blocks(model))


def test_a_vector_from_elsewhere(tmp_path):
    vector = SteeringVector({1: torch.ones(32), 3: torch.ones(32)}, Provenance(behavior="x", history=("times 2",)))
    module = make_module([3], vector=vector)
    assert module.vector.layers == [3]
    assert module.vector.source == vector.source
    make_trainer(tmp_path, limit_test_batches=1).test(module, make_data(7), verbose=False)
    assert {row.cell.layer for row in module.rows} == {3}
    assert len(module.rows) == 1 * 2 * 3, "one batch of one of three questions"


def test_the_unsteered_model_alone(tmp_path, fitted):
    module = make_module(vector=fitted.module.vector, multipliers=[0])
    make_trainer(tmp_path).test(module, make_data(1), verbose=False)
    assert {(row.cell.layer, row.cell.multiplier) for row in module.rows} == {(1, 0), (2, 0)}


def test_no_vector_yet(tmp_path):
    with pytest.raises(RuntimeError, match=r"no vector yet: call trainer\.fit"):
        make_trainer(tmp_path).test(make_module(), make_data(1), verbose=False)


def test_what_would_give_other_numbers_is_refused(tmp_path, fitted):
    with pytest.raises(ValueError, match=r"precision='bf16-true' would round the vector.*dtype='bfloat16'"):
        make_trainer(tmp_path, precision="bf16-true").fit(make_module(), make_data(1))
    with pytest.raises(TypeError, match="reads a CAADataModule"):
        make_trainer(tmp_path).predict(fitted.module, DataLoader([1]))
    with pytest.raises(ValueError, match="there is no layer 4"):
        make_module([4])
    with pytest.raises(ValueError, match="at least one pair or question"):
        CAADataModule(behavior(1), batch_size=0)
    steered = make_module(vector=fitted.module.vector)
    steered.wrapper.steer(Intervention(fitted.module.vector, 1))
    with pytest.raises(ValueError, match=r"steered already.*unsteer\(\)"):
        make_trainer(tmp_path).test(steered, make_data(1), verbose=False)


def test_a_strategy_that_shards_is_refused():
    module = make_module()
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(), precision="32-true", datamodule=make_data(1))
    with pytest.raises(ValueError, match=r"shards what is trained.*strategy='ddp'"):
        module._check()


# Steering while a model learns.

STEERING = Intervention(SteeringVector({1: torch.linspace(-1, 1, 32)}), 1, 3.0, where=everywhere)


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Learner(lightning.LightningModule):
    """A tiny model that learns the ids that it is given, and remembers its losses."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, self.losses, self.evaluated = model, [], []

    def training_step(self, batch, batch_idx):
        loss = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(self.model(input_ids=batch, labels=batch).loss.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.0)


def loss_of(model, ids, *steering) -> float:
    wrapper = SteeringWrapper(model)
    with torch.no_grad(), wrapper.steer(*steering):
        return wrapper(ids, labels=ids).loss.item()


def learn(tmp_path, model, ids, *callbacks):
    learner = Learner(model)
    how = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False, "callbacks": list(callbacks)}
    trainer = make_trainer(tmp_path, **how)
    trainer.fit(learner, DataLoader(ids, batch_size=2), DataLoader(ids, batch_size=2))
    return learner


def test_lightning_steers_its_training_steps_and_nothing_else(tmp_path):
    model, ids = tiny_model(), random_ids(4, 9)
    steered, plain = loss_of(model, ids[:2], STEERING), loss_of(model, ids[:2])
    assert abs(steered - plain) > 1e-2
    learner = learn(tmp_path, model, ids, SteeringCallback(STEERING))
    assert learner.losses[0] == pytest.approx(steered, rel=1e-6)
    assert learner.evaluated[0] == pytest.approx(plain, rel=1e-6)
    assert not hooks(model)


def test_lightning_takes_the_steering_off_after_an_exception(tmp_path):
    model, ids = tiny_model(), random_ids(4, 9)
    during = []

    class Stumble(lightning.Callback):
        def on_before_optimizer_step(self, *args):
            during.append(hooks(model))
            raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"):
        learn(tmp_path, model, ids, SteeringCallback(STEERING), Stumble())
    assert during[0] > 0
    assert not hooks(model)


def sft(tmp_path, model, *callbacks, **how):
    """A TRL trainer on four examples: prompts of 3 to 5 tokens, answers of 4."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": ids.tolist(), "labels": [-100] * prompt + ids[prompt:].tolist()}
        for prompt in (3, 5, 4, 3)
        for ids in random_ids(1, prompt + 4, seed=prompt)
    ]
    how = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
    } | how
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **how,
    )
    data = Dataset.from_list(rows)
    tokenizer = tiny_tokenizer()
    return SFTTrainer(
        model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer, callbacks=list(callbacks)
    )


def gradients(trainer) -> dict[str, torch.Tensor]:
    """What the last step's backward pass left, before the optimizer clears it."""
    from transformers import TrainerCallback

    found: dict[str, torch.Tensor] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.add_callback(Keep())
    trainer.train()
    return found


def by_hand(trainer, steering: Intervention) -> dict[str, torch.Tensor]:
    """The gradients of the whole data at once, each row's prompt told to the wrapper in so many words."""
    wrapper = SteeringWrapper(trainer.model)
    trainer.model.zero_grad()
    batch = trainer.data_collator([{k: row[k] for k in ("input_ids", "labels")} for row in trainer.train_dataset])
    prompts = torch.tensor([row["labels"].count(-100) for row in trainer.train_dataset])
    assert prompts.tolist() == [3, 5, 4, 3]
    with wrapper.steer(steering):
        wrapper(
            batch["input_ids"], batch["attention_mask"], labels=batch["labels"], prompt_lengths=prompts
        ).loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("where", ["everywhere", "after_prompt"])
def test_trl_learns_through_the_edit(tmp_path, where, checkpointing):
    """With gradient accumulation, and with blocks that are computed again in the backward pass."""
    from dataclasses import replace

    from caa.steering.scopes import SCOPES

    steering = replace(STEERING, where=SCOPES[where])
    how = {
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "gradient_checkpointing": checkpointing,
        "max_grad_norm": 0,
    }
    with SteeringCallback(steering) as callback:
        trainer = sft(tmp_path, tiny_lora(tiny_model()), callback, **how)
        expected, unsteered = by_hand(trainer, steering), by_hand(trainer, replace(steering, multiplier=0.0))
        found = gradients(trainer)
        assert not hooks_of_ours(trainer.model)
    assert found.keys() == expected.keys()
    below = next(name for name in found if "layers.0." in name and found[name].abs().max() > 1e-4)
    assert not torch.allclose(expected[below], unsteered[below], rtol=1e-2)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


def hooks_of_ours(model) -> int:
    """Hooks on blocks; TRL and PEFT keep some of their own elsewhere."""
    return sum(len(block._forward_hooks) for block in decoder_blocks(model))


@pytest.mark.slow
def test_trl_evaluates_unsteered_and_is_left_unsteered(tmp_path):
    model = tiny_model()
    plain = sft(tmp_path, model).evaluate()["eval_loss"]
    callback = SteeringCallback(STEERING)
    trainer = sft(tmp_path, model, callback, eval_strategy="steps", eval_steps=1, logging_steps=1)
    trainer.train()
    log = trainer.state.log_history
    assert [entry["eval_loss"] for entry in log if "eval_loss" in entry] == pytest.approx([plain, plain], rel=1e-5)
    assert all(abs(entry["loss"] - plain) > 1e-2 for entry in log if "loss" in entry)
    assert not hooks_of_ours(model)


@pytest.mark.slow
def test_trl_is_left_unsteered_after_an_exception(tmp_path):
    model, during = tiny_model(), []

    def stumble(*args, **kwargs):
        during.append(hooks_of_ours(model))
        raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"), SteeringCallback(STEERING) as callback:
        trainer = sft(tmp_path, model, callback, gradient_checkpointing=False)  # it brings a hook of its own
        trainer.accelerator.backward = stumble
        trainer.train()
    assert during == [1]
    assert not hooks(model)


def test_prompts_end_where_labels_begin():
    labels = torch.tensor([[-100, -100, 7, -100, 8], [-100, -100, -100, 5, -100], [-100] * 5])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    assert prompt_lengths(labels, mask).tolist() == [2, 2, 3]
    assert prompt_lengths(labels).tolist() == [2, 3, 5]


def test_what_cannot_be_steered_is_refused():
    callback = SteeringCallback(Intervention(STEERING.vector, 1))
    with pytest.raises(ValueError, match="torch_compile=False"):
        callback.on_train_begin(SimpleNamespace(torch_compile=True), None, None)
    with pytest.raises(ValueError, match=r"packed texts share a row.*use everywhere"):
        callback._listen({"position_ids": torch.tensor([[0, 1, 0, 1]]), "labels": torch.ones(1, 4)})
    with pytest.raises(TypeError, match="Linear holds no causal language model"):
        callback.on_train_batch_start(None, torch.nn.Linear(1, 1), None, 0)
    with pytest.raises(ValueError, match="there is no layer 9"):
        SteeringCallback(Intervention(SteeringVector({9: torch.ones(32)}), 9))._steer(tiny_model())


# The page that tells how to use more than one machine.


@pytest.mark.slow
def test_the_two_node_command_of_the_page_runs(tmp_path):
    """Its script and its command, as two nodes of one process each, on this machine's CPU, with less to read."""
    page = (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8")
    script, command = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL).group(1) for kind in ("python", "bash"))
    script = script.replace("devices=8, num_nodes=2", 'devices=1, num_nodes=2, accelerator="cpu", logger=False')
    behavior, facts = (json.loads((BUILTIN_DATA / f"{name}.json").read_text()) for name in ("myopic_reward", "facts"))
    few = {"name": "myopic_reward", "pairs": behavior["pairs"][:7], "ab_questions": behavior["ab_questions"][:5]}
    for name, content in (("myopic_reward", few), ("facts", facts[:3])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert f'"{name}"' in script
        script = script.replace(f'"{name}"', f'"{name}.json"')
    (tmp_path / "sweep.py").write_text(script)
    launch = next(line for line in command.splitlines() if "torchrun" in line and "node-rank 0" in line)
    launch = launch.replace("--nproc-per-node 8", "--nproc-per-node 1").replace("FIRST_MACHINE", "127.0.0.1")
    launch = re.sub(r"\s+#.*", "", launch).replace("29500", "29517").split()[1:]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    second = ["1" if launch[n - 1] == "--node-rank" else word for n, word in enumerate(launch)]
    nodes = [
        subprocess.Popen([*torchrun, *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for words in (launch, second)
    ]
    try:
        errors = [node.communicate(timeout=540)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], errors[0][-3000:]
    assert SteeringVector.load(tmp_path / "runs" / "sweep" / "vector.safetensors").source.n_pairs == 7
    assert len(read_rows(tmp_path / "runs" / "sweep" / "rows.jsonl")) == (5 + 3) * 3 * 3
    assert (tmp_path / "runs" / "sweep" / "tables.md").exists()
