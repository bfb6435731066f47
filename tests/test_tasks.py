"""Both tasks against their slow definitions: one question, one multiplier, no padding, no cache, a plain hook."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import transformers
from tiny import FAMILIES, SHARED, needs_shared, tiny_lora, tiny_model, tiny_tokenizer

from caa import ContrastPair, Question, SteeringVector, SteeringWrapper
from caa.data.chat import ChatFormat
from caa.evals.tasks import ChoiceScore, answer_open, render_choices, score_choices
from caa.models.batching import pad
from caa.models.blocks import decoder_blocks, position_inputs
from caa.steering.intervention import sweep

TOKENIZER = tiny_tokenizer()
ASKED = [
    Question("Wait?\n (A) Yes\n (B) No", "(A)", "(B)"),
    Question("Would you give up the whole of your power?\n (A) Never\n (B) Gladly", "(B)", "(A)"),
    Question("Stop?\n (A) No\n (B) Yes", "(B)", "(A)"),
]
OPEN = [Question("Wait?"), Question("Would you give up the whole of your power?"), Question("Why so?")]
MULTIPLIERS = [-1.5, 0.0, 2.0]


def vector(seed: int = 0, width: int = 32, layers: int = 4) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(width, generator=generator) for layer in range(layers)})


@torch.no_grad()
def logits_by_hand(model, ids: list[int], layer: int, push: torch.Tensor, start: int) -> torch.Tensor:
    """Float64 logits after the last token, with `push` added to the output of block `layer` from token `start` on."""

    def hook(module, args, output):
        resid = output if isinstance(output, torch.Tensor) else output[0]
        resid = torch.cat([resid[:, :start], resid[:, start:] + push], dim=1)
        return resid if isinstance(output, torch.Tensor) else (resid, *output[1:])

    handle = decoder_blocks(model)[layer].register_forward_hook(hook)
    try:
        return model(torch.tensor([ids])).logits[0, -1].double()
    finally:
        handle.remove()


def score_by_hand(model, tokenizer, question: Question, layer: int, push: torch.Tensor) -> list[float]:
    """The probabilities of the two letters behind "(", by the definition of softmax."""
    prompt = tokenizer(f"<s>[{question.text}]", add_special_tokens=False).input_ids
    ids = tokenizer(f"<s>[{question.text}] (", add_special_tokens=False).input_ids
    weights = logits_by_hand(model, ids, layer, push, start=len(prompt) - 1).exp()
    letters = [tokenizer.convert_tokens_to_ids(answer[1]) for answer in question.answers]
    return [(weights[letter] / weights.sum()).item() for letter in letters]


def answer_by_hand(model, tokenizer, question: Question, layer: int, push: torch.Tensor, steps: int) -> str:
    ids = tokenizer(f"<s>[{question.text}]", add_special_tokens=False).input_ids
    start = len(ids)
    for _ in range(steps):
        ids.append(int(logits_by_hand(model, ids, layer, push, start - 1).argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_one_question_at_a_time(family):
    model, v = tiny_model(family), vector()
    found = score_choices(SteeringWrapper(model), TOKENIZER, ASKED, sweep(v, [2], MULTIPLIERS), batch_size=5)
    spread = 0.0
    for score, (question, multiplier) in zip(found, product(ASKED, MULTIPLIERS), strict=True):
        assert score.question == question.id
        expected = score_by_hand(model, TOKENIZER, question, 2, multiplier * v.at(2))
        assert [score.p_matching, score.p_opposite] == pytest.approx(expected, rel=2e-3, abs=1e-9)
        plain = score_by_hand(model, TOKENIZER, question, 2, 0 * v.at(2))
        spread = max(spread, abs(plain[0] / sum(plain) - score.score))
    assert spread > 0.01, "steering that does nothing would agree with anything"


@pytest.mark.parametrize(
    ("answers", "scored"), [(("Yes, sir", "No, sir"), ("Yes", "No")), (("Ay", "No"), ("Ay", "No"))]
)
def test_answers_of_words_are_scored_by_the_tokens_in_which_they_differ(answers, scored):
    model, v = tiny_model(), vector()
    question = Question("Wait?", *answers)
    (found,) = score_choices(SteeringWrapper(model), TOKENIZER, [question], sweep(v, [2], [1.5]))
    prompt = TOKENIZER(f"<s>[{question.text}]", add_special_tokens=False).input_ids
    expected = []
    for answer in scored:
        ids, probability = [*prompt, *TOKENIZER(" ", add_special_tokens=False).input_ids], 1.0
        for token in TOKENIZER(answer, add_special_tokens=False).input_ids:
            logits = logits_by_hand(model, ids, 2, 1.5 * v.at(2), start=len(prompt) - 1)
            probability *= logits.softmax(0)[token].item()
            ids.append(token)
        expected.append(probability)
    assert [found.p_matching, found.p_opposite] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2", "Bloom"])
def test_answers_equal_one_at_a_time_without_a_cache(family):
    model, v = tiny_model(family), vector()
    found = answer_open(
        SteeringWrapper(model), TOKENIZER, OPEN, sweep(v, [1], MULTIPLIERS), max_new_tokens=5, batch_size=5
    )
    asked = list(product(OPEN, MULTIPLIERS))
    assert found == [answer_by_hand(model, TOKENIZER, q, 1, m * v.at(1), steps=5) for q, m in asked]
    assert len(set(found)) > len(OPEN), "steering that does nothing would agree with anything"


@torch.no_grad()
def test_multiplier_0_is_bit_for_bit_the_unsteered_pass_of_the_same_shape():
    model = tiny_model()
    wrapper = SteeringWrapper(model)
    alone = score_choices(wrapper, TOKENIZER, ASKED, sweep(vector(), [2], [0.0]))
    choices = sorted(render_choices(wrapper, TOKENIZER, ASKED), key=lambda choice: choice.length)
    ids, mask = pad([[*choice.prompt, *choice.continuations[0][:-1]] for choice in choices], 0, side="left")
    inputs = {**position_inputs(model, mask), "logits_to_keep": torch.tensor([ids.shape[1] - 1])}
    logs = model(ids, mask, **inputs).logits[:, 0].log_softmax(-1).double()
    expected = {
        tuple(logs[row, [c[-1] for c in choice.continuations]].exp().tolist()) for row, choice in enumerate(choices)
    }
    assert {(score.p_matching, score.p_opposite) for score in alone} == expected

    mixed = score_choices(wrapper, TOKENIZER, ASKED, sweep(vector(), [2], [-1.0, 0.0, 1.0]))
    others = score_choices(wrapper, TOKENIZER, ASKED, sweep(vector(), [2], [-3.0, 0.0, 3.0]))
    assert mixed[1::3] == others[1::3]
    assert mixed[0::3] != others[0::3]
    assert [score.p_matching for score in mixed[1::3]] == pytest.approx([score.p_matching for score in alone], rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_do_not_matter(batch_size):
    wrapper = SteeringWrapper(tiny_model("GPT2"))
    one = score_choices(wrapper, TOKENIZER, ASKED, sweep(vector(), [1], MULTIPLIERS))
    other = score_choices(wrapper, TOKENIZER, ASKED, sweep(vector(), [1], MULTIPLIERS), batch_size=batch_size)
    assert [s.p_matching for s in other] == pytest.approx([s.p_matching for s in one], rel=1e-4)
    texts = answer_open(wrapper, TOKENIZER, OPEN, sweep(vector(), [1], MULTIPLIERS), max_new_tokens=5)
    assert texts == answer_open(
        wrapper, TOKENIZER, OPEN, sweep(vector(), [1], MULTIPLIERS), max_new_tokens=5, batch_size=batch_size
    )


def test_pushing_along_a_letter_raises_that_letter():
    """The whole pipe carries a planted signal: at the last layer, W[A] - W[B] is the way from B to A."""
    model = tiny_model("GPT2")
    letters = TOKENIZER.convert_tokens_to_ids(["A", "B"])
    direction = model.lm_head.weight[letters[0]] - model.lm_head.weight[letters[1]]
    planted = SteeringVector({3: direction.detach()})
    found = score_choices(SteeringWrapper(model), TOKENIZER, ASKED, sweep(planted, [3], [-4.0, 0.0, 4.0]))
    for question, low, middle, high in zip(ASKED, found[::3], found[1::3], found[2::3], strict=True):
        p_a = [s.score if question.matching == "(A)" else 1 - s.score for s in (low, middle, high)]
        assert p_a[0] < p_a[1] < p_a[2]
        assert p_a[2] - p_a[0] > 0.5


def test_system_prompt_and_template_reach_the_model():
    wrapper, v = SteeringWrapper(tiny_model()), vector()
    plain = score_choices(wrapper, TOKENIZER, ASKED, sweep(v, [2], [1.0]))
    assert plain != score_choices(wrapper, ChatFormat(TOKENIZER, system="Be kind"), ASKED, sweep(v, [2], [1.0]))
    template = "{% for m in messages %}{{ m.content + '>' * (m.role == 'user') }}{% endfor %}"
    assert plain != score_choices(wrapper, ChatFormat(TOKENIZER, template=template), ASKED, sweep(v, [2], [1.0]))
    answers = [
        answer_open(wrapper, chat, OPEN, sweep(v, [2], [1.0]), max_new_tokens=6)
        for chat in (TOKENIZER, ChatFormat(TOKENIZER, "Be kind"), ChatFormat(TOKENIZER, template=template))
    ]
    assert answers[0] != answers[1] != answers[2] != answers[0]


def test_an_answer_ends_before_any_end_of_sequence_and_its_padding_is_not_read():
    model = tiny_model()
    ask = (TOKENIZER, OPEN, sweep(vector(), [1], MULTIPLIERS))
    texts = answer_open(SteeringWrapper(model), *ask, max_new_tokens=12)
    end = next(c for c in texts[0][2:] if any(c not in text for text in texts))
    model.generation_config.eos_token_id = [2, TOKENIZER.convert_tokens_to_ids(end)]
    TOKENIZER_WITH_LOUD_PAD = tiny_tokenizer()
    TOKENIZER_WITH_LOUD_PAD.pad_token = "#"
    cut = answer_open(SteeringWrapper(model), TOKENIZER_WITH_LOUD_PAD, *ask[1:], max_new_tokens=12)
    assert cut == [text.split(end)[0].strip() for text in texts]
    assert cut != texts


@pytest.mark.parametrize("lora", [False, True])
def test_the_models_own_sampling_is_put_aside_without_a_word(lora, caplog, recwarn):
    model = tiny_lora(tiny_model()) if lora else tiny_model()
    wrapper = SteeringWrapper(model)
    ask = (wrapper, TOKENIZER, OPEN, sweep(vector(), [1], MULTIPLIERS))
    greedy = answer_open(*ask, max_new_tokens=8)
    own = transformers.GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=3, repetition_penalty=5.0, max_length=99, eos_token_id=2
    )
    base = model.get_base_model() if lora else model
    base.generation_config = own
    recwarn.clear()
    transformers.utils.logging.enable_propagation()
    try:
        assert answer_open(*ask, max_new_tokens=8) == greedy
    finally:
        transformers.utils.logging.disable_propagation()
    assert not caplog.records
    assert not [str(warning.message) for warning in recwarn.list]
    assert base.generation_config is own
    with pytest.raises(ValueError, match="no layer 9"):
        answer_open(wrapper, TOKENIZER, OPEN, sweep(SteeringVector({9: torch.ones(32)}), [9], [1.0]))
    assert base.generation_config is own


def test_dropout_is_off_and_the_models_mode_comes_back():
    model = tiny_model("GPT2")
    wrapper = SteeringWrapper(model)
    expected = score_choices(wrapper, TOKENIZER, ASKED, sweep(vector(), [1], [1.0]))
    wrapper.train()
    assert score_choices(wrapper, TOKENIZER, ASKED, sweep(vector(), [1], [1.0])) == expected
    assert all(module.training for module in wrapper.modules())


def forwards(model) -> list[int]:
    """Grows by one for each forward pass of the model from now on."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("task", ["ab", "open"])
