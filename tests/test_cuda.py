"""What the other files promise on a CPU, on one CUDA card; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from caa import Intervention, SteeringWrapper, extract, load_behavior, load_model
from caa.data.chat import ChatFormat
from caa.evals.tasks import answer_open, score_choices
from caa.steering.intervention import sweep
from caa.training.config import FinetuneConfig
from caa.training.sft import finetune

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module")
def behavior():
    return load_behavior("myopic_reward")


@pytest.fixture(scope="module")
def vector(behavior):
    model, tokenizer = load_model("tiny-chat", device="cpu")
    return extract(model, tokenizer, behavior.pairs[:32])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_read_on_the_card_is_the_vector_read_on_the_cpu(behavior, vector, dtype):
    model, tokenizer = load_model("tiny-chat", dtype=dtype, device="cuda")
    on_card = extract(model, tokenizer, behavior.pairs[:32])
    for layer in vector.layers:
        similarity = torch.cosine_similarity(on_card.at(layer), vector.at(layer), dim=0)
        assert similarity > (1 - 1e-6 if dtype == "float32" else 0.999)


@pytest.mark.parametrize("dtype", DTYPES)
def test_multiplier_0_is_the_plain_model_bit_for_bit(behavior, vector, dtype):
    model, tokenizer = load_model("tiny-chat", dtype=dtype, device="cuda")
    ids = torch.tensor([ChatFormat(tokenizer).encode(behavior.ab_questions[0].text)], device="cuda")
    with torch.no_grad():
        plain = model(ids).logits
        with SteeringWrapper(model).steer(Intervention(vector, 2, 0.0)):
            assert torch.equal(model(ids).logits, plain)
        with SteeringWrapper(model).steer(Intervention(vector, 2, 0.3)):
            assert not torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain), "a hook was left behind"


def test_all_settings_at_once_equal_one_at_a_time(behavior, vector):
    model, tokenizer = load_model("tiny-chat", dtype="float32", device="cuda")
    wrapper, questions = SteeringWrapper(model), behavior.ab_questions[:6]
    settings = sweep(vector, [1, 2, 4], [-0.3, 0.0, 0.3])
    together = score_choices(wrapper, tokenizer, questions, settings)
    alone = [
        score_choices(wrapper, tokenizer, [question], [setting])[0] for question in questions for setting in settings
    ]
    for many, one in zip(together, alone, strict=True):
        assert many.score == pytest.approx(one.score, abs=2e-5)
    assert max(score.score for score in alone) - min(score.score for score in alone) > 0.1


def test_the_card_writes_what_the_cpu_writes(behavior, vector):
    texts = []
    for device in ("cpu", "cuda"):
        model, tokenizer = load_model("tiny-chat", dtype="float32", device=device)
        settings = sweep(vector, [2], [-0.3, 0.3])
        questions = behavior.open_questions[:4]
        texts.append(answer_open(SteeringWrapper(model), tokenizer, questions, settings, max_new_tokens=16))
    assert texts[0] == texts[1]


def test_static_caches_are_steered(behavior, vector):
    model, tokenizer = load_model("tiny-chat", dtype="float32", device="cuda")
    wrapper = SteeringWrapper(model)
    ids = torch.tensor([ChatFormat(tokenizer).encode(behavior.open_questions[0].text)], device="cuda")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    plain = wrapper.generate(ids, **options)
    with wrapper.steer(Intervention(vector, 2, -0.6)):
        steered = wrapper.generate(ids, **options)
        static = wrapper.generate(ids, cache_implementation="static", **options)
    assert not torch.equal(steered, plain)
    assert torch.equal(static, steered)


def test_a_finetune_on_the_card_leaves_the_model_as_it_was(behavior, tmp_path):
    model, tokenizer = load_model("tiny-chat", dtype="bfloat16", device="cuda")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    config = FinetuneConfig(max_steps=20, batch_size=8, gradient_accumulation=1, learning_rate=1e-3)
    folder = finetune(model, tokenizer, behavior, "positive", tmp_path / "positive", config, progress=False)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    wrapper = SteeringWrapper(model)
    wrapper.load_adapter(folder, "positive")
    question = behavior.ab_questions[:1]
    with wrapper.finetune("positive"):
        taught = score_choices(wrapper, tokenizer, question, [()])[0].score
    with wrapper.finetune(None):
        base = score_choices(wrapper, tokenizer, question, [()])[0].score
    assert taught != base
