"""Steers compiled models that ran before they were steered; fails where one is not: `python compiled_job.py`."""

from __future__ import annotations

from typing import Any

import torch
from slow import PROMPTS, close, vector
from test_pool import V, by_hand, pooled
from tiny import tiny_model
from torch._dynamo import config
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig

from caa import Intervention, SteeringWrapper
from caa.models.blocks import decoder_blocks
from caa.models.capabilities import can_pool
from caa.steering.intervention import sweep
from caa.steering.scopes import everywhere


def tiny() -> Any:
    """Of two blocks, each of which is steered: what is compiled is traced, which takes its time."""
    model = tiny_model()
    model.config.num_hidden_layers = 2
    del model.model.layers[2:]
    return model


def fresh() -> None:
    """As in a process that has not steered yet."""
    torch.compiler.reset()
    config.skip_nnmodule_hook_guards = True


def compiled(how: str) -> Any:
    model = tiny()
    if how == "torch.compile":
        return torch.compile(model, backend="eager")
    for part in {"model": [model], "decoder": [model.model], "blocks": decoder_blocks(model)}[how]:
        part.compile(backend="eager")
    return model


@torch.no_grad()
def forward_passes(how: str) -> None:
    fresh()
    v, ids = vector(), torch.tensor([PROMPTS[0]] * 2)
    model, slow = compiled(how), SteeringWrapper(tiny())
    plain = model(ids).logits
    wrapper = SteeringWrapper(model)
    others = [Intervention(v, 1, -1.0, where=everywhere), Intervention(v, 0, [0.0, 1.0])]  # each compiles once more
    for intervention in [Intervention(v, 0, 2.0), *(others if how == "blocks" else [])]:
        with slow.steer(intervention), wrapper.steer(intervention):
            close(wrapper(ids).logits, slow(ids).logits)
            assert not torch.equal(wrapper(ids).logits, plain)
        with wrapper.steer(Intervention(v, 0, 0.0)):
            assert torch.equal(wrapper(ids).logits, plain)
        assert torch.equal(wrapper(ids).logits, plain)


def generation_that_transformers_compiles_by_itself() -> None:
    fresh()
    compiling = CompileConfig(backend="eager", fullgraph=False)
    compiling._compile_all_devices = True
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    static = how | {"cache_implementation": "static", "compile_config": compiling}
    ids, wrapper = torch.tensor([PROMPTS[0]]), SteeringWrapper(tiny())
    plain = wrapper.generate(ids, **static)
    for multiplier in (3.0, -3.0):
        with wrapper.steer(Intervention(vector(), 0, multiplier)):
            written = wrapper.generate(ids, **static)
            assert torch.equal(written, wrapper.generate(ids, **how))
        assert not torch.equal(written, plain)
        assert torch.equal(wrapper.generate(ids, **static), plain)


def pools_of_a_compiled_model() -> None:
    """Rows that come and go, other multipliers and trials of the model cost no graph: prompts have one, tokens two."""
    fresh()
    model, graphs = tiny_model(), CompileCounter()
    model.compile(backend=graphs, dynamic=True, fullgraph=True)
    wrapper, slow = SteeringWrapper(model), SteeringWrapper(tiny_model())
    for multipliers in ([-1.5, 1.5], [-2.5, 1.0, 0.5]):
        settings = [*sweep(V, [1], multipliers), ()]
        assert can_pool(model, 26), "this pass is not compiled"
        assert pooled(wrapper, settings=settings) == by_hand(slow, settings=settings)
    assert graphs.frame_count == 3, graphs.frame_count


if __name__ == "__main__":
    for how in ("torch.compile", "model", "decoder", "blocks"):
        forward_passes(how)
    generation_that_transformers_compiles_by_itself()
    pools_of_a_compiled_model()
