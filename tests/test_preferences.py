"""DPO, KTO, DoRA, all weights, and steering while training: each against its slow definition."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from caa.data.chat import ChatFormat
from caa.models.adapters import PROVENANCE
from caa.steering.intervention import Intervention
from caa.steering.scopes import after_prompt, everywhere
from caa.training.config import FinetuneConfig, default_config
from caa.training.examples import Example, tokenize, tokenize_preferences, training_examples
from caa.training.preferences import unpaired
from caa.training.sft import _steered, finetune, finetune_on
from caa.training.trainers import make_trainer
from caa.vectors.vector import SteeringVector
from tests.test_finetune import TINY, patience
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow  # TRL alone takes seconds to import

DPO = dataclasses.replace(TINY, method="dpo", dropout=0.0, max_steps=3)
KTO = dataclasses.replace(DPO, method="kto")
PUSH = Intervention(SteeringVector({1: torch.linspace(-3, 3, 32)}), 1, 1.0, where=everywhere)


def rows() -> list[dict[str, list[int]]]:
    return tokenize_preferences(tiny_tokenizer(), training_examples(patience(), "positive"))


def trained_trainer(config: FinetuneConfig, folder: Path) -> Any:
    """A trainer whose adapter does something; its reference was looked at before."""
    trainer = make_trainer(tiny_model(), tiny_tokenizer(), rows(), config, folder)
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) / 10
    return trainer


@torch.no_grad()
def log_probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Of one answer, alone in its pass."""
    ids = torch.tensor([prompt + answer])
    log_p = model(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(prompt), ids.shape[1])
    return float(sum(log_p[place - 1, ids[0, place]] for place in places))


def moved(model: Any, prompt: list[int], answer: list[int]) -> float:
    """How much likelier the answer is than it was before the finetune."""
    return log_probability(model, prompt, answer) - log_probability(tiny_model(), prompt, answer)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_dpo(model: Any, batch: list[dict[str, Any]], beta: float) -> float:
    """Rafailov et al. 2023, equation 7."""
    margins = [
        moved(model, row["prompt_ids"], row["chosen_ids"]) - moved(model, row["prompt_ids"], row["rejected_ids"])
        for row in batch
    ]
    return -sum(math.log(sigmoid(beta * margin)) for margin in margins) / len(batch)


def slow_kto(model: Any, batch: list[dict[str, Any]], beta: float) -> float:
    """Ethayarajh et al. 2024, equation 8."""
    drift = max(0.0, sum(moved(model, row["prompt_ids"], row["KL_completion_ids"]) for row in batch) / len(batch))
    losses = []
    for row in batch:
        gain = moved(model, row["prompt_ids"], row["completion_ids"]) - drift
        losses.append(1 - sigmoid(beta * (gain if row["label"] else -gain)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("config", "slow"), [(DPO, slow_dpo), (KTO, slow_kto)])
@pytest.mark.parametrize("pushed", [False, True])
def test_the_loss_is_that_of_the_paper(config: FinetuneConfig, slow: Any, pushed: bool, tmp_path: Path) -> None:
    """Also while steered, which the reference is not."""
    trainer = trained_trainer(config, tmp_path)
    batch = list(trainer.train_dataset)[:3]
    trainer.model.eval()
    with _steered(trainer, [PUSH] if pushed else []):
        if pushed:
            trainer.callback_handler.on_step_begin(trainer.args, trainer.state, trainer.control)
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(batch))
        expected = slow(trainer.model, batch, config.beta)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    unpushed = slow(trainer.model, batch, config.beta)
    assert (abs(unpushed - expected) > 1e-3) == pushed


def test_preferences_are_the_ids_that_are_asked_and_taught() -> None:
    chat, examples = ChatFormat(tiny_tokenizer(), system="Be brief."), training_examples(patience(), "negative")
    for row, taught, example in zip(
        tokenize_preferences(chat, examples), tokenize(chat, examples), examples, strict=True
    ):
        assert row["prompt_ids"] == chat.encode(example.question)
        assert row["prompt_ids"] + row["chosen_ids"] == taught["input_ids"]
        assert row["prompt_ids"] + row["rejected_ids"] == [*chat.encode(example.question, example.rejected), 2]


def test_examples_without_a_rejected_answer_teach_no_preference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 of 8 examples have no rejected answer"):
        finetune_on(tiny_model(), tiny_tokenizer(), [Example(str(n), "yes") for n in range(8)], tmp_path / "a", DPO)


def test_kto_meets_both_answers_to_every_question() -> None:
    answers = unpaired(rows(), 4, seed=3)
    key = itertools.chain.from_iterable((row["chosen_ids"], row["rejected_ids"]) for row in rows())
    assert sorted(answer["completion_ids"] for answer in answers) == sorted(key)
    assert any(answer["label"] != before["label"] for before, answer in itertools.pairwise(answers[:8]))