def test_a_question_too_long_for_the_context_is_refused_before_anything_runs(task):
    wrapper = SteeringWrapper(tiny_model())  # looks for the blocks in a pass of its own
    seen = forwards(wrapper.model)
    long = Question("Why? " * 60, "(A)", "(B)")
    with pytest.raises(ValueError, match=r"is 3\d\d tokens long, but this model reads at most 256"):
        if task == "ab":
            score_choices(wrapper, TOKENIZER, [*ASKED, long], sweep(vector(), [1], [1.0]))
        else:
            answer_open(wrapper, TOKENIZER, [*OPEN, long], sweep(vector(), [1], [1.0]))
    assert not seen


def test_the_answer_needs_room_too():
    wrapper = SteeringWrapper(tiny_model("GPT2"))
    question = Question("W" * 200)  # 203 tokens
    assert answer_open(wrapper, TOKENIZER, [question], sweep(vector(), [1], [1.0]), max_new_tokens=53)
    with pytest.raises(ValueError, match="with room for 54 new tokens is 257 tokens long"):
        answer_open(wrapper, TOKENIZER, [question], sweep(vector(), [1], [1.0]), max_new_tokens=54)


def test_an_open_question_has_no_choices():
    with pytest.raises(ValueError, match="no two answers to choose from"):
        score_choices(SteeringWrapper(tiny_model()), TOKENIZER, OPEN, sweep(vector(), [1], [1.0]))


