"""python -m benchmarks.versions OTHER: this checkout beside another one, such as an older version, by turns.

Each checkout has a process of its own, and both do the same jobs by what both can do: `load_model`, `extract`,
`score_choices`, `answer_open` and `finetune`. What they return is compared, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HERE, OTHER = "this checkout", "the other one"
QUESTIONS = {"tiny-chat": 50, "smollm2": 8, "llama": 8}
"""Asked openly, by model: the embedded one, SmolLM2-135M (in a package of PyPI), a random Llama of 16 x 512."""
JOBS = ("open 3", "open 8", "open 9", "open 16", "open 17", "sweep 48", "extract", "step")
"""With how many settings, where there are any; 3 is what a grid asks by default."""
STEPS = 40
"""Of a finetune."""


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks.machine import machine
    from benchmarks.report import new_stem, write

    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--models", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--jobs", nargs="+", default=JOBS, metavar="JOB", help=", ".join(map(repr, JOBS)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    given = parser.parse_args(arguments)
    record, reports = machine() | {"threads": 1}, []
    stem = new_stem(given.out, record | {"slug": f"{record['slug']}-versions"})
    for model in given.models:
        with tempfile.TemporaryDirectory() as folder:
            path = prepare(model, Path(folder))
            with Worker(ROOT, model, path) as here, Worker(given.other.resolve(), model, path) as other:
                for job in given.jobs:
                    reports.append(compare({HERE: here, OTHER: other}, model, job, given.repeats))
                    print(reports[-1].markdown(), flush=True)
                    write(stem, record, reports)


def prepare(model: str, folder: Path) -> str:
    """A name or a path that every version's `load_model` takes."""
    if model == "tiny-chat":
        return model
    from benchmarks.subjects import FULL, random_llama
    from caa import load_model

    network, tokenizer = load_model("smollm2" if model == "smollm2" else "tiny-chat", device="cpu")
    if model == "llama":
        network = random_llama(FULL.width, FULL.layers, len(tokenizer))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def compare(workers: dict[str, Worker], model: str, job: str, repeats: int) -> Any:
    """After one run each that warms up. A report's claims are of CPU seconds, round by round."""
    from benchmarks.harness import Timing
    from benchmarks.report import Claim, Report

    results = [worker.run(job)["result"] for worker in workers.values()]
    runs: dict[str, list[Any]] = {name: [] for name in workers}
    for turn in range(repeats):
        for name in list(workers)[:: 1 if turn % 2 else -1]:
            runs[name].append(workers[name].run(job))
    timings = [
        Timing(name, tuple(run["seconds"] for run in rounds), cpu=tuple(run["cpu"] for run in rounds))
        for name, rounds in runs.items()
    ]
    report = Report(job, model, timings)
    ratios = [before["cpu"] / now["cpu"] for now, before in zip(*runs.values(), strict=True)]
    report.claims.append(Claim(f"{OTHER} / {HERE}, CPU, median of the rounds", statistics.median(ratios)))
    report.claims.append(Claim("share of equal results", share_of_equal(*results)))
    return report


