"""A model that is lent comes back whole: wherever a job fails, the model and the random numbers are what they were."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_lora, tiny_model, tiny_tokenizer

import caa
from caa import ContrastPair, Intervention, SteeringVector, SteeringWrapper
from caa.exports.targets import TARGETS
from caa.models.adapters import load_adapter
from caa.steering.scopes import everywhere
from caa.training.config import EMBEDDED, replace
from caa.training.examples import Example
from caa.training.sft import finetune_on

ROOM = str(Path(caa.__file__).parent)
UNDOING = {"restore", "close", "_take_off", "_install", "_put_in", "_let_act", "__exit__", "_bring_back", "paused"}
"""What puts things back is not failed: nobody could put back what that leaves."""
VECTOR = SteeringVector({layer: torch.ones(32) for layer in range(2)})


class FaultError(Exception):
    """A failure that nobody expects."""


class Failing:
    """While it is on, call number `at` of a function of caa fails; without a number they are counted."""

    def __init__(self, at=None):
        self.at, self.calls, self.where = at, 0, ""

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        code = frame.f_code
        started = frame.f_lasti <= 0 or code.co_code[frame.f_lasti] == 0
        ours = code.co_filename.startswith(ROOM) and "restore" not in code.co_filename and code.co_name not in UNDOING
        if event == "call" and ours and started and not code.co_name.startswith("<"):
            self.calls += 1
            if self.calls == self.at:
                self.where = f"{Path(code.co_filename).name}, {code.co_name}"
                raise FaultError(self.where)


def state(model):
    """All that a borrower could leave behind."""
    modules = dict(model.named_modules())
    hooks = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for n, m in modules.items()}
    return {
        "kinds": {name: type(module) for name, module in modules.items()},
        "hooks": hooks,
        "training": {name: module.training for name, module in modules.items()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "config": model.config.to_dict(),
        "adapters": (sorted(getattr(model, "peft_config", {})), getattr(model, "active_adapter", None)),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


def check_same(model, before, numbers, where):
    for name, value in state(model).items():
        assert value == before[name], f"{name} after a failure in {where}"
    now = model.state_dict()
    assert list(now) == list(numbers), where
    for name, tensor in numbers.items():
        assert torch.equal(now[name], tensor), f"{name} after a failure in {where}"


def steered_folder(folder):
    wrapper = SteeringWrapper(tiny_lora(tiny_model()), Intervention(VECTOR, 1, 0.5, where=everywhere))
    return wrapper.save_pretrained(folder)


def put_on(model, folder, out):
    load_adapter(model, folder, "new")


def wear_steered(model, folder, out):
    SteeringWrapper.from_pretrained(folder, model)


EXAMPLES = [Example(pair.question, pair.positive) for pair in [ContrastPair(f"{n}?", "yes", "no") for n in range(8)]]
QUICK = replace(EMBEDDED, max_steps=1, batch_size=2, rank=2, alpha=4)


def teach(model, folder, out):
    finetune_on(model, tiny_tokenizer(), EXAMPLES, out, QUICK, progress=False)


def export_to(target):
    def export(model, folder, out):
        wrapper = SteeringWrapper(model)
        with wrapper.steer(Intervention(VECTOR, 1, 0.5, where=everywhere)):
            TARGETS[target](wrapper, tiny_tokenizer(), out)

    return export


JOBS = {"load_adapter": put_on, "from_pretrained": wear_steered, "finetune": teach}
JOBS |= {f"export to {target}": export_to(target) for target in ("peft", "merged")}
POINTS = {"load_adapter": 8, "from_pretrained": 8, "finetune": 3, "export to peft": 3, "export to merged": 3}
"""Calls that are failed, spread over all of them."""


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_wherever_a_job_fails_the_model_is_what_it_was(job, tmp_path, record_property):
    folder = steered_folder(tmp_path / "steered")
    worn = [False] if job == "finetune" else [False, True]
    for wearing in worn if job == "load_adapter" else worn[-1:]:
        model = tiny_lora(tiny_model(), "worn", seed=1) if wearing else tiny_model()
        model.train()
        model.get_submodule("base_model.model.model" if wearing else "model").layers[0].eval()
        before, numbers = state(model), {name: value.clone() for name, value in model.state_dict().items()}
        with Failing() as whole:
            JOBS[job](tiny_lora(tiny_model(), "worn", seed=1) if wearing else tiny_model(), folder, tmp_path / "first")
        assert whole.calls > 10
        reached = set()
        for at in sorted({round(n) for n in np.linspace(1, whole.calls, POINTS[job])}):
            before["random"] = state(model)["random"]
            with Failing(at) as failing:
                try:
                    JOBS[job](model, folder, tmp_path / f"out-{at}")
                except Exception:
                    failing.failed = True
            if failing.where and getattr(failing, "failed", False):
                reached.add(failing.where)
                check_same(model, before, numbers, failing.where)
                assert not (tmp_path / f"out-{at}").exists(), failing.where
        assert len(reached) >= POINTS[job] // 2
        record_property("faults", len(reached))
        assert not list(tmp_path.glob(".writing-*"))