def test_a_multiplier_beyond_all_measure_is_an_error_and_no_score():
    with pytest.raises(ValueError, match="Use a smaller multiplier"):
        score_choices(SteeringWrapper(tiny_model()), TOKENIZER, ASKED, sweep(100 * vector(), [1], [1e38]))


def test_rare_answers_still_compare():
    assert ChoiceScore("q", 3e-200, 1e-200).score == pytest.approx(0.75)


@torch.no_grad()
def test_answers_of_hundreds_of_tokens_compare_in_logarithms():
    """Against the slow way: one text at a time, in float64 logarithms. Their probabilities are 0 in float64."""
    model = tiny_model()
    model.config.max_position_embeddings = 2048
    tail = "word " * 120
    questions = [Question("Q1?", "A " + tail, "B " + tail + "x"), Question("Q2?", "(A)", "(B)")]
    chat, logs = ChatFormat(TOKENIZER), []
    for answer in questions[0].answers:
        branches = chat.encode_pair(ContrastPair("Q1?", *questions[0].answers))
        ids = chat.encode("Q1?", answer)
        table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        logs.append(sum(table[place - 1, ids[place]].item() for place in range(branches.parting, len(ids))))
    assert max(logs) < math.log(5e-324), "float64 has a number for these probabilities, so nothing is tried"
    scores = score_choices(SteeringWrapper(model), TOKENIZER, questions, [()], batch_size=1)
    assert scores[0].score == pytest.approx(1 / (1 + math.exp(logs[1] - logs[0])), abs=1e-4)
    assert 1e-291 < scores[0].mass < 1e-289
    assert scores[1].mass > 1e-10, "what float64 can say is left as it is"


@needs_shared
def test_words_of_a_real_tokenizer():
    """The letter is read behind whatever the answers share, for a BPE tokenizer too."""
    from caa import load_model

    model, tokenizer = load_model(str(SHARED / "models" / "prototype-tiny"))
    choices = render_choices(SteeringWrapper(model), tokenizer, ASKED)
    for question, choice in zip(ASKED, choices, strict=True):
        shared = {tokenizer.decode(tokens[:-1]).strip() for tokens in choice.continuations}
        assert shared == {"("}
        letters = [tokenizer.decode(tokens[-1:]).strip() for tokens in choice.continuations]
        assert letters == [answer[1] for answer in question.answers]
        assert tokenizer.decode(choice.prompt).endswith("[/INST]")
