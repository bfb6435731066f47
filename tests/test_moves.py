"""What a finetune does to the stream, against a reading of one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from caa import SteeringVector, SteeringWrapper
from caa.data.chat import ChatFormat
from caa.evals.moves import finetune_moves
from caa.steering.intervention import Intervention
from caa.steering.scopes import everywhere
from tests.tiny import tiny_lora, tiny_model, tiny_tokenizer

QUESTIONS = ["Wait?", "How long is it?", "And now, a longer one?", "Why?"]
VECTOR = SteeringVector({layer: torch.randn(32, generator=torch.Generator().manual_seed(layer)) for layer in (1, 2)})


@torch.no_grad()
def slow_residuals(model: torch.nn.Module, layer: int) -> torch.Tensor:
    """[prompt, d_model]"""
    chat, residuals = ChatFormat(tiny_tokenizer()), []
    for question in QUESTIONS:
        hook = model.model.layers[layer].register_forward_hook(lambda *call: residuals.append(call[2][0, -1]))
        model(input_ids=torch.tensor([chat.encode(question)]))
        hook.remove()
    return torch.stack(residuals)


def test_the_move_is_the_difference_of_slow_readings() -> None:
    wrapper = SteeringWrapper(tiny_lora(tiny_model()))
    moves = finetune_moves(wrapper, tiny_tokenizer(), QUESTIONS, VECTOR, [1, 2], ["sft"], batch_size=2)
    for layer, move in moves["sft"].items():
        base = slow_residuals(tiny_model(), layer)
        moved = slow_residuals(tiny_lora(tiny_model()).merge_and_unload(), layer) - base
        assert move.size == pytest.approx((moved.norm(dim=1).mean() / base.norm(dim=1).mean()).item(), rel=1e-4)
        cosine = torch.nn.functional.cosine_similarity(moved.mean(0), VECTOR.at(layer), dim=0)
        assert move.cosine == pytest.approx(cosine.item(), abs=1e-4)
        assert move.shared == pytest.approx((moved.mean(0).norm() / moved.norm(dim=1).mean()).item(), rel=1e-4)
        assert 0.01 < move.shared < 0.99


def test_steering_itself_moves_every_prompt_along_the_vector() -> None:
    """The same measure of two models of which one is steered."""
    from caa.evals.moves import move

    base, steered = tiny_model(), SteeringWrapper(tiny_model(), Intervention(VECTOR, 1, 2.0, where=everywhere))
    moved = move(slow_residuals(base, 1), slow_residuals(steered.model, 1), VECTOR.at(1))
    assert (moved.cosine, moved.shared) == pytest.approx((1, 1), abs=1e-5)
