"""Every way to put settings into one pass against the slow definition: one text, one setting, one pass, no padding."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import product

import pytest
import torch
from tiny import FAMILIES, RARE, random_ids, tiny_lora, tiny_model

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.models.batching import by_tokens, in_batches, pad
from caa.models.blocks import decoder_blocks
from caa.models.capabilities import can_branch, can_expand, can_grow, can_pad, can_repeat_cache
from caa.models.prefix import read_prefix
from caa.steering.generation import generate_settings
from caa.steering.intervention import sweep, together
from caa.steering.scopes import At, everywhere
from caa.steering.scoring import Branches, Continued, Grown, Rows, log_probabilities


def ids(length: int, seed: int) -> list[int]:
    return random_ids(1, length, seed)[0].tolist()


def vector(seed: int = 0) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(32, generator=generator) for layer in range(4)})


LETTERS = [Continued(ids(length, length), ([30, 40], [30, 50]), 1) for length in (9, 1, 14)]
SENTENCES = [
    Continued(ids(7, 1), ([20, 21, 22, 23], [20, 31]), 1),
    Continued(ids(11, 2), ([60], [61, 62, 63]), 0),
    Continued(ids(5, 3), ([70, 71], [72, 73]), 0),
]
V, W = vector(), vector(1)
LATE = [*sweep(V, range(4), [-1.0, 1.5]), (), (Intervention(V, 0, 0.5), Intervention(W, 2, -1.0))]
ALL = [*LATE, *((Intervention(V, layer, 1.0, where=everywhere),) for layer in (3, 1)), (Intervention(W, 2, 0.0),)]


@torch.no_grad()
def by_hand(wrapper: SteeringWrapper, text: Continued, setting) -> list[float]:
    """Continuations that differ in their last token alone are read once."""
    sums, read = [], {}
    for tokens in text.continuations:
        whole = [*text.prompt, *tokens]
        if (before := tuple(whole[:-1])) not in read:
            with wrapper.steer(*setting):
                prompt_lengths = torch.tensor([len(text.prompt)])
                logits = wrapper(torch.tensor([before]), prompt_lengths=prompt_lengths, use_cache=False).logits[0]
            read[before] = logits.double().log_softmax(-1)
        places = range(len(text.prompt) + text.start, len(whole))
        sums.append(sum(read[before][place - 1, whole[place]].item() for place in places))
    return sums


def check(wrapper: SteeringWrapper, texts, settings, **how) -> None:
    found = log_probabilities(wrapper, texts, settings, **how)
    expected = torch.tensor([[by_hand(wrapper, text, setting) for setting in settings] for text in texts]).double()
    assert torch.allclose(found, expected, atol=2e-4), (found - expected).abs().max()
    assert (found.exp() - expected.exp()).abs().max() <= 1e-5
    assert expected.std(dim=1).min() > 0.01, "settings that change nothing would agree with anything"


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_settings_at_once_equal_one_at_a_time(family, lora):
    model = tiny_model(family)
    check(SteeringWrapper(tiny_lora(model) if lora else model), LETTERS, ALL)


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma3Text", "Bloom"])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_answers_of_many_tokens(family, batch_size):
    check(SteeringWrapper(tiny_model(family)), SENTENCES, ALL, batch_size=batch_size)


@pytest.mark.parametrize("texts", [[2], [0, 1], [0, 1, 2, 3]])  # as many rows as MPT has heads, and fewer
@pytest.mark.parametrize("family", RARE)
def test_families_with_states_and_biases_of_their_own_are_scored_as_if_alone(family, texts):
    some = [*LETTERS, Continued(ids(30, 8), ([30, 40], [30, 50]), 1)]
    check(SteeringWrapper(tiny_model(family)), [some[text] for text in texts], ALL)


@pytest.mark.parametrize(("trial", "cannot"), [(can_pad, {"Rwkv", "RecurrentGemma"}), (can_expand, {"Mpt"})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_cannot_be_padded_or_expanded_is_found_out_in_any_precision(trial, cannot, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert {family for family in [*FAMILIES, *RARE] if not trial(tiny_model(family).to(dtype))} == cannot
        assert not any(can_branch(tiny_model(family).to(dtype), 8) for family in RARE)


def test_what_stays_on_has_one_multiplier_for_all_texts():
    wrapper = SteeringWrapper(tiny_model(), Intervention(W, 1, [1.0, -1.0]))
    with pytest.raises(ValueError, match="texts are asked in an order of their own"):
        log_probabilities(wrapper, LETTERS[:2], LATE)


@pytest.mark.parametrize(("columns", "passes"), [(1, 10), (6, 4), (10**6, 1)])
def test_any_number_of_branches_in_a_row(columns, passes, monkeypatch):
    monkeypatch.setattr("caa.steering.scoring.MOST_COLUMNS", columns)
    model = tiny_model()
    check(SteeringWrapper(model), [*LETTERS, *SENTENCES], LATE)
    seen = tokens_read(model, 0)
    log_probabilities(SteeringWrapper(model), LETTERS, LATE)
    assert len(seen) == passes, "ten settings of two columns each"


def test_half_precision_agrees_to_its_own_rounding():
    wrapper = SteeringWrapper(tiny_model().to(torch.bfloat16))
    found = log_probabilities(wrapper, LETTERS, LATE).exp()
    expected = torch.tensor([[by_hand(wrapper, text, setting) for setting in LATE] for text in LETTERS]).exp()
    assert (found - expected).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten().double()]))[0, 1] > 0.99


def test_what_is_steered_already_stays_so():
    wrapper = SteeringWrapper(tiny_model(), Intervention(W, 1, 2.0))
    check(wrapper, LETTERS, ALL)


def test_one_setting_is_bit_for_bit_the_plain_pass():
    wrapper, text = SteeringWrapper(tiny_model()), LETTERS[0]
    logits = wrapper.model(torch.tensor([[*text.prompt, 30]]), logits_to_keep=1).logits[0, -1]
    expected = logits.log_softmax(-1)[[40, 50]].double()
    for setting in ((), (Intervention(V, 2, 0.0),)):
        assert torch.equal(log_probabilities(wrapper, [text], [setting])[0, 0], expected)


# What it costs.


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_but_alibi_are_branched(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert can_branch(tiny_model(family), 12) == (family != "Bloom")


def tokens_read(model, layer: int) -> list[int]:
    """Grows by the number of tokens that a block is given, for each pass from now on."""
    seen: list[int] = []
    decoder_blocks(model)[layer].register_forward_pre_hook(lambda m, args: seen.append(args[0][..., 0].numel()))
    return seen


def test_a_grid_is_one_pass_in_which_a_branch_comes_in_where_it_begins_to_differ():
    model = tiny_model()
    assert can_branch(model, 20)
    assert can_grow(model)
    seen: list[int] = []
    for block in decoder_blocks(model):
        block.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0][..., 0].numel()))
    log_probabilities(SteeringWrapper(model), LETTERS, LATE)
    longest = max(len(text.prompt) for text in LETTERS)
    # Behind block 0 come two settings of the sweep and the last one; what is not steered stands for all before.
    assert seen == [3 * (longest - 1 + 2 * branches) for branches in (1, 4, 6, 8)]


@pytest.mark.parametrize("family", ["Llama", "GPT2", "OPT"])
def test_what_all_prompts_begin_with_is_read_once(family, monkeypatch):
    monkeypatch.setattr("caa.models.prefix.LEAST_SAVED", 20)
    model, shared = tiny_model(family), ids(11, 99)
    texts = [replace(text, prompt=[*shared, *text.prompt]) for text in (*LETTERS, SENTENCES[0])]
    check(SteeringWrapper(model), texts, LATE)
    seen = tokens_read(model, 0)
    log_probabilities(SteeringWrapper(model), texts, LATE)
    longest, branches = max(len(text.prompt) for text in texts) - 11, 2 * 4 * len(LATE)  # two tails of four tokens
    assert seen == [11, 4 * (longest - 1 + branches)]
    monkeypatch.setattr("caa.models.prefix.LEAST_SAVED", 34)  # and 11 tokens of three texts are 33
    seen.clear()
    log_probabilities(SteeringWrapper(model), texts, LATE)
    assert seen == [4 * (11 + longest - 1 + branches)]


@pytest.mark.parametrize(("texts", "passes"), [(0, [1, 1, 1]), (1, [1, 1, 1]), (2, [2, 1]), (3, [3])])
def test_a_pass_has_no_more_logits_than_it_may_but_at_least_one_texts(texts, passes, monkeypatch):
    model = tiny_model()
    parameters, of_a_text = sum(p.numel() for p in model.parameters()), len(LATE) * model.config.vocab_size
    monkeypatch.setattr("caa.steering.scoring.LOGITS", texts * of_a_text)
    monkeypatch.setattr("caa.steering.scoring.LOGITS_SHARE", parameters)
    expected = log_probabilities(SteeringWrapper(model), LETTERS, LATE)
    sizes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    assert torch.equal(log_probabilities(SteeringWrapper(model), LETTERS, LATE), expected)
    assert sizes == [number * of_a_text for number in passes]


def test_a_pass_on_a_cpu_holds_no_more_tokens_than_it_should():
    model, shapes = tiny_model(), []
    texts = [Continued(ids.tolist(), ([5], [6]), 0) for ids in random_ids(24, 90, 90)]
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    log_probabilities(SteeringWrapper(model), texts[:1], [()])
    shapes.clear()  # trials
    log_probabilities(SteeringWrapper(model), texts, [()], batch_size=24)
    assert sum(rows for rows, _ in shapes) == 24
    assert max(rows * columns for rows, columns in shapes) in range(900, 1025)


def test_everywhere_shares_the_layers_below_the_steered_one(monkeypatch):
    model = tiny_model()
    assert can_expand(model)
    assert can_pad(model)
    first, last = tokens_read(model, 0), tokens_read(model, 3)
    settings = [(Intervention(V, 2, m, where=everywhere),) for m in (-1.0, 0.5, 1.0)]
    log_probabilities(SteeringWrapper(model), LETTERS, settings)
    assert sum(last) == 3 * sum(first)
    assert len(first) == 1, "texts of different lengths are padded where that changes nothing"
    monkeypatch.setattr("caa.steering.scoring.can_pad", lambda model: False)
    for texts, passes in ((LETTERS, 3), ([LETTERS[0]] * 3, 1)):
        first.clear()
        log_probabilities(SteeringWrapper(model), texts, settings)
        assert len(first) == passes, "where it does not, those of one length go together"


@pytest.mark.parametrize("family", ["Bloom", "Gemma2"])
def test_a_family_that_masks_cannot_branch_falls_back_and_says_so_once(family):
    model, long = tiny_model(family), [Continued(ids(20, 5), ([3], [4]), 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_probabilities(SteeringWrapper(model), long, LATE[:1])  # one setting has no branches
    with pytest.warns(UserWarning, match="asked row by row, not by branches"):
        check(SteeringWrapper(model), long, ALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(SteeringWrapper(model), long, ALL)


def test_a_local_attention_that_counts_columns_is_looked_up():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM  # the usual window is wider than any trial

    config = GPTNeoConfig(vocab_size=104, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["local"], 2]])
    with pytest.warns(UserWarning, match="its local attention counts columns"):
        assert not can_branch(GPTNeoForCausalLM(config), 16)


def test_a_family_whose_window_is_wide_enough_is_branched():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert can_branch(tiny_model("Gemma2"), 16)


def test_an_attention_that_ignores_the_mask_is_found_out():
    model = tiny_model()
    plain = model.forward

    def deaf(*args, attention_mask=None, **kwargs):
        mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        return plain(*args, attention_mask=mask, **kwargs)

    model.forward = deaf
    with pytest.warns(UserWarning, match="does not keep the branches of one prompt apart"):
        assert not can_branch(model, 16)


def test_where_memory_runs_out_the_rest_goes_in_smaller_batches():
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("too much")
        return sum(batch)

    found = [batch for batch, _ in in_batches(run, [5] * 10, budget=50)]
    assert sizes[:2] == [10, 5]
    assert max(sizes[2:]) == 2
    assert sorted(place for batch in found for place in batch) == list(range(10))
    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(lambda batch: run([0] * 9), [5] * 2, budget=5))


def test_a_layout_counts_the_tokens_that_a_pass_holds_for_a_text():
    text, prefix = Continued(ids(7, 1), ([20, 21, 22], [20, 31]), 0), read_prefix(tiny_model(), ids(3, 1))
    branches = 6 + 3 * 2 * 3  # a stem; three settings, two tails of up to three tokens
    assert [layout.tokens(text, 3) for layout in (Branches(), Grown(prefix), Rows())] == [branches, branches - 3, 54]


def test_batches_hold_no_more_than_the_budget():
    lengths = [7, 3, 9, 1, 4, 4, 30]
    batches = by_tokens(lengths, budget=16)
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 16 for batch in batches)


def test_nothing_stays_on_the_model_after_an_error():
    model = tiny_model()
    wrapper = SteeringWrapper(model)
    bad = [(Intervention(V, 2, 3e38, where=everywhere),), ()]
    expected = log_probabilities(wrapper, LETTERS, [()])
    decoder_blocks(model)[3].register_forward_hook(lambda m, a, out: None if out.isfinite().all() else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_probabilities(wrapper, LETTERS, [*bad, (Intervention(V, 1, 1.0, where=everywhere),)])
    assert torch.equal(log_probabilities(wrapper, LETTERS, [()]), expected)
    hooks = [len(b._forward_hooks) + len(b._forward_pre_hooks) for b in decoder_blocks(model)]
    assert hooks == [0, 0, 0, 1]


@pytest.mark.parametrize(("prompt", "continuations"), [([], ([1],)), ([5], ([1, 2], [1])), ([5], ([1, 2], []))])
def test_texts_without_a_token_to_score_are_refused(prompt, continuations):
    with pytest.raises(ValueError, match="one of these has none"):
        Continued(prompt, continuations, start=len(continuations[0]) - 1)


def test_settings_with_several_multipliers_for_one_intervention_are_refused():
    with pytest.raises(ValueError, match="one multiplier for each intervention, this one has 2"):
        together([(Intervention(V, 0, [1.0, 2.0]),)])


def test_the_order_of_a_settings_interventions_is_kept():
    a, b = Intervention(V, 0), Intervention(W, 0)
    both = together([(a, b), (b, a)])
    assert [(each.vector is V, each.multiplier) for each in both] == [
        (True, [1.0, 0.0]),
        (False, [0.0, 1.0]),
        (False, [1.0, 0.0]),
        (True, [0.0, 1.0]),
    ]


# Texts.


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma2", "Mistral", "Bloom", "OPT", *RARE])
def test_texts_under_all_settings_equal_one_at_a_time(family):
    wrapper = SteeringWrapper(tiny_model(family))
    prompts = [ids(6, 1), ids(19, 2), ids(3, 3)]
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wrapper.model.generation_config.update(**how)
    alone = {}
    for number, setting in enumerate(ALL):  # it begins with all of LATE
        with wrapper.steer(*setting):
            for row, prompt in enumerate(prompts):
                alone[row, number] = wrapper.generate(torch.tensor([prompt]), use_cache=False)[0, -6:].tolist()
    for settings in (LATE, ALL):
        answers = generate_settings(wrapper, *pad(prompts, 0, side="left"), settings)[:, -6:].tolist()
        assert answers == [alone[place] for place in product(range(len(prompts)), range(len(settings)))]
        assert len({tuple(answer) for answer in answers}) > len(prompts)


@pytest.mark.parametrize("settings", [LATE, LATE[:2]])
def test_the_prompt_is_read_once_for_all_settings_that_leave_it_alone(settings):
    model = tiny_model()
    assert can_pad(model)
    assert can_repeat_cache(model)
    seen, scored = tokens_read(model, 0), []
    model.lm_head.register_forward_pre_hook(lambda module, args: scored.append(args[0].shape[1]))
    model.generation_config.update(max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)
    generate_settings(SteeringWrapper(model), *pad([ids(9, 1), ids(4, 2)], 0, side="left"), settings)
    assert seen == [2 * 8, 2 * len(settings), 2 * len(settings)]
    assert set(scored) == {1}, "the head sees last tokens alone"


@pytest.mark.parametrize(("steering", "length"), [((), 1), ((Intervention(W, 1, 2.0),), 6)])
def test_prompts_of_one_token_and_under_steering_that_stays_on_share_no_cache(steering, length):
    wrapper, prompts = SteeringWrapper(tiny_model(), *steering), [ids(length, 1), ids(length, 2)]
    wrapper.model.generation_config.update(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    answers = generate_settings(wrapper, *pad(prompts, 0), LATE)[:, -6:].tolist()
    for answer, (prompt, setting) in zip(answers, product(prompts, LATE), strict=True):
        with wrapper.steer(*setting):
            assert answer == wrapper.generate(torch.tensor([prompt]), use_cache=False)[0, -6:].tolist()
    assert len(set(map(tuple, answers))) > 2


def test_a_prompt_that_a_setting_edits_inside_is_read_under_each():
    model = tiny_model()
    assert can_pad(model)
    assert can_repeat_cache(model)
    seen = tokens_read(model, 0)
    model.generation_config.update(max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)
    settings = [(), (Intervention(V, 1, where=At([[3]])),)]
    generate_settings(SteeringWrapper(model), *pad([ids(9, 1), ids(4, 2)], 0, side="left"), settings)
    assert seen == [2 * 2 * 9, 2 * 2]
