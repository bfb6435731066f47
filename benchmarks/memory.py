"""python -m benchmarks.memory 10000: the memory that reading so many pairs takes, in a process of its own, as JSON.

Run by `memory()`; a second process is needed because a process does not give back all that it took.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, cycle, islice
from threading import Event, Thread

import psutil
from transformers import AutoConfig

from benchmarks.machine import ROOT
from benchmarks.report import Claim, Report
from benchmarks.subjects import Size
from caa import ContrastPair, extract, load_behavior, load_model
from caa.data.sources import BUILTIN
from caa.models.names import model_path

MIB = 2**20
GROWTH = 16
"""MiB by which the peak may differ between few pairs and many: what an allocator's fragments come to."""


def memory(size: Size) -> Report:
    few, many = size.memory_pairs
    report = Report("Memory of extraction", f"tiny-chat, {few} and {many} pairs, beside model and pairs themselves")
    low, high = (_in_a_process(count) for count in (few, many))
    report.claims = [
        Claim(f"{few} pairs: MiB at the peak, above those before", low),
        Claim(f"{many} pairs: MiB at the peak, above those before", high),
        Claim("growth in MiB", high - low, GROWTH),
        Claim(f"for scale: MiB that the activations of {many} pairs would take together", stored(many)),
    ]
    return report


def many_pairs(count: int) -> list[ContrastPair]:
    """Built-in pairs of all behaviors by turns, numbered, so that no two of them are the same."""
    by_turns = chain.from_iterable(zip(*(load_behavior(name).pairs for name in BUILTIN), strict=False))
    named = enumerate(islice(cycle(by_turns), count))
    return [ContrastPair(f"Case {n}. {pair.question}", pair.positive, pair.negative) for n, pair in named]


def stored(pairs: int) -> float:
    """MiB of two float32 vectors a pair and layer."""
    config = AutoConfig.from_pretrained(model_path("tiny-chat"))
    return pairs * 2 * config.num_hidden_layers * config.hidden_size * 4 / MIB


def _in_a_process(pairs: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", str(pairs)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])["mib"]


def measured(count: int) -> float:
    """MiB at the peak above those before the work began, with the model and the pairs in memory already."""
    model, tokenizer = load_model("tiny-chat", device="cpu")
    pairs = many_pairs(count)
    extract(model, tokenizer, many_pairs(100))  # whatever is set up once
    before = psutil.Process().memory_info().rss
    with watched() as sizes:
        extract(model, tokenizer, pairs)
    return (max(sizes) - before) / MIB


@contextmanager
def watched() -> Iterator[list[int]]:
    """The size of this process in bytes, every other millisecond. What the system calls its peak began at its start."""
    process, done = psutil.Process(), Event()
    sizes = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.002):
            sizes.append(process.memory_info().rss)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    print(json.dumps({"mib": measured(int(sys.argv[1]))}))
