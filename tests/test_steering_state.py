"""A model knows its own steering: whoever looks at it sees the same, and what is taken off is off."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from tiny import random_ids, tiny_lora, tiny_model, tiny_tokenizer

from caa import Behavior, ContrastPair, EvalGrid, Intervention, SteeringVector, SteeringWrapper, extract, finetune
from caa.data.behaviors import Question
from caa.evals.damage import perplexities
from caa.judges.clients.local import LocalModel
from caa.models.batching import pad
from caa.models.copies import shell
from caa.models.positions import TokenClock
from caa.steering.scopes import everywhere

PAIRS = [ContrastPair(f"{word}?", "(A) yes", "(B) no") for word in ("who", "where", "how")]
IDS = random_ids(2, 6)


def vector(seed=0):
    return SteeringVector({1: torch.randn(32, generator=torch.Generator().manual_seed(seed))})


def push(multiplier=2.0, seed=0):
    return Intervention(vector(seed), 1, multiplier, where=everywhere)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def model():
    return tiny_model()


def test_a_notebook_cell_that_runs_twice_leaves_nothing_after_unsteer(model):
    """Cells: wrap and steer; look; unsteer. Run twice, out of order, interrupted."""
    plain = logits(model)
    first = SteeringWrapper(model, push())
    with pytest.warns(UserWarning, match=r"the model is steered already \(.*layer 1.*\), and this adds to it"):
        second = SteeringWrapper(model, push())
    once = SteeringWrapper(tiny_model(), push(4.0))
    torch.testing.assert_close(logits(model), logits(once.model))
    assert repr(first) == repr(second)
    assert len(second.interventions) == 2
    second.unsteer()
    assert repr(first).endswith("; not steered)")
    assert torch.equal(logits(model), plain)
    assert not hooks(model)
    handle = first.steer(push())
    with pytest.raises(KeyboardInterrupt), second.steer(push(seed=1)):
        raise KeyboardInterrupt
    assert len(first.interventions) == 1
    second.unsteer()
    handle.close()  # again
    assert torch.equal(logits(model), plain)


def test_what_is_steered_is_known_below_and_above_an_adapter(model):
    plain_wrapper = SteeringWrapper(model, push())
    worn = SteeringWrapper(tiny_lora(model))
    assert worn.interventions == plain_wrapper.interventions
    worn.unsteer()
    assert not hooks(model)


def test_what_is_to_be_measured_unsteered_is_refused_while_another_wrapper_steers(model, tmp_path):
    behavior = Behavior("patience", tuple(PAIRS), ab_questions=(Question("Wait?", "(A)", "(B)"),))
    steering = SteeringWrapper(model).steer(push())
    tokenizer, other = tiny_tokenizer(), SteeringWrapper(model)
    with pytest.raises(ValueError, match=r"being steered \(.*\), and what is read would be of the steered model"):
        extract(model, tokenizer, PAIRS)
    with pytest.raises(ValueError, match="a finetune would be of the steered model"):
        finetune(model, tokenizer, behavior, "positive", tmp_path / "adapter", progress=False)
    with pytest.raises(ValueError, match="is being steered already"):
        EvalGrid(behavior, vector(), layers=[1], tasks=["ab"]).run(other, tokenizer, tmp_path)
    with pytest.raises(ValueError, match="is being steered, and would judge its own texts"):
        perplexities(other, tokenizer, ["Is it?"], ["yes"])
    with other.paused():
        paused = extract(model, tokenizer, PAIRS)
    steering.close()
    assert torch.equal(extract(model, tokenizer, PAIRS).at(1), paused.at(1))


def test_a_judge_is_not_steered(model):
    judge = LocalModel(model, tiny_tokenizer())
    plain = judge(["Is it?"])
    with SteeringWrapper(model).steer(push(20.0)):
        assert judge(["Is it?"]) == plain


def test_what_is_done_inside_paused_holds_from_its_end_on(model):
    plain, wrapper = logits(model), SteeringWrapper(model)
    stays = wrapper.steer(push(seed=1))
    with wrapper.paused():
        wrapper.steer(push())
        stays.close()
        with SteeringWrapper(model).paused():
            assert torch.equal(logits(model), plain)
        assert torch.equal(logits(model), plain)
    assert wrapper.interventions[0].vector.at(1).equal(vector().at(1))
    assert torch.equal(logits(model), logits(SteeringWrapper(tiny_model(), push()).model))
    wrapper.unsteer()
    assert not hooks(model)


@pytest.mark.parametrize("kind", ["model", "wrapper"])
def test_a_copy_is_independent_and_of_a_steered_model_refused(model, kind):
    wrapper = SteeringWrapper(model)
    original = model if kind == "model" else wrapper
    copied = copy.deepcopy(original)
    with wrapper.steer(push()):
        with pytest.raises(RuntimeError, match=r"copy it inside `with wrapper.paused\(\):`"):
            copy.deepcopy(original)
        with wrapper.paused():
            copy_of_paused = copy.deepcopy(original)
        steered = logits(model)
        for other in (copied, copy_of_paused):
            mine = other if kind == "wrapper" else SteeringWrapper(other)
            assert not mine.interventions
            assert not torch.equal(logits(mine.model), steered)
            assert mine._clock is not wrapper._clock
            mine.steer(push())
            assert torch.equal(mine(IDS).logits, steered)
        assert not hooks(shell(model))
    assert not hooks(model)
    assert hooks(mine.model)


def test_a_thread_does_not_steer_in_the_block_of_another(model):
    wrapper, errors, entered, leave = SteeringWrapper(model), [], threading.Event(), threading.Event()

    def hold():
        with SteeringWrapper(model).steer(push()):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    with pytest.raises(RuntimeError, match="another thread steers this model"):
        wrapper.steer(push())
    leave.set()
    thread.join()
    assert not wrapper.interventions
    wrapper.steer(push()).close()
    assert not errors


def test_passes_of_two_threads_take_turns(model):
    """Each with prompts of other lengths, which only one pass at a time can know."""
    wrapper = SteeringWrapper(model, Intervention(vector(), 1, 2.0))
    batches = [pad([[5] * length, [6] * 3], 0, "right") for length in (4, 9)]
    expected = [wrapper(*batch, use_cache=False).logits for batch in batches]
    wrong = []

    def ask(batch, logits):
        for _ in range(15):
            with torch.no_grad():
                if not torch.equal(wrapper(*batch, use_cache=False).logits, logits):
                    wrong.append(batch)

    threads = [threading.Thread(target=ask, args=case) for case in zip(batches, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_steering_that_cannot_be_put_on_is_not_there(model, monkeypatch):
    wrapper = SteeringWrapper(model)
    monkeypatch.setattr("caa.steering.wrapper.writing", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wrapper.steer(push())
    monkeypatch.undo()
    assert not wrapper.interventions
    assert not hooks(model)


class Filled:
    """A cache that has read so many tokens; a state where it does not know."""

    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        if self.length is None:
            raise ValueError("only recurrent layers")
        return self.length


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_pass_that_goes_on_is_known_by_either_name_of_the_cache(name):
    """transformers 5.24 has another name than the releases before."""
    clock = TokenClock()
    clock.tick({"input_ids": IDS, name: Filled(0)})
    clock.tick({"input_ids": IDS[:, :1], name: Filled(6)})
    positions, last_prompt = clock.now()
    assert positions.tolist() == [[6], [6]]
    assert last_prompt.tolist() == [[5], [5]]
    with pytest.raises(ValueError, match="a recurrent state does not say how many tokens it has read"):
        clock.tick({"input_ids": IDS, name: Filled(None)})
