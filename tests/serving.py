"""A server in a thread of this process, on tiny-chat with two LoRAs, two vectors and a steered adapter.

With it, how the servers of other processes are asked."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.steering.scopes import everywhere


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(address: str, body: Any = None) -> Any:
    """What a server of another process answers, as json; an empty answer is None."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read() or b"null")


def wait_for(server: subprocess.Popen, address: str) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server stopped"
        try:
            ask(address)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise TimeoutError(f"no answer from {address}")


def vector(seed: int, width: int = 128, layers: int = 4, norm: float = 1.0) -> SteeringVector:
    draw = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(width, generator=draw) * norm for layer in range(layers)})


def small_loras(model: Any, names=("one", "two")) -> Any:
    """The model with LoRAs that change what it says and leave it talking."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.15
    return model.eval()


def equipment(folder: Path) -> tuple[SteeringWrapper, Any, dict[str, SteeringVector], Path]:
    """Wrapper, tokenizer, vectors, and the folder of a steered adapter."""
    model, tokenizer = load_model("tiny-chat")
    wrapper = SteeringWrapper(small_loras(model))
    width = model.config.hidden_size
    vectors = {name: vector(seed, width, model.config.num_hidden_layers) for name, seed in (("east", 1), ("west", 2))}
    with wrapper.finetune("two"), wrapper.steer(Intervention(vectors["east"], 1, 0.2, where=everywhere)):
        wrapper.save_pretrained(folder / "steered", tokenizer)
    return wrapper, tokenizer, vectors, folder / "steered"


@contextlib.contextmanager
def running(serving: Any) -> Iterator[str]:
    """The address of a server of it."""
    from caa.serve.server import listening, server_of

    with listening("127.0.0.1", 0) as socket:
        server = server_of(serving, "127.0.0.1")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server does not stop"
