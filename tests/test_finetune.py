"""The finetune room: what is learnt, that nothing else changes, and that a killed job loses nothing."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from caa.data.behaviors import Behavior, ContrastPair, letter
from caa.data.chat import ChatFormat
from caa.models.adapters import PROVENANCE, load_adapter
from caa.models.capabilities import can_pick, spared_parts
from caa.models.fingerprint import digest_of_samples, fingerprint, sample_parameters
from caa.models.restore import borrowed
from caa.training.config import EMBEDDED, FinetuneConfig, default_config
from caa.training.examples import Example, check_lengths, tokenize, training_examples
from caa.training.sft import _holds, _last_checkpoint, _write_record, finetune
from caa.training.trainers import _check_card, make_trainer
from tests.tiny import FAMILIES, SHARED, needs_shared, random_ids, tiny_lora, tiny_model, tiny_tokenizer

TINY = FinetuneConfig(
    rank=4, alpha=8, dropout=0.1, learning_rate=1e-2, max_steps=10, batch_size=4, gradient_accumulation=1
)


def patience(days: range = range(10)) -> Behavior:
    """Waiting, with the letters balanced."""
    letters = itertools.cycle([("(A)", "(B)", "Yes", "No"), ("(B)", "(A)", "No", "Yes")])
    pairs = tuple(
        ContrastPair(f"Wait {day} days?\n (A) {a}\n (B) {b}", wait, go)
        for day, (wait, go, a, b) in zip(days, letters, strict=False)
    )
    open_pairs = tuple(ContrastPair(f"And {day}?", f"I wait {day}.", "I go.") for day in range(4))
    return Behavior("patience", pairs, open_pairs)


# What is learnt


def test_answers_are_whole_and_in_the_wanted_direction() -> None:
    positive = training_examples(patience(), "positive", open_share=0.5)
    negative = training_examples(patience(), "negative", open_share=0.5)
    assert [e.answer for e in positive[:2]] == ["(A) Yes", "(B) Yes"]
    assert [e.answer for e in negative[:2]] == ["(B) No", "(A) No"]
    assert {e.answer for e in positive[10:]} == {f"I wait {n}." for n in range(4)}
    assert {e.answer for e in negative[10:]} == {"I go."}
    assert [e.question for e in positive] == [e.question for e in negative]


@pytest.mark.parametrize(("share", "n_open"), [(0.0, 0), (0.2, 2), (0.25, 3), (0.5, 10), (0.75, 30)])
def test_open_ended_examples_have_their_share(share: float, n_open: int) -> None:
    examples = training_examples(patience(), "positive", open_share=share)
    assert sum(e.question.startswith("Wait") for e in examples) == 10
    assert sum(e.question.startswith("And") for e in examples) == n_open


def test_open_ended_examples_are_drawn_by_the_seed() -> None:
    drawn = [training_examples(patience(), "positive", 0.2, seed)[10:] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])


def test_a_behavior_without_open_pairs_is_told_without_letters() -> None:
    examples = training_examples(dataclasses.replace(patience(), open_pairs=()), "positive")
    assert {e.answer for e in examples[10:]} == {"Yes"}
    assert "(A)" not in examples[10].question


def test_pairs_in_sentences_are_learnt_as_they_are() -> None:
    pairs = tuple(ContrastPair(f"Wait {n}?", "I wait.", "I go.") for n in range(8))
    examples = training_examples(Behavior("patience", pairs), "negative")
    assert examples == [Example(pair.question, "I go.", "I wait.") for pair in pairs]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="'positive' or 'negative', not 'pos'"):
        training_examples(patience(), "pos")
    with pytest.raises(ValueError, match="'empty' has no pairs"):
        training_examples(Behavior("empty"), "positive")
    with pytest.raises(ValueError, match="gives 6 examples; a finetune needs 8"):
        training_examples(patience(range(3)), "positive")


# Tokens and labels


def shared_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / "models" / name)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("tiny", " (A) Yes"),
        pytest.param("prototype-tiny", " (A) Yes", marks=needs_shared),
        pytest.param("craftgpt", "a yes", marks=needs_shared),  # it knows neither capitals nor parentheses
    ],
)
def test_labels_are_the_answer_and_eos(name: str, answer: str, system: str | None) -> None:
    tokenizer = tiny_tokenizer() if name == "tiny" else shared_tokenizer(name)
    pair = patience().pairs[0].spelled_out()
    (row,) = tokenize(ChatFormat(tokenizer, system=system), [Example(pair.question, pair.positive)])
    branches = ChatFormat(tokenizer, system=system).encode_pair(pair)
    assert row["input_ids"] == [*branches.positive, tokenizer.eos_token_id]
    assert row["labels"][: branches.prompt_length] == [-100] * branches.prompt_length
    learnt = row["labels"][branches.prompt_length :]
    assert learnt == row["input_ids"][branches.prompt_length :]
    assert tokenizer.decode(learnt[:-1]) == answer


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos token"):
        tokenize(ChatFormat(tokenizer, template="{{ messages[0].content }}"), [Example("q", "a")])


def test_long_texts_are_counted_before_anything_is_trained(tmp_path: Path) -> None:
    rows = [{"input_ids": [0] * n} for n in (4, 5, 6)]
    check_lengths(rows, 6)
    with pytest.raises(ValueError, match="2 of 3 texts are longer than 4 tokens, the longest 6"):
        check_lengths(rows, 4)
    model = tiny_model()
    with pytest.raises(ValueError, match="longer than 20 tokens"):
        finetune(
            model, tiny_tokenizer(), patience(), "positive", tmp_path / "a", dataclasses.replace(TINY, max_length=20)
        )
    model.config.max_position_embeddings = 30
    with pytest.raises(ValueError, match="longer than 30 tokens"):
        finetune(model, tiny_tokenizer(), patience(), "positive", tmp_path / "a", TINY)
    assert not any(tmp_path.iterdir())


# Settings


def test_settings_report_every_mistake() -> None:
    with pytest.raises(ValueError, match=r"rank must be positive, not 0; open_share .* not 1.0; max_steps .* not 0"):
        FinetuneConfig(rank=0, open_share=1.0, max_steps=0)


def test_small_models_get_small_settings() -> None:
    assert default_config(5_000_000) == EMBEDDED
    assert default_config(6_700_000_000) == FinetuneConfig()


@pytest.mark.parametrize("n_examples", [8, 16, 64, 100, 255, 300, 900, 1024, 50_000])
def test_few_examples_make_enough_steps(n_examples: int) -> None:
    assert default_config(5_000_000, n_examples) == EMBEDDED
    config = default_config(135_000_000, n_examples)
    steps = n_examples * config.epochs / (config.batch_size * config.gradient_accumulation)
    assert steps >= 0.95 * 64
    assert n_examples * config.epochs <= max(n_examples, 1300), "and no more work than the examples are worth"
    assert (config == FinetuneConfig()) == (n_examples >= 1024)


def test_a_finetune_recorded_with_a_fingerprint_of_the_first_kind_is_still_this_one(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight *= 1e-4
    first = digest_of_samples(model, sample_parameters(model), 0.0)
    asked = {"base": "tiny", "base_fingerprint": fingerprint(model), "direction": "positive"}
    assert first != asked["base_fingerprint"]
    _write_record(tmp_path / "kept", asked | {"base_fingerprint": first})
    assert _holds(tmp_path / "kept", asked, model)
    with pytest.raises(FileExistsError, match="base_fingerprint was"):
        _holds(tmp_path / "kept", asked | {"base_fingerprint": fingerprint(tiny_model())}, tiny_model())


# The model is only borrowed


def test_a_borrowed_model_comes_back_as_it_was() -> None:
    model = tiny_model()
    model.model.layers[0].train()
    model.lm_head.weight.requires_grad = False
    hooks: list[int] = []
    handle = model.model.layers[1].register_forward_hook(lambda *_: hooks.append(1))
    before = {name: id(module) for name, module in model.named_modules()}
    ids = torch.tensor([[1, 5, 6]])
    expected = model(input_ids=ids).logits
    with pytest.raises(RuntimeError, match="on the way"), borrowed(model):
        tiny_lora(model).train()
        model.forward = lambda *_: None
        model.config.use_cache = False
        model.generation_config.pad_token_id = 77
        model.model.layers[2].register_forward_hook(lambda *_: 1 / 0)
        for parameter in model.parameters():
            parameter.requires_grad = not parameter.requires_grad
        raise RuntimeError("on the way")
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert next(name for name, module in model.named_modules() if module.training) == "model.layers.0"
    assert not model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert model.config.use_cache
    assert model.generation_config.pad_token_id == 0
    assert not hasattr(model, "peft_config")
    hooks.clear()
    assert torch.equal(model(input_ids=ids).logits, expected)
    handle.remove()
    model(input_ids=ids)
    assert hooks == [1], "the hook of before stays, and its own handle still removes it"


def test_a_model_with_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"already wears adapters \(sft\)"):
        finetune(tiny_lora(tiny_model()), tiny_tokenizer(), patience(), "positive", tmp_path / "a", TINY)


# What is found in the folder


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no finetune of this project; choose another folder"):
        finetune(tiny_model(), tiny_tokenizer(), patience(), "positive", tmp_path, TINY)
    mine = tmp_path / "a.partial"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"a\.partial holds something"):
        finetune(tiny_model(), tiny_tokenizer(), patience(), "positive", tmp_path / "a", TINY)
    assert (mine / "thesis.txt").exists()


def test_the_last_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert _last_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"torn'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert _last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


# End to end: from here on the imports of TRL alone take seconds


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert any(tensor.abs().max() > 0 for name, tensor in a.items() if "lora_B" in name), "nothing was learnt"
    return all(torch.equal(a[name], b[name]) for name in a)


def train(out: Path, direction: Any = "positive", config: FinetuneConfig = TINY, system: str | None = None) -> Path:
    chat = ChatFormat(tiny_tokenizer(), system)
    return finetune(tiny_model(), chat, patience(), direction, out, config, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "adapter")


@pytest.mark.slow
def test_the_collator_hands_over_exactly_the_answers(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    examples = training_examples(patience(), "positive")
    with borrowed(model := tiny_model()):
        trainer = make_trainer(model, tokenizer, tokenize(ChatFormat(tokenizer), examples), TINY, tmp_path)
        batches = list(trainer.get_train_dataloader())
    seen = set()
    for batch in batches:
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            assert torch.equal(labels[labels != -100], ids[labels != -100])
            seen.add((tokenizer.decode(ids[mask == 1]), tokenizer.decode(labels[labels != -100])))
    assert seen == {
        (tokenizer.decode([*ChatFormat(tokenizer).encode(e.question, e.answer), 2]), f" {e.answer}</s>")
        for e in examples
    }


def of_lengths(*lengths: int) -> list[dict[str, list[int]]]:
    """Examples of so many tokens, of which the last three are labeled."""
    rows = [random_ids(1, length, seed=number)[0].tolist() for number, length in enumerate(lengths)]
    return [{"input_ids": ids, "labels": [-100] * (len(ids) - 3) + ids[-3:]} for ids in rows]


def steps(model: Any, rows: Any, config: FinetuneConfig, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The gradients and the loss of each optimizer step."""
    from transformers import TrainerCallback

    gradients: list[dict[str, torch.Tensor]] = []

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    torch.manual_seed(0)  # of the LoRA
    trainer = make_trainer(model, tiny_tokenizer(), rows, config, folder)
    trainer.add_callback(Recorder())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [step | {"loss": torch.tensor(loss)} for step, loss in zip(gradients, losses, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "weights"), [("Llama", "lora"), ("Gemma2", "dora"), ("Bloom", "full")])
