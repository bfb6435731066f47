"""How fast a server with OpenAI's interface answers the same questions one by one, and by many clients at once.

python -m benchmarks.load --address http://127.0.0.1:8000/v1 --model smollm2 --clients 1 16 64 --pid PID

Greedy chat answers to the open questions of the built-in behaviors. `--pid` is the server's process: its CPU seconds
are told beside the wall time, which other work on the machine stretches. `--steering` is added to each request.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from caa.data.sources import BUILTIN, load_behavior

TICKS = os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """What so many clients got."""

    texts: list[str]
    tokens: int
    wall: float
    cpu: float
    """CPU seconds of the server; 0 where its process is not known."""


def questions(count: int) -> list[str]:
    """As many as are wanted; they begin again where they are fewer."""
    texts = [question.text for name in BUILTIN for question in load_behavior(name).open_questions]
    return (texts * (count // len(texts) + 1))[:count]


def cpu_seconds(pid: int | None) -> float:
    """Of all threads of a process so far."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def answers(client: Any, options: argparse.Namespace, texts: Sequence[str], at_once: int) -> list[Any]:
    """Each client asks again when it has been answered."""
    room = asyncio.Semaphore(at_once)

    async def one(text: str) -> Any:
        async with room:
            return await client.chat.completions.create(
                model=options.model,
                messages=[{"role": "user", "content": text}],
                max_tokens=options.tokens,
                temperature=0,
                extra_body={"steering": options.steering} if options.steering else {},
            )

    return list(await asyncio.gather(*map(one, texts)))


async def measured(options: argparse.Namespace, texts: Sequence[str], at_once: int) -> Round:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=options.address, api_key="none", max_retries=0, timeout=3600) as client:
        begun, cpu = time.perf_counter(), cpu_seconds(options.pid)
        completions = await answers(client, options, texts, at_once)
        wall, cpu = time.perf_counter() - begun, cpu_seconds(options.pid) - cpu
    tokens = sum(completion.usage.completion_tokens for completion in completions)
    return Round([str(completion.choices[0].message.content) for completion in completions], tokens, wall, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--steering", type=json.loads)
    parser.add_argument("--pid", type=int)
    options = parser.parse_args()
    texts = questions(options.requests)
    asyncio.run(measured(options, texts[:2], 1))  # the first requests load and compile
    for at_once in options.clients:
        done = asyncio.run(measured(options, texts, at_once))
        digest = hashlib.sha256("\0".join(done.texts).encode()).hexdigest()[:8]
        print(
            f"{at_once} at once: {done.tokens} tokens, {done.wall:.1f} s, {done.cpu:.1f} CPU s, "
            f"{done.tokens / done.wall:.0f} tokens/s, texts {digest}",
            flush=True,
        )


if __name__ == "__main__":
    main()
