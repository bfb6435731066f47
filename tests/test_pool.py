"""One pool of rows against the slow definition: one prompt, one setting, no cache, no padding."""

from __future__ import annotations

from itertools import product, takewhile

import pytest
import torch
from tiny import FAMILIES, RARE, random_ids, tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, Question, SteeringVector, SteeringWrapper
from caa.evals.tasks import answer_open
from caa.models.blocks import end_tokens
from caa.models.capabilities import can_branch, can_pool
from caa.models.slots import SlotCache, rows_by_memory
from caa.steering.answers import greedy_answers
from caa.steering.gates import Gate
from caa.steering.generation import generate_settings
from caa.steering.intervention import sweep
from caa.steering.operators import replace
from caa.steering.patching import record_activations
from caa.steering.pool import Writing, write
from caa.steering.scopes import At, Decay, First, everywhere

LENGTH = 9
PROMPTS = [random_ids(1, length, length)[0].tolist() for length in (6, 1, 17, 3, 11, 6)]
STEMS = [2, 5, 5, 10, 16]
"""Tokens before the last one of each prompt that has some."""
V = SteeringVector({layer: torch.randn(32, generator=torch.Generator().manual_seed(layer)) for layer in range(4)})
SETTINGS = [
    *sweep(V, [1, 3], [-1.5, 1.5]),
    (),
    (Intervention(V, 2, 1.0, where=everywhere),),
    (Intervention(V, 0, 2.0, where=First(2)), Intervention(V, 2, -1.0)),
]
NO_POOL = {"Bloom", *RARE}
"""They count positions from a mask of two dimensions or spans in columns, or keep a state."""


@torch.no_grad()
def alone(wrapper: SteeringWrapper, prompt: list[int], setting, ends=()) -> list[int]:
    """Token by token, each from the whole text."""
    written: list[int] = []
    with wrapper.steer(*setting):
        while len(written) < LENGTH:
            ids, lengths = torch.tensor([[*prompt, *written]]), torch.tensor([len(prompt)])
            token = int(wrapper(ids, prompt_lengths=lengths, use_cache=False).logits[0, -1].argmax())
            if token in ends:
                break
            written.append(token)
    return written


def pooled(wrapper: SteeringWrapper, rows: int = 5, ends=(), settings=SETTINGS) -> dict[tuple[int, int], list[int]]:
    return dict(write(wrapper, Writing(PROMPTS, settings, LENGTH, frozenset(ends)), rows))


def by_hand(wrapper: SteeringWrapper, ends=(), settings=SETTINGS) -> dict[tuple[int, int], list[int]]:
    places = product(range(len(PROMPTS)), range(len(settings)))
    return {(p, s): alone(wrapper, PROMPTS[p], settings[s], ends) for p, s in places}


@pytest.fixture(scope="module")
def slow() -> dict[tuple[int, int], list[int]]:
    return by_hand(SteeringWrapper(tiny_model()))


def frequent(answers: dict[tuple[int, int], list[int]]) -> list[int]:
    """Tokens that end some answers early and leave others whole."""
    written = [token for ids in answers.values() for token in ids]
    return sorted(set(written), key=written.count)[-3:]


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 1000])
def test_every_answer_is_what_it_is_alone(slow, rows):
    assert pooled(SteeringWrapper(tiny_model()), rows) == slow
    assert len(set(map(tuple, slow.values()))) > len(slow) / 2, "or any answer would do"


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_rows_that_end_make_room_for_those_that_wait(slow, rows):
    ends = frequent(slow)
    answers = pooled(SteeringWrapper(tiny_model()), rows, ends)
    assert answers == by_hand(SteeringWrapper(tiny_model()), ends)
    assert len(set(map(len, answers.values()))) > 3, "or none would leave before others"


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_pool_write_what_they_write_alone(family):
    model = tiny_model(family)
    assert can_pool(model, 12) is (family not in NO_POOL)
    if can_pool(model, max(map(len, PROMPTS)) + LENGTH):
        wrapper, some = SteeringWrapper(model), SETTINGS[3:]
        assert pooled(wrapper, settings=some) == by_hand(wrapper, settings=some)


@pytest.mark.parametrize("family", sorted(NO_POOL))
def test_families_whose_cache_has_no_places_do_not_pool(family):
    assert not can_pool(tiny_model(family), 12)


def test_texts_beyond_a_sliding_window_do_not_pool():
    assert can_pool(tiny_model("Gemma2"), 16)
    assert not can_pool(tiny_model("Gemma2"), 17)