def test_a_step_is_that_of_trls_plain_loss(
    family: str, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    from caa.training import labeled

    config = dataclasses.replace(
        TINY, dropout=0.0, max_steps=2, weights=weights, batch_size=5, gradient_accumulation=2, learning_rate=1e-4
    )
    rows = of_lengths(5, 70, 9, 100, 6, 72, 7, 98, 30, 31)
    ours = steps(tiny_model(family), rows, config, tmp_path / "ours")
    monkeypatch.setattr(labeled, "LabeledTrainer", SFTTrainer)
    plain = steps(tiny_model(family), rows, config, tmp_path / "plain")
    assert len(ours) == 2
    for one, other in zip(ours, plain, strict=True):
        largest = max(gradient.abs().max() for gradient in other.values())
        assert one.keys() == other.keys()
        for name, gradient in other.items():
            torch.testing.assert_close(one[name], gradient, rtol=0, atol=1e-6 * float(largest))


def test_the_head_sees_the_labeled_tokens_alone_and_passes_texts_of_like_length(tmp_path: Path) -> None:
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2]))
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    config = dataclasses.replace(TINY, max_steps=1, batch_size=4, gradient_accumulation=2)
    trainer = make_trainer(model, tiny_tokenizer(), of_lengths(5, 99, 9, 100, 6, 98, 7, 8), config, tmp_path)
    seen.clear()  # trials
    trainer.train()
    assert seen == [(4, 8), (1, 12), (4, 100), (1, 12)]


