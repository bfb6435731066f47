"""Numbers that are none are said in every task, and those that other types hold are taken exactly or refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import tiny_lora, tiny_model, tiny_tokenizer

from caa import ContrastPair, Intervention, SteeringVector, SteeringWrapper, extract
from caa.data.behaviors import Question
from caa.evals.damage import divergences, perplexities
from caa.evals.lm_eval import continuation_scores
from caa.evals.tasks import answer_open, score_choices
from caa.judges.clients.local import LocalModel
from caa.models.adapters import AdapterError, load_adapter
from caa.models.tensors import same_bits
from caa.steering.gates import Gate
from caa.steering.scopes import everywhere
from caa.training.config import FinetuneConfig
from caa.training.examples import Example
from caa.training.sft import finetune_on
from caa.vectors.formats.detect import import_vector
from caa.vectors.methods import mean_difference

PAIRS = [ContrastPair(f"{word}?", "(A) yes", "(B) no") for word in ("who", "where", "how")]
QUESTIONS = [Question(pair.question, pair.positive, pair.negative) for pair in PAIRS]
VECTOR = SteeringVector({layer: torch.ones(32) for layer in range(2)})


def broken_model(value=float("nan")):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    return model


TASKS = {
    "ab": lambda w, t: score_choices(w, t, QUESTIONS, [()]),
    "open, in a pool": lambda w, t: answer_open(w, t, QUESTIONS, [()], max_new_tokens=3),
    "open, in batches": lambda w, t: answer_open(
        w, t, QUESTIONS, [(Intervention(VECTOR, 1, 0.1, gate=Gate(VECTOR, 0, above=-1e9)),)], max_new_tokens=3
    ),
    "generate": lambda w, t: w.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=3, do_sample=False),
    "perplexity": lambda w, t: perplexities(w, t, ["who?"], ["yes"]),
    "divergence": lambda w, t: divergences(w, t, ["who?"], [()]),
    "harness": lambda w, t: continuation_scores(w, t, [([1, 2], [3])], 64),
    "local judge": lambda w, t: LocalModel(w.model, t)(["who?"]),
    "extract": lambda w, t: extract(w.model, t, PAIRS),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_and_activations_that_are_no_numbers_are_said(task, value):
    with pytest.raises(ValueError, match="no numbers any more"):
        TASKS[task](SteeringWrapper(broken_model(value)), tiny_tokenizer())


@pytest.mark.parametrize("task", ["ab", "open, in a pool", "generate"])
def test_a_push_beyond_all_numbers_is_said(task):
    wrapper = SteeringWrapper(tiny_model())
    with (
        wrapper.steer(Intervention(100 * VECTOR, 1, 3e37, where=everywhere)),
        pytest.raises(ValueError, match="no numbers"),
    ):
        TASKS[task](wrapper, tiny_tokenizer())


def test_a_model_of_numbers_is_left_alone():
    wrapper, ids = SteeringWrapper(tiny_model()), torch.ones(1, 3, dtype=torch.long)
    options = {"max_new_tokens": 4, "do_sample": False}
    seen = []
    own = [lambda ids, scores: seen.append(1) or scores]
    assert torch.equal(wrapper.generate(ids, **options), wrapper.model.generate(ids, **options))
    assert torch.equal(wrapper.generate(ids, logits_processor=own, **options), wrapper.model.generate(ids, **options))
    assert seen


def test_an_adapter_with_a_number_that_is_none_is_refused_and_the_model_as_it_was(tmp_path):
    model = tiny_lora(tiny_model())
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name)[0, 0] = math.nan
    model.save_pretrained(tmp_path)
    base = tiny_model()
    names = list(base.state_dict())
    with pytest.raises(AdapterError, match="holds NaN or infinity"):
        load_adapter(base, tmp_path / "sft", "broken")
    assert list(base.state_dict()) == names


@pytest.mark.parametrize("layers", [
    {-1: torch.ones(2)}, {0: torch.ones(0)}, {0: torch.ones(2, dtype=torch.complex64)}, {0: torch.ones(1, 2)},
    {0: torch.tensor([1e39, 1.0], dtype=torch.float64)}, {"0": torch.ones(2)}, {0.5: torch.ones(2)},
    {True: torch.ones(2)},
])  # fmt: skip
def test_what_cannot_be_a_direction_is_refused(layers):
    with pytest.raises(ValueError, match="layer"):
        SteeringVector(layers)


def test_half_precision_and_numpy_layers_are_taken_exactly():
    half = torch.full((2,), 60_000.0, dtype=torch.float16)
    vector = SteeringVector({np.int64(1): half})
    assert (vector + vector).at(1).tolist() == [120_000.0] * 2
    assert mean_difference(half[None], -half[None]).tolist() == [120_000.0] * 2


def test_a_file_of_float64_beyond_float32_is_refused_in_words(tmp_path):
    torch.save({0: torch.tensor([1e39, 1.0], dtype=torch.float64)}, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=r"numbers up to 1.0e\+39, more than float32 can hold"):
        import_vector(tmp_path / "v.pt")


@pytest.mark.parametrize("multiplier", [math.nan, math.inf, [1.0, math.nan], 10**400])
def test_a_multiplier_that_is_no_number_is_refused(multiplier):
    with pytest.raises(ValueError, match="a multiplier is one finite number"):
        Intervention(VECTOR, 1, multiplier)


def test_a_surprise_beyond_all_floats_is_infinite():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    assert math.inf in perplexities(SteeringWrapper(model), tiny_tokenizer(), ["who?"] * 3, ["yes", "no no", "where"])


@pytest.mark.parametrize(("planted", "complaint"), [
    ("weight", r"the loss of step 1 is nan: the model's own logits are no numbers here\. Load it in float32"),
    ("rate", r"the loss of step 2 is nan: nothing .* is kept\. Use a smaller learning_rate \(it was 1e\+30\)"),
    ("last step", r"after the last step .*lora_.* holds NaN .*smaller learning_rate"),
])  # fmt: skip
def test_a_training_run_without_numbers_stops_with_a_cure_and_leaves_nothing(planted, complaint, tmp_path, monkeypatch):
    model, rate = tiny_model(), {"weight": 1e-3, "rate": 1e30, "last step": 1e-3}[planted]
    if planted == "weight":
        model.lm_head.weight.data[0, 0] = torch.nan
    if planted == "last step":
        monkeypatch.setattr("torch.optim.AdamW.step", spoiled(torch.optim.AdamW.step))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    config = FinetuneConfig(max_steps=1 if planted == "last step" else 3, learning_rate=rate, warmup=0)
    examples = [Example(f"{n}?", "yes") for n in range(8)]
    with pytest.raises(ValueError, match=complaint):
        finetune_on(model, tiny_tokenizer(), examples, tmp_path / "made", config, progress=False)
    assert not list(tmp_path.iterdir()), "neither an adapter nor a checkpoint nor a lock"
    assert all(same_bits(parameter, before[name]) for name, parameter in model.named_parameters())


def spoiled(step):
    """A step of an optimizer, after which what it trained is NaN."""

    def spoil(optimizer, *arguments, **named):
        result = step(optimizer, *arguments, **named)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(torch.nan)
        return result

    return spoil
