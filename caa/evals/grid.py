"""EvalGrid: a plan and a judge in, a file of rows out that a killed job goes on with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from caa.evals.plan import GridPlan
from caa.evals.recording import notes_of, settings_of
from caa.evals.runner import Runner
from caa.evals.tasks import render_choices, render_prompts
from caa.files import only_writer
from caa.judges.base import Judge
from caa.runs.manifest import record_run
from caa.steering.intervention import Intervention
from caa.steering.wrapper import SteeringWrapper

ROWS, RECORD, LOCK = "rows.jsonl", "run.json", "run.lock"


@dataclass(frozen=True, eq=False)
class EvalGrid(GridPlan):
    """Every question of one behavior, under every finetune, layer and multiplier, and under every named setting.

    Several grids, of one behavior each, may write into one folder, one after the other, if they ask the same model in
    the same way.
    """

    judge: Judge | None = None
    """Who scores open answers."""
    batch_size: int = 16
    """Plain texts in a forward pass; a question with all its branches counts as many as it has tokens for."""
    answers_at_once: int | None = None
    """Open answers that are written at once, fewer where memory runs out; None takes up to 256, whose keys and values
    take at most half the memory of the weights, or 256 MB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "open" in self.tasks and self.judge is None:
            raise ValueError("the open task needs a judge: give judge=ExemplarJudge.fit(behavior), or leave it out")

    def run(self, wrapper: SteeringWrapper, tokenizer: Any, out: str | Path, progress: bool = True) -> int:
        """Ask whatever `<out>/rows.jsonl` does not hold yet; returns how many rows were added, 0 for a complete grid.

        Rows reach the disk after every batch, so a killed job goes on where it was. `<out>/run.json` says what they
        were measured with. Before anything is computed: FileExistsError if the rows there were measured otherwise,
        ValueError if the wrapper lacks an adapter or a layer, or if a question does not fit the model's context;
        BlockingIOError if another process is writing to the folder.
        """
        self._check(wrapper, tokenizer)
        out = Path(out)
        with only_writer(out / LOCK):
            sizes = self.batch_size, self.answers_at_once
            runner = Runner(self, wrapper, tokenizer, out / ROWS, self.judge, *sizes)
            self._record(runner, out / RECORD)
            with tqdm(total=len(runner.missing()), unit="row", disable=not progress) as runner.bar:
                for finetune, rounds in groupby(self.rounds(), key=lambda round: round.finetune):
                    if runner.lacks(finetune):
                        with wrapper.finetune(finetune):
                            for asked_together in rounds:
                                runner.ask(asked_together)
            return runner.added

    def _record(self, runner: Runner, path: Path) -> None:
        if runner.rows and not path.exists():
            raise FileExistsError(
                f"{runner.path} holds rows, but there is no {path.name} that says of what; choose a new folder"
            )
        settings = settings_of(self, self.judge, runner.wrapper, runner.tokenizer)
        notes = notes_of(self, runner.wrapper, runner.tokenizer, self.batch_size)
        record_run(path, settings, notes, {cell for cell, _ in runner.rows})

    def _check(self, wrapper: SteeringWrapper, tokenizer: Any) -> None:
        if wrapper.interventions:
            raise ValueError(
                "the wrapper is being steered already, so nothing would be unsteered: call unsteer() first"
            )
        strangers = [name for name in self.finetunes if name is not None and not wrapper.holds(name)]
        if strangers:
            cure = "The base is None." if strangers[0] == "none" else "Load it: wrapper.load_finetune(path, name)."
            raise ValueError(
                f"the model holds no finetune {strangers[0]!r}; it holds {wrapper.finetunes or 'none'}. {cure}"
            )
        # Steering complains of a layer or a width that is not the model's.
        places = product(self.given_vectors, self.layers)
        wrapper.steer(*(Intervention(vector, layer) for vector, layer in places)).close()
        for setting in self.settings.values():
            wrapper.steer(*setting).close()
        for prompt, task in product(self.system_prompts, self.tasks):
            chat = self.chat(tokenizer, prompt)
            if task == "open":
                render_prompts(wrapper, chat, self.questions(task), self.max_new_tokens)
            else:
                render_choices(wrapper, chat, self.questions(task))