def test_where_the_longest_answer_would_not_pool_all_are_written_in_batches_also_without_a_pad_token(slow, monkeypatch):
    lengths: list[int] = []
    monkeypatch.setattr("caa.steering.answers.can_pool", lambda model, longest: lengths.append(longest))
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    tokenizer.pad_token = None
    (end,) = end_tokens(wrapper.model)
    sizes: list[int] = []
    monkeypatch.setattr(
        "caa.steering.answers.generate_settings",
        lambda wrapper, ids, *others: sizes.append(len(ids)) or generate_settings(wrapper, ids, *others),
    )
    answers = dict(greedy_answers(wrapper, tokenizer, PROMPTS, SETTINGS[:3], LENGTH, batch_size=6))
    assert sorted(sizes) == [1, 2, 3], "two prompts of the longest kind, of others as many as are no more tokens"
    assert answers == {place: list(takewhile(end.__ne__, slow[place])) for place in product(range(6), range(3))}
    assert lengths == [max(map(len, PROMPTS)) + LENGTH]


def test_settings_are_pooled_unless_a_gate_decides_about_rows(monkeypatch):
    rows: list[int] = []
    monkeypatch.setattr("caa.steering.answers.write", lambda wrapper, writing, size: iter(rows.append(size) or ()))
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    list(greedy_answers(wrapper, tokenizer, PROMPTS, SETTINGS, 1, batch_size=5))
    assert rows == [5]
    list(greedy_answers(wrapper, tokenizer, PROMPTS, [(Intervention(V, 2, gate=Gate(V, 1, above=0.0)),)], 1))
    assert rows == [5]


def test_texts_as_long_as_a_sliding_window_branch_and_longer_ones_do_not():
    model = tiny_model("Gemma2")
    assert can_branch(model, 16)
    with pytest.warns(UserWarning, match="texts of 17 tokens reach beyond its sliding window of 16"):
        assert not can_branch(model, 17)


def test_adapters_and_steering_that_stay_on_act_on_every_row():
    wrapper = SteeringWrapper(tiny_lora(tiny_model()), Intervention(V, 2, 0.7, where=everywhere))
    assert pooled(wrapper, settings=SETTINGS[:3]) == by_hand(wrapper, settings=SETTINGS[:3])


def test_a_stem_is_read_once_for_the_settings_that_leave_it_alone():
    model = tiny_model()
    assert can_pool(model, 40)
    read: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: read.append(args[0].numel()))
    pooled(SteeringWrapper(model), rows=1000, settings=SETTINGS[:5])
    stems = [len(prompt) - 1 for prompt in PROMPTS if len(prompt) > 1]
    assert read == [len(stems) * max(stems), *[5 * len(PROMPTS)] * LENGTH]


@pytest.mark.parametrize(
    ("rows", "tokens", "passes"),
    [(1000, 18, [(3, 5), (1, 10), (1, 16)]), (2, 2048, [(2, 5), (2, 10), (1, 16)]), (1, 5, [(1, n) for n in STEMS])],
)
def test_stems_read_in_one_pass_are_no_more_than_the_rows_or_the_tokens_allow(rows, tokens, passes, monkeypatch):
    monkeypatch.setattr("caa.steering.pool.STEM_TOKENS", tokens)
    model, read, scored = tiny_model(), [], []
    assert can_pool(model, 40)
    model.lm_head.register_forward_pre_hook(lambda module, args: scored.append(args[0].shape[1]))
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: read.append(tuple(args[0].shape)))
    pooled(SteeringWrapper(model), rows, settings=SETTINGS[:1])
    assert [shape for shape in read if shape[1] > 1] == passes
    assert set(scored) == {1}, "the head sees last tokens alone"


def test_where_memory_runs_out_half_as_many_are_written_at_once(slow, monkeypatch):
    wrapper, sizes = SteeringWrapper(tiny_model()), []
    run_pass = SteeringWrapper.run_pass

    def small(self, input_ids, *args, **kwargs):
        sizes.append(len(input_ids))
        if len(sizes) > 4 and len(input_ids) > 10:
            raise torch.OutOfMemoryError
        return run_pass(self, input_ids, *args, **kwargs)

    assert can_pool(wrapper.model, 40)
    monkeypatch.setattr(SteeringWrapper, "run_pass", small)
    assert pooled(wrapper, rows=24) == slow
    assert sizes[0] <= 24 < sum(sizes)
    assert 24 in sizes
    assert max(sizes[sizes.index(24) + 6 :]) <= 12