def share_of_equal(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Texts to the letter, numbers to a hundred-thousandth.

    >>> share_of_equal(["a", 1.0], ["b", 1.000001])
    0.5
    """
    pairs = list(zip(one, other, strict=True))
    equal = [a == b if isinstance(a, str) else abs(a - b) < 1e-5 for a, b in pairs]
    return float(sum(equal) / len(equal))


class Worker:
    """A process that imports one checkout's `caa`, loads one model and does jobs on one thread."""

    def __init__(self, checkout: Path, model: str, path: str) -> None:
        command = [sys.executable, "-P", __file__, model, path]
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CAA_WORKER": "1"}
        self.process = subprocess.Popen(
            command, env=environment, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, job: str) -> dict[str, Any]:
        """Seconds on the clock, CPU seconds, and a list of what came out."""
        print(job, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the process that does {job!r} in {self.process.args[-2:]} ended; what it says is above"
            )
        done: dict[str, Any] = json.loads(line)
        return done

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()


# In the worker's process, with the caa of its checkout.


def work(name: str, path: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    jobs = Jobs(name, path)
    for line in sys.stdin:
        print(json.dumps(jobs.run(line.strip())), file=answers, flush=True)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def training() -> tuple[Any, Any]:
    """The settings for small models and `finetune`, where this version or 0.1 has them."""
    for config, trainer in (("caa.training.config", "caa.training.sft"), ("caa.finetune.config", "caa.finetune.lora")):
        with suppress(ModuleNotFoundError):
            return import_module(config).EMBEDDED, import_module(trainer).finetune
    raise ModuleNotFoundError("this checkout has no finetune where the versions so far had it")


class Jobs:
    """What is done with one model. Each job returns what is compared."""

    seconds: list[float] | None = None
    """On the clock and of the CPU, of a job whose time is not all that it took."""

    def __init__(self, name: str, path: str) -> None:
        from caa import SteeringWrapper, extract, load_behavior, load_model

        self.behavior = load_behavior("myopic_reward")
        self.model, self.tokenizer = load_model(path, device="cpu")
        self.wrapper = SteeringWrapper(self.model)
        self.vector = extract(self.model, self.tokenizer, self.behavior.pairs[:8])
        self.questions = self.behavior.open_questions[: QUESTIONS[name]]

    def run(self, job: str) -> dict[str, Any]:
        """What a `Worker` gives for "open 3": the job's name and its number, if it has one."""
        name, _, number = job.partition(" ")
        start, self.seconds = clocks(), None
        result = getattr(self, name)(*map(int, filter(None, [number])))
        seconds, cpu = self.seconds or [end - begin for begin, end in zip(start, clocks(), strict=True)]
        return {"seconds": seconds, "cpu": cpu, "result": result}

    def _settings(self, layers: Sequence[int], multipliers: Sequence[float]) -> list[Any]:
        from caa import Intervention

        return [(Intervention(self.vector, layer, m),) if m else () for layer in layers for m in multipliers]

    def open(self, number: int) -> list[str]:
        """Open answers of one layer under so many multipliers around 0, in batches as a grid takes them."""
        from caa.evals.tasks import answer_open

        multipliers = [round((n - number // 2) / max(1, number // 2) * 0.3, 4) for n in range(number)]
        middle = self.vector.layers[len(self.vector.layers) // 2]
        return list(answer_open(self.wrapper, self.tokenizer, self.questions, self._settings([middle], multipliers)))

    def sweep(self, number: int) -> list[float]:
        """A/B questions under so many settings of all layers."""
        from caa.evals.tasks import score_choices

        layers = self.vector.layers
        multipliers = [0.1 * (n + 1) for n in range(-(-number // len(layers)))]
        settings = self._settings(layers, multipliers)[:number]
        scores = score_choices(self.wrapper, self.tokenizer, self.behavior.ab_questions[:8], settings)
        return [score.score for score in scores]

    def extract(self) -> list[float]:
        from caa import extract

        vector = extract(self.model, self.tokenizer, self.behavior.pairs[:64])
        return [float(vector.at(layer).norm() / self.vector.at(layer).norm()) for layer in vector.layers]

    def step(self) -> list[float]:
        """The median step of a finetune as the demo does it: the time from one optimizer's step to the next."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        embedded, finetune = training()
        times: list[tuple[float, float]] = []
        handle = register_optimizer_step_post_hook(lambda *_: times.append(clocks()))
        try:
            with tempfile.TemporaryDirectory() as folder:
                config = replace(embedded, max_steps=STEPS)
                out = Path(folder) / "x"
                finetune(self.model, self.tokenizer, self.behavior, "positive", out, config, progress=False)
        finally:
            handle.remove()
        steps = [[end - begin for begin, end in zip(*pair, strict=True)] for pair in pairwise(times)]
        self.seconds = [statistics.median(kind) for kind in zip(*steps, strict=True)]
        return [float(len(steps))]


if __name__ == "__main__":
    work(*sys.argv[1:]) if os.environ.get("CAA_WORKER") else main()