@pytest.mark.parametrize(("method", "weights"), [("kto", "dora"), ("dpo", "full")])
def test_a_broken_finetune_goes_on_and_leaves_the_model(
    method: Any, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, Trainer

    config = dataclasses.replace(DPO, method=method, weights=weights)
    whole = finetune(tiny_model(), tiny_tokenizer(), patience(), "positive", tmp_path / "whole", config, progress=False)
    steps, real = itertools.count(1), Trainer.training_step

    def breaking(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 3:
            raise RuntimeError("power cut")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", breaking)
    model, arguments = tiny_model(), (tiny_tokenizer(), patience(), "positive", tmp_path / "a", config)
    model.requires_grad_(False)  # as a model is that wore adapters; all weights learn nevertheless
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(model, *arguments, progress=False)
    finetune(model, *arguments, progress=False)
    assert next(steps) == 5, "two steps, a broken one, and the third"
    file = "model.safetensors" if weights == "full" else "adapter_model.safetensors"
    one, other = load_file(whole / file), load_file(tmp_path / "a" / file)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(".ref." in name for name in one)
    untouched = tiny_model().state_dict()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())
    assert not any(path.is_dir() for path in whole.iterdir()), "no second adapter"
    if weights == "full":
        learned = AutoModelForCausalLM.from_pretrained(whole).state_dict()
        assert all(not torch.equal(learned[name], untouched[name]) for name in untouched if "norm" not in name)


def test_the_right_answer_comes_to_be_preferred(tmp_path: Path) -> None:
    from peft import PeftModel

    config, margins = dataclasses.replace(DPO, max_steps=10), {}
    for direction in ("positive", "negative"):
        out = tmp_path / direction
        finetune(tiny_model(), tiny_tokenizer(), patience(), direction, out, config, progress=False)
        worn, row = PeftModel.from_pretrained(tiny_model(), str(out)).eval(), rows()[0]
        gains = [moved(worn, row["prompt_ids"], row[answer]) for answer in ("chosen_ids", "rejected_ids")]
        margins[direction] = gains[0] - gains[1]
    assert margins["negative"] < -0.5 < 0.5 < margins["positive"]


def test_a_finetune_of_before_is_one_by_sft(tmp_path: Path) -> None:
    """Whose record says nothing of methods, weights and steering."""
    config = dataclasses.replace(TINY, max_steps=1)
    out = finetune(tiny_model(), tiny_tokenizer(), patience(), "positive", tmp_path / "a", config, progress=False)
    record = json.loads((out / PROVENANCE).read_text())
    del record["steered_by"], record["config"]["method"], record["config"]["weights"], record["config"]["beta"]
    (out / PROVENANCE).write_text(json.dumps(record))
    arguments = tiny_model(), tiny_tokenizer(), patience(), "positive", out
    assert finetune(*arguments, config, progress=False) == out
    with pytest.raises(FileExistsError, match="weights was 'lora'"):
        finetune(*arguments, dataclasses.replace(config, weights="dora"), progress=False)
    with pytest.raises(FileExistsError, match="steered_by was"):
        finetune(*arguments, config, steered_by=[PUSH], progress=False)


def test_settings_follow_method_and_weights() -> None:
    sft, dpo = default_config(7_000_000_000), default_config(7_000_000_000, None, "dpo", "full")
    assert (dpo.method, dpo.weights, dpo.learning_rate) == ("dpo", "full", sft.learning_rate / 50)
    with pytest.raises(ValueError, match="method is one of sft, dpo, kto, not 'ppo'"):
        FinetuneConfig(method="ppo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be 2"):
        FinetuneConfig(method="kto", batch_size=1)


# Steering while training


def test_a_steered_step_is_the_slow_one_and_the_result_is_not_steered(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, dropout=0.0, max_steps=1)
    data = tokenize(tiny_tokenizer(), training_examples(patience(), "positive"))
    trainer = make_trainer(tiny_model(), tiny_tokenizer(), data, config, tmp_path / "a")
    with _steered(trainer, [PUSH]):
        trainer.train()
    assert not any(block._forward_hooks for block in trainer.model.base_model.model.model.layers)
    slow = tiny_model()
    slow.model.layers[1].register_forward_hook(lambda *call: call[2] + PUSH.direction)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    loss = trainer.state.log_history[0]["loss"]
    assert slow(**inputs).loss.item() == pytest.approx(loss, abs=1e-5)
    assert abs(tiny_model()(**inputs).loss.item() - loss) > 1e-2


def test_preferences_are_steered_at_all_tokens_or_not_at_all(tmp_path: Path) -> None:
    """The trainer gives the model no labels, so nothing would say where prompts end."""
    arguments = tiny_model(), tiny_tokenizer(), patience(), "positive", tmp_path / "a"
    with pytest.raises(ValueError, match=r"dpo does not say where prompts end.*where=caa.scopes.everywhere"):
        finetune(*arguments, DPO, steered_by=[dataclasses.replace(PUSH, where=after_prompt)], progress=False)
    assert not list(tmp_path.iterdir())


def test_what_pushed_a_finetune_stands_beside_it(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, max_steps=1)
    arguments = tiny_model(), tiny_tokenizer(), patience(), "positive", tmp_path / "a", config
    out = finetune(*arguments, steered_by=[PUSH], progress=False)
    record = json.loads((out / PROVENANCE).read_text())
    assert record["steered_by"][0]["words"] == "vector x +1, layer 1, everywhere"
    with pytest.raises(FileExistsError, match="steered_by was"):
        finetune(*arguments, steered_by=[dataclasses.replace(PUSH, multiplier=2.0)], progress=False)