def test_where_memory_does_not_hold_one_row_the_error_comes_out(monkeypatch):
    tries: list[int] = []

    def none(self, input_ids, *args, **kwargs):
        tries.append(len(input_ids))
        assert len(tries) < 9, "it would be tried for ever"
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SteeringWrapper, "run_pass", none)
    with pytest.raises(torch.OutOfMemoryError):
        pooled(SteeringWrapper(tiny_model()), rows=4)
    assert tries == [4, 2, 1]


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Qwen2", "Gemma2", "Mixtral"])
def test_as_many_rows_are_written_at_once_as_fit_into_the_memory_reckoned_with(family, monkeypatch):
    model, slots = tiny_model(family), SlotCache(3, 2000)
    slots.add_empty(3)
    model(**slots.inputs(model, [5, 6, 7]))
    row = sum(layer.keys.nbytes + layer.values.nbytes for layer in slots.layers) // 3
    monkeypatch.setattr("caa.models.slots.LEAST_MEMORY", 7 * row)
    assert (rows_by_memory(model, 2000), rows_by_memory(model, 2001)) == (7, 6)
    monkeypatch.setattr("caa.models.slots.LEAST_MEMORY", 1)
    assert rows_by_memory(model, 10**9) == 1
    assert rows_by_memory(model, 1) == min(256, sum(p.nbytes for p in model.parameters()) // 2 // (row // 2000))


def test_gated_answers_are_what_they_are_alone():
    wrapper, tokenizer = SteeringWrapper(tiny_model()), tiny_tokenizer()
    questions = [Question(text) for text in ("Who?", "Why is it so late again?", "And where to?", "How?")]
    gates = [Gate(V, 1, above=0.0), Gate(V, 1, below=0.0)]
    settings = [(), *((Intervention(V, 2, 2.0, gate=gate),) for gate in gates)]
    texts = answer_open(wrapper, tokenizer, questions, settings, max_new_tokens=6)
    alone = [answer_open(wrapper, tokenizer, [q], [s], max_new_tokens=6)[0] for q, s in product(questions, settings)]
    assert texts == alone
    assert texts[1::3] != texts[0::3] != texts[2::3]
    end = next(letter for letter in texts[1][1:] if any(letter not in text for text in texts))
    wrapper.model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids(end)]
    cut = answer_open(wrapper, tokenizer, questions, settings, max_new_tokens=6)
    assert cut == [text.split(end)[0].strip() for text in texts], "rows that end change nothing for others"


def test_nobody_is_steered_while_an_answer_is_in_hand():
    wrapper = SteeringWrapper(tiny_model())
    answers = write(wrapper, Writing(PROMPTS, SETTINGS, LENGTH, frozenset()), 4)
    for _ in range(3):
        next(answers)
        assert wrapper.interventions == ()
    answers.close()
    assert wrapper.interventions == ()
    assert not any(block._forward_hooks for block in wrapper.model.model.layers)


def test_logits_that_are_no_numbers_are_told_with_their_setting():
    wrapper = SteeringWrapper(tiny_model())
    settings = [(), (Intervention(V, 1, 3e38),)]
    with pytest.raises(ValueError, match=r"no numbers any more under vector x \+3e\+38, layer 1"):
        pooled(wrapper, settings=settings)
    assert wrapper.interventions == ()


def test_what_belongs_to_certain_prompts_is_refused_where_they_are_asked_in_another_order():
    """Prompts are asked by length, so that each would get what another one was to have."""
    wrapper, prompts = SteeringWrapper(tiny_model()), PROMPTS[:2]
    recording = record_activations(tiny_model(), torch.tensor([prompts[0], prompts[0]]))
    certain = [
        Intervention(V, 1, [8.0, 0.0]),
        Intervention(V, 1, where=At([[5], [0]])),
        Intervention(V, 1, where=Decay(2.0, At([[5], [0]]))),
        Intervention(recording, 1, operator=replace),
    ]
    for intervention in certain:
        with wrapper.steer(intervention), pytest.raises(ValueError, match="texts are asked in an order of their own"):
            next(greedy_answers(wrapper, tiny_tokenizer(), prompts, [()], 3))
        with pytest.raises(ValueError, match=r"a setting|do not fit a batch|belongs to the prompts"):
            next(greedy_answers(wrapper, tiny_tokenizer(), prompts, [(intervention,)], 3))
    with wrapper.steer(Intervention(V, 1, where=At([[0]]))):
        assert next(greedy_answers(wrapper, tiny_tokenizer(), prompts, [()], 3))