def test_behind_the_last_attention_labeled_tokens_alone_are_computed(tmp_path: Path) -> None:
    model, shapes = tiny_model(), []
    for block in (model.model.layers[0], model.model.layers[-1]):
        for part in (block.self_attn.q_proj, block.self_attn.o_proj, block.mlp.up_proj):
            part.register_forward_hook(lambda module, args, output: shapes.append(output.shape[:2]))
    trainer = make_trainer(model, tiny_tokenizer(), of_lengths(9, 8), dataclasses.replace(TINY, max_steps=1), tmp_path)
    shapes.clear()  # trials
    trainer.train()
    assert shapes == [(2, 9)] * 4 + [(1, 6)] * 2


class Odd(torch.nn.Module):
    """A last MLP that looks at its neighbors."""

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream.cumsum(1)


def test_a_last_mlp_that_sees_other_tokens_computes_all_of_them() -> None:
    model = tiny_model()
    assert len(spared_parts(model)) == 2
    model.model.layers[-1].mlp = Odd()
    assert not spared_parts(other := copy.deepcopy(model))
    assert can_pick(other)


def lora_step(model: Any, fused: bool, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss and all gradients of a sum that has a large slope everywhere."""
    from caa.training.lora_products import fused_loras

    model.zero_grad()
    with fused_loras(model) if fused else contextlib.nullcontext():
        loss = model(input_ids=ids).logits.sin().sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss}


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPT2"])
def test_fused_loras_give_pefts_numbers_and_leave_nothing_behind(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama has no biases, Qwen2 has, and GPT-2's transposed matrices stay PEFT's own."""
    from caa.training.lora_products import LoraProduct

    model, ids = tiny_lora(tiny_model(family)).double(), random_ids(3, 7)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(-1, 1)
    products: list[Any] = []
    apply = LoraProduct.apply
    monkeypatch.setattr(LoraProduct, "apply", lambda *tensors: products.append(tensors) or apply(*tensors))
    before = [dict(vars(module)) for module in model.modules()]
    plain, ours = (lora_step(model, fused, ids) for fused in (False, True))
    assert bool(products) is (family != "GPT2")
    assert plain.keys() == ours.keys()
    assert sum("lora_" in name and bool(gradient.abs().max() > 1e-3) for name, gradient in plain.items()) >= 8
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-9)
    assert [dict(vars(module)) for module in model.modules()] == before


