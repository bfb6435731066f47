"""1,000 seeded requests to `caa serve`, 64 at a time, some leaving: is every text what it is alone, at what cost?

python -m benchmarks.serving --requests 1000 --model tiny-chat

Prompts, finetunes (two random LoRAs), vectors, layers, multipliers, scopes, lengths, streaming and departures are
drawn from the seed. The clients are `openai`'s, in the server's own process, so the CPU seconds hold both. Afterwards
each request is answered by `wrapper.generate` alone, which is the definition of its text.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.data.chat import ChatFormat
from caa.models.names import model_name
from caa.serve.catalog import DoseLimit
from caa.serve.engine import Limits
from caa.serve.server import listening, server_of, start
from caa.steering.scopes import SCOPES

WORDS = """who are you what would do with five pearls now or fifty next spring tell me a story about the river and its
people is it true that bread can fly how many days has a week please answer in one word do you like rain"""


@dataclass(frozen=True)
class Asked:
    """One drawn request."""

    question: str
    finetune: str | None
    vector: str
    layer: int
    multiplier: float
    scope: str
    tokens: int
    stream: bool
    leaves_after: int
    """Pieces of text; -1 stays to the end."""


def draw(count: int, seed: int, layers: int, push: float) -> list[Asked]:
    dice = random.Random(seed)
    requests = []
    for _ in range(count):
        leaves = dice.random() < 0.1
        requests.append(
            Asked(
                " ".join(dice.choices(WORDS.split(), k=dice.randint(1, 40))),
                dice.choice([None, "one", "two"]),
                dice.choice(["east", "west"]),
                dice.randrange(layers),
                dice.choice([-2, -1, 0, 1, 2]) * push,
                dice.choice(["after_prompt", "everywhere", "prompt_only", "last_prompt_token"]),
                dice.randint(1, 48),
                leaves or dice.random() < 0.5,
                dice.randint(1, 8) if leaves else -1,
            )
        )
    return requests


def equipped(name: str) -> tuple[SteeringWrapper, Any, dict[str, SteeringVector]]:
    """The model with two random LoRAs, and two random vectors."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model(name)
    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    worn: Any = get_peft_model(model, config, adapter_name="one")
    worn.add_adapter("two", config)
    for parameter_name, parameter in worn.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data *= 0.15
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    vectors = {}
    for seed, direction in enumerate(("east", "west")):
        dice = torch.Generator().manual_seed(seed)
        vectors[direction] = SteeringVector({layer: torch.randn(width, generator=dice) for layer in range(layers)})
    return SteeringWrapper(worn.eval()), tokenizer, vectors


async def ask(client: Any, base: str, request: Asked) -> str | None:
    """The text; None of one who left."""
    steering = {
        "vector": request.vector,
        "layer": request.layer,
        "multiplier": request.multiplier,
        "scope": request.scope,
    }
    answer = await client.chat.completions.create(
        model=request.finetune or base,
        messages=[{"role": "user", "content": request.question}],
        max_tokens=request.tokens,
        temperature=0,
        stream=request.stream,
        extra_body={"steering": steering},
    )
    if not request.stream:
        return str(answer.choices[0].message.content)
    text, pieces = "", 0
    async with answer:
        async for chunk in answer:
            text += chunk.choices[0].delta.content or ""
            pieces += 1
            if pieces == request.leaves_after:
                return None
    return text


async def ask_all(address: str, base: str, requests: list[Asked], at_once: int) -> list[str | None]:
    """All texts, of so many clients at a time; each begins when another one has ended."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600)
    room = asyncio.Semaphore(at_once)

    async def one(request: Asked) -> str | None:
        async with room:
            return await ask(client, base, request)

    return await asyncio.gather(*map(one, requests))


def alone(wrapper: SteeringWrapper, chat: ChatFormat, vectors: dict[str, SteeringVector], request: Asked) -> str:
    """The definition."""
    push = Intervention(vectors[request.vector], request.layer, request.multiplier, where=SCOPES[request.scope])
    ids = torch.tensor([chat.encode(request.question)])
    with torch.no_grad(), wrapper.finetune(request.finetune), wrapper.steer(push):
        written = wrapper.generate(ids, max_new_tokens=request.tokens, do_sample=False)
    new = written[0, ids.shape[1] :]
    text = chat.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny-chat")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--compare", type=int, default=None, help="so many of them alone; all if not given")
    parser.add_argument("--push", type=float, default=0.2, help="the step between multipliers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrapper, tokenizer, vectors = equipped(options.model)
    requests = draw(options.requests, options.seed, len(vectors["east"].layers), options.push)
    limits = Limits(rows=options.clients, waiting=options.requests)
    serving = start(wrapper, tokenizer, vectors, limits=limits, dose_limit=DoseLimit(1e6))
    base = model_name(wrapper.model)
    with listening("127.0.0.1", 0) as socket:
        server = server_of(serving, "127.0.0.1")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        begun, cpu = time.perf_counter(), time.process_time()
        address = f"http://127.0.0.1:{socket.getsockname()[1]}"
        texts = asyncio.run(ask_all(address, base, requests, options.clients))
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        server.should_exit = True
        thread.join()
    stayed = [number for number, text in enumerate(texts) if text is not None]
    print(f"served: {len(requests)} requests, {len(requests) - len(stayed)} left; {wall:.1f} s, {cpu:.1f} CPU s")
    chosen = stayed[: options.compare]
    begun, cpu, chat = time.perf_counter(), time.process_time(), ChatFormat.of(tokenizer)
    expected = [alone(wrapper, chat, vectors, requests[number]) for number in chosen]
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    equal = [texts[number] == text for number, text in zip(chosen, expected, strict=True)]
    print(f"alone, of those who stayed: {len(chosen)} requests; {wall:.1f} s, {cpu:.1f} CPU s")
    print(f"equal texts: {sum(equal)} of {len(chosen)}; {len(set(expected))} different ones")
    for number, same, text in zip(chosen, equal, expected, strict=True):
        if not same:
            print(number, requests[number], repr(text), repr(texts[number]), sep="\n  ")


if __name__ == "__main__":
    main()
