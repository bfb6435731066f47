"""python -m benchmarks.versions OTHER: this checkout beside another one, such as an older version, by turns.

Each checkout has a process of its own, and both do the same jobs by what both can: `load_model`, `extract`,
`score_choices`, `answer_open` and `finetune`. Compared are CPU seconds; what they return must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SETTINGS = (3, 8, 9, 16, 17)
"""Settings of a table of open answers; 3 is what a grid asks by default."""
QUESTIONS = {"tiny-chat": 50, "smollm2": 8, "llama": 8}
"""Asked openly, by model."""
STEPS = 40
"""Of a finetune."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--jobs", nargs="+", default=["open 3", "sweep 48", "extract", "step"])
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for model in given.models:
            path = prepare(model, Path(folder))
            workers = {
                name: stack.enter_context(Worker(checkout, model, path))
                for name, checkout in {"here": ROOT, "other": given.other.resolve()}.items()
            }
            for job in given.jobs:
                print(json.dumps(compare(workers, model, job, given.repeats)), flush=True)
            stack.close()


def prepare(model: str, folder: Path) -> str:
    """A name or a path that every version's `load_model` takes."""
    if model == "tiny-chat":
        return model
    from benchmarks.subjects import FULL, random_llama
    from caa import load_model

    network, tokenizer = load_model("smollm2" if model == "smollm2" else "tiny-chat", device="cpu")
    if model == "llama":
        network = random_llama(FULL.width, FULL.layers, len(tokenizer))
    network.save_pretrained(folder / model)
    tokenizer.save_pretrained(folder / model)
    return str(folder / model)


def compare(workers: dict[str, Worker], model: str, job: str, repeats: int) -> dict[str, Any]:
    """Medians of CPU seconds and of the ratios of neighbors, after one run each that warms up."""
    digests = {name: worker.run(job)[1] for name, worker in workers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(repeats):
        for name in list(workers)[:: 1 if turn % 2 else -1]:
            seconds[name].append(workers[name].run(job)[0])
    here, other = seconds["here"], seconds["other"]
    ratios = [before / now for now, before in zip(here, other, strict=True)]
    equal = digests["here"] == digests["other"]
    return {
        "model": model,
        "job": job,
        "equal": equal,
        "seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "other / here": round(statistics.median(ratios), 3),
        "all": {name: [round(time, 3) for time in times] for name, times in seconds.items()},
    }


class Worker:
    """A process that imports one checkout's `caa`, loads one model and does jobs."""

    def __init__(self, checkout: Path, model: str, path: str) -> None:
        command = [sys.executable, "-P", __file__, model, path]
        paths = os.pathsep.join([str(checkout), str(ROOT)])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CAA_WORKER": "1"}
        self.process = subprocess.Popen(
            command, env=environment, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, job: str) -> tuple[float, str]:
        """CPU seconds, and a digest of what came out."""
        assert self.process.stdin
        assert self.process.stdout
        print(job, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that does {job!r} ended")
        seconds, digest = json.loads(line)
        return seconds, digest

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
        job, _, number = line.strip().partition(" ")
        run: Callable[..., tuple[float | None, Any]] = getattr(jobs, job)
        start = time.process_time()
        seconds, result = run(*map(int, filter(None, [number])))
        elapsed = time.process_time() - start if seconds is None else seconds
        print(json.dumps([elapsed, hashlib.sha256(repr(result).encode()).hexdigest()]), file=answers, flush=True)


class Jobs:
    """What is done with one model; each job returns its seconds, None for all of them, and what is compared."""

    def __init__(self, name: str, path: str) -> None:
        from caa import SteeringWrapper, extract, load_behavior, load_model

        self.behavior = load_behavior("myopic_reward")
        self.model, self.tokenizer = load_model(path, device="cpu")
        self.wrapper = SteeringWrapper(self.model)
        self.vector = extract(self.model, self.tokenizer, self.behavior.pairs[:8])
        self.questions = self.behavior.open_questions[: QUESTIONS[name]]

    def _settings(self, layers: Sequence[int], multipliers: Sequence[float]) -> list[Any]:
        from caa import Intervention

        return [(Intervention(self.vector, layer, m),) if m else () for layer in layers for m in multipliers]

    def open(self, number: int) -> tuple[None, Any]:
        """Open answers of one layer under so many multipliers around 0, in batches as a grid takes them."""
        from caa.evals.tasks import answer_open

        multipliers = [round((n - number // 2) / max(1, number // 2) * 0.3, 4) for n in range(number)]
        middle = self.vector.layers[len(self.vector.layers) // 2]
        settings = self._settings([middle], multipliers)
        return None, answer_open(self.wrapper, self.tokenizer, self.questions, settings)

    def sweep(self, number: int) -> tuple[None, Any]:
        """A/B questions under so many settings of all layers."""
        from caa.evals.tasks import score_choices

        layers = self.vector.layers
        multipliers = [0.1 * (n + 1) for n in range(number // len(layers))]
        settings = self._settings(layers, multipliers)
        scores = score_choices(self.wrapper, self.tokenizer, self.behavior.ab_questions[:8], settings)
        return None, [round(score.score, 4) for score in scores]

    def extract(self) -> tuple[None, Any]:
        from caa import extract

        extract(self.model, self.tokenizer, self.behavior.pairs[:64])
        return None, ""

    def step(self) -> tuple[float, Any]:
        """The median step of a finetune as the demo does it: the time from one optimizer's step to the next."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        try:
            from caa.training.config import EMBEDDED
            from caa.training.sft import finetune
        except ImportError:
            from caa.finetune.config import EMBEDDED  # type: ignore[no-redef]
            from caa.finetune.lora import finetune  # type: ignore[no-redef]
        from dataclasses import replace

        times: list[float] = []
        handle = register_optimizer_step_post_hook(lambda *_: times.append(time.process_time()))
        try:
            with tempfile.TemporaryDirectory() as folder:
                config = replace(EMBEDDED, max_steps=STEPS)
                out = Path(folder) / "x"
                finetune(self.model, self.tokenizer, self.behavior, "positive", out, config, progress=False)
        finally:
            handle.remove()
        steps = [end - start for start, end in pairwise(times)]
        return statistics.median(steps), ""


if __name__ == "__main__":
    work(*sys.argv[1:]) if os.environ.get("CAA_WORKER") else main()