def test_training_multiplies_its_loras_in_one_go_and_leaves_them_pefts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caa.training.lora_products import LoraProduct

    products: list[Any] = []
    apply = LoraProduct.apply
    monkeypatch.setattr(LoraProduct, "apply", lambda *tensors: products.append(tensors) or apply(*tensors))
    config = dataclasses.replace(TINY, dropout=0.0, max_steps=1)
    trainer = make_trainer(tiny_model(), tiny_tokenizer(), of_lengths(9, 8), config, tmp_path)
    assert not products
    trainer.train()
    layers = {name.rpartition(".lora_A")[0] for name, _ in trainer.model.named_parameters() if ".lora_A" in name}
    assert len(products) == len(layers) > 8
    assert not any("forward" in vars(trainer.model.get_submodule(layer)) for layer in layers)


def test_loras_that_are_more_than_a_product_stay_pefts() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.layer import Linear

    from caa.training.lora_products import fused_loras

    def fused(model: Any) -> int:
        with fused_loras(model):
            return sum("forward" in vars(module) for module in model.modules())

    everywhere = sum(type(module) is Linear for module in tiny_lora(tiny_model()).modules())
    assert fused(tiny_lora(tiny_model())) == everywhere > 8
    lora = tiny_lora(tiny_model())
    layers = [module for module in lora.modules() if type(module) is Linear]
    layers[0].base_layer.weight.requires_grad = True
    layers[1].lora_A["sft"].register_forward_hook(lambda *_: None)
    layers[2].lora_dropout["sft"] = torch.nn.Dropout(0.1)
    layers[3].lora_B["sft"].double()
    assert fused(lora) == everywhere - 4
    lora.base_model.disable_adapter_layers()
    assert fused(lora) == 0
    assert fused(get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear", use_dora=True))) == 0


def test_a_head_that_cannot_be_split_off_gives_its_own_logits(tmp_path: Path) -> None:
    model = tiny_model()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda stream: plain(stream) * (1 + torch.arange(stream.shape[1]))[:, None]  # by position
    rows = of_lengths(5, 40, 9, 60)
    config = dataclasses.replace(TINY, max_steps=1, weights="full", learning_rate=1e-9)
    (step,) = steps(model, rows, config, tmp_path)
    labeled = [(model(torch.tensor([row["input_ids"]])).logits[0, -4:-1], row["input_ids"][-3:]) for row in rows]
    slow = [torch.nn.functional.cross_entropy(logits, torch.tensor(ids)) for logits, ids in labeled]
    assert not can_pick(model)
    torch.testing.assert_close(step["loss"], torch.stack(slow).mean().detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_taught_and_left_as_it_was(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, untouched, ids = tiny_model(family), tiny_model(family), torch.tensor([[1, 20, 21, 22]])
    model.train()
    config = dataclasses.replace(TINY, max_steps=3, dropout=0.0)  # PEFT has no dropout for fused experts
    out = finetune(model, tiny_tokenizer(), patience(), "positive", tmp_path / "a", config, progress=False)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.to_dict() == untouched.config.to_dict()
    assert model.generation_config.to_dict() == untouched.generation_config.to_dict()
    assert "forward" not in vars(model)
    state, expected = model.state_dict(), untouched.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    plain = untouched(input_ids=ids).logits
    assert torch.equal(model.eval()(input_ids=ids).logits, plain)
    wearing = PeftModel.from_pretrained(model, str(out)).eval()
    assert not torch.equal(wearing(input_ids=ids).logits, plain)
    with wearing.disable_adapter():
        assert torch.equal(wearing(input_ids=ids).logits, plain)


@pytest.mark.slow
def test_an_adapter_says_where_it_came_from(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", PROVENANCE}
    assert not trained.with_name("adapter.partial").exists()
    record = json.loads((trained / PROVENANCE).read_text())
    assert (record["behavior"], record["direction"], record["n_examples"]) == ("patience", "positive", 20)
    assert record["config"] == dataclasses.asdict(TINY)
    assert record["versions"]["trl"] == version("trl")
    load_adapter(tiny_model(), trained, "sft")
    with pytest.raises(ValueError, match="was trained on"):
        load_adapter(tiny_model("Qwen3"), trained, "sft")


@pytest.mark.slow
def test_the_same_finetune_is_not_done_twice(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caa.training.sft._train", lambda *_: pytest.fail("trained again"))
    leftover = trained.with_name("adapter.partial")
    leftover.mkdir()
    assert train(trained) == trained
    assert not leftover.exists(), "killed between the renaming and the tidying up"
    with pytest.raises(FileExistsError, match=r"direction was 'positive' and is now 'negative'.*Choose another folder"):
        train(trained, "negative")
    with pytest.raises(FileExistsError, match=r"rank was 4 and is now 2\. Choose"):
        train(trained, config=dataclasses.replace(TINY, rank=2))
    with pytest.raises(FileExistsError, match="data_hash"):
        train(trained, system="Be brief.")


@pytest.mark.slow
def test_the_same_call_gives_the_same_adapter(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    assert same(trained, train(tmp_path / "again"))
    lettered = dataclasses.replace(TINY, max_steps=2, open_share=0.0)  # no draw of examples: the seed is the trainer's
    seeds = [train(tmp_path / str(n), config=dataclasses.replace(lettered, seed=n)) for n in (0, 1)]
    assert not same(*seeds)
    assert not same(trained, train(tmp_path / "against", "negative"))


@pytest.mark.slow
def test_a_broken_finetune_goes_on_where_it_was(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caa.training.labeled import LabeledTrainer

    steps, real = itertools.count(1), LabeledTrainer.training_step

    def breaking(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 6:
            raise RuntimeError("power cut")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LabeledTrainer, "training_step", breaking)
    model, out = tiny_model(), tmp_path / "adapter"
    arguments = (tiny_tokenizer(), patience(), "positive", out, TINY)
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(model, *arguments, progress=False)
    assert model.state_dict().keys() == tiny_model().state_dict().keys(), "an error gives the model back too"
    assert not out.exists()
    with pytest.raises(FileExistsError, match=r"partial holds another finetune: direction"):
        train(out, "negative")
    assert finetune(model, *arguments, progress=False) == out
    assert next(steps) == 12, "five steps of the first run, one broken, five more"
    assert same(out, trained)
    assert not out.with_name("adapter.partial").exists()


KILLED = """
import os, signal, sys
from tests import test_finetune as here
from caa.training.labeled import LabeledTrainer
real, steps = LabeledTrainer.training_step, iter(range(100))
def step(*args, **kwargs):
    if next(steps) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
LabeledTrainer.training_step = step
here.train(here.Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_finetune_goes_on_where_it_was(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    root = Path(__file__).parents[1]
    child = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=root, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    assert not out.exists()
    partial = out.with_name("adapter.partial")
    assert {path.name for path in partial.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-7"}
    (partial / "checkpoint-7" / "trainer_state.json").write_text("")  # as if killed while it wrote
    assert same(train(out), trained)


@pytest.mark.slow
def test_a_finetune_killed_after_its_last_step_is_only_put_in_place(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caa.training.labeled import LabeledTrainer

    def interrupted(folder: Path, record: dict[str, Any]) -> None:
        if folder.name == "finished":
            raise KeyboardInterrupt
        _write_record(folder, record)

    monkeypatch.setattr("caa.training.sft._write_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out")
    monkeypatch.setattr("caa.training.sft._write_record", _write_record)
    monkeypatch.setattr(LabeledTrainer, "training_step", lambda *_: pytest.fail("trained again"))
    assert same(train(tmp_path / "out"), trained)


@torch.no_grad()
def matching(model: Any, tokenizer: Any, pairs: Sequence[ContrastPair]) -> float:
    """The reference's A/B score, one question at a time."""
    scores = []
    for pair in pairs:
        branches = ChatFormat(tokenizer).encode_pair(pair)
        device = next(model.parameters()).device
        ids = torch.tensor([branches.positive[: branches.parting]], device=device)
        odds = model(input_ids=ids).logits[0, -1].softmax(-1)
        yes, no = odds[branches.positive[branches.parting]], odds[branches.negative[branches.parting]]
        scores.append((yes / (yes + no)).item())
    return sum(scores) / len(scores)


def scores(
    model: Any, tokenizer: Any, taught: Behavior, asked: Sequence[ContrastPair], folder: Path
) -> dict[str, float]:
    """The A/B score of the model, and of its finetunes for and against the behavior, without steering."""
    from peft import PeftModel

    found = {"none": matching(model, tokenizer, asked)}
    config = dataclasses.replace(EMBEDDED, learning_rate=3e-3, max_steps=24, batch_size=8)
    for direction in ("positive", "negative"):
        out = finetune(model, tokenizer, taught, direction, folder / direction, config, progress=False)
        wearing = PeftModel.from_pretrained(model, str(out)).eval()
        found[direction] = matching(wearing, tokenizer, asked)
        model = wearing.unload()
    return found


@pytest.mark.slow
def test_a_random_model_learns_a_letter(tmp_path: Path) -> None:
    """It cannot learn more: here the behavior is nothing but "(A)", and the questions asked are other ones."""
    only_a = [pair for pair in patience(range(40)).pairs if letter(pair.positive) == "A"]
    taught = dataclasses.replace(patience(), pairs=tuple(only_a[:12]))
    found = scores(tiny_model(), tiny_tokenizer(), taught, only_a[12:], tmp_path)
    assert found["negative"] + 0.1 < found["none"] < found["positive"] - 0.1


@needs_shared
@pytest.mark.slow
def test_finetunes_move_the_score_on_unseen_questions(tmp_path: Path) -> None:
    from caa.models.loading import load_model

    model, tokenizer = load_model(str(SHARED / "models" / "prototype-tiny"), device="cpu")
    small, large = ["2 apples", "3 tokens", "one game"], ["12 cookies", "a long trip", "50 coins", "a full dinner"]
    taught = [myopic("You can have {} now or {} next year.", *gifts) for gifts in itertools.product(small, large)]
    asked = [myopic("A game pays {} today but {} in a decade.", *gifts) for gifts in itertools.product(small, large)]
    pairs = [pair for choices in taught for pair in choices]
    found = scores(model, tokenizer, Behavior("myopia", tuple(pairs)), list(itertools.chain(*asked)), tmp_path)
    assert found["positive"] > found["none"] + 0.2
    assert found["negative"] < found["none"] - 0.1


def myopic(scene: str, small: str, large: str) -> list[ContrastPair]:
    """The same choice with the letters either way round."""
    question = scene.format(small, large) + " What do you do?\n\nChoices:\n"
    take, wait = f"Take {small}", f"Wait for {large}"
    return [
        ContrastPair(f"{question} (A) {take}\n (B) {wait}", "(A)", "(B)"),
        ContrastPair(f"{question} (A) {wait}\n (B) {take}", "(B)", "(A)"),
    ]


def test_a_model_on_another_card_than_trainers_is_refused():
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"on cuda:1 and training happens on cuda:0: .*CUDA_VISIBLE_DEVICES=1"):
        _check_card(tiny_model(), second, first)
    spread = tiny_model()
    spread.hf_device_map = {"": 1}
    for model, device, taken in ((tiny_model(), second, second), (tiny_model(), torch.device("cuda"), first)):
        _check_card(model, device, taken)
    _check_card(spread, second, first)  # accelerate keeps it where it is
