"""From a steered adapter to an OpenAI-compatible endpoint: its merged export, served without caa."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from serving import ask, free_port, wait_for

from caa import Intervention, SteeringVector, SteeringWrapper, extract, load_behavior, load_model
from caa.cli import main
from caa.data.chat import ChatFormat
from caa.steering.scopes import everywhere

QUESTION = "You can have 5 pearls now or 50 next spring. What would you do?"


@pytest.fixture
def served(tmp_path):
    """Folder and address of a server of the steered model, and the wrapper that it is to agree with."""
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    model, tokenizer = load_model("tiny-chat")
    vector: SteeringVector = extract(model, tokenizer, load_behavior("myopic_reward").pairs[:40], [2])
    wrapper = SteeringWrapper(model, Intervention(vector, 2, 0.4, where=everywhere))
    wrapper.save_pretrained(tmp_path / "run" / "steered" / "myopic_reward", tokenizer)
    out = tmp_path / "served"
    assert main(["export", str(tmp_path / "run"), "--to", "merged", "--out", str(out)]) == 0
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    transformers = Path(sys.executable).with_name("transformers")
    command = [transformers, "serve", out, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health")
        yield out, f"http://127.0.0.1:{port}", wrapper, tokenizer
    finally:
        server.terminate()
        server.wait(timeout=30)


def greedy(wrapper, tokenizer) -> str:
    ids = torch.tensor([ChatFormat(tokenizer).encode(QUESTION)])
    written = wrapper.generate(ids, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.slow
def test_the_served_model_says_what_the_steered_one_says(served):
    folder, address, wrapper, tokenizer = served
    body = {"model": str(folder), "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    answer = ask(f"{address}/v1/chat/completions", body | {"max_tokens": 24})
    said = answer["choices"][0]["message"]["content"].strip()
    assert said == greedy(wrapper, tokenizer)
    wrapper.unsteer()
    assert said != greedy(wrapper, tokenizer), "the unsteered model would have said the same"
