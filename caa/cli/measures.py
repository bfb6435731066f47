"""Commands that measure what steering does besides: `caa compare`, `caa damage`, `caa lm-eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caa.cli.console import (
    Dtype,
    finetunes_of,
    interval,
    load_wrapper,
    print_summary,
    print_tables,
    refuse_to_overwrite,
    show,
)
from caa.judges.config import OFFLINE, JudgeConfig

PAIRWISE = "pairwise"
"""The folder, in a run's own, of the rows of its comparisons."""


def compare(run: Path, judge: JudgeConfig = OFFLINE, behaviors: list[str] | None = None) -> None:
    """Have a judge compare each steered answer of a finished run with the unsteered one to the same question.

    A language model is asked in both orders which of the two shows more of the behavior: 5 is a tie, 10 the steered
    answer. Rows and tables are written to the folder `pairwise` in the run's own.

    Args:
        run: the folder of a run with open answers.
        judge: who compares, e.g. --judge.kind endpoint --judge.model gpt-4o-mini, or --judge.kind local.
        behaviors: paths of the run's behaviors, where they are neither built in nor known from its experiment.yaml.
    """
    from caa import load_behavior
    from caa import preflight as check
    from caa.experiment import behaviors_of_run
    from caa.files import replacing
    from caa.judges.build import make_asker
    from caa.judges.pairwise import against_unsteered
    from caa.reports.tables import write_report
    from caa.runs.folder import read_run

    rows = read_run(run).rows
    named = {row.cell.behavior: None for row in rows if row.cell.task == "open"}
    if not named:
        raise ValueError(f"{run} holds no open answers to compare; ask them: --tasks open")
    given = {behavior.name: behavior for behavior in map(load_behavior, behaviors or ())}
    known = given | behaviors_of_run(run, [name for name in named if name not in given])
    if judge.kind not in ("endpoint", "local"):
        raise ValueError("answers are compared by a language model: --judge.kind endpoint or local, and --judge.model")
    check.refuse(problem for name in named for problem in check.judge_problems(judge, known[name]))
    reply = "expected" if judge.kind == "local" else judge.reply
    asker = make_asker(judge, run)
    compared = [row for name in named for row in against_unsteered(rows, known[name], asker, reply)]
    if not compared:
        raise ValueError(f"{run} holds no steered answer beside an unsteered one; ask multiplier 0 too")
    with replacing(run / PAIRWISE / "rows.jsonl") as scratch:
        scratch.write_text("".join(f"{row.to_json()}\n" for row in compared), encoding="utf-8")
    print_tables(write_report(run / PAIRWISE))
    print_summary(run)


def damage(
    behavior: str,
    vector: Path,
    layer: int,
    doses: tuple[float, ...] = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0),
    model: str = "tiny-chat",
    adapter: Path | None = None,
    facts: str = "facts",
    limit: int | None = 20,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Print what a vector does at growing doses, beside what it breaks: to see where an overdose begins.

    By dose, the norm of the push divided by that of the residual stream: the probability of the matching answer; the
    perplexity of the steered answers for the unsteered model, and how many of them loop; and the divergence (KL, in
    nats) of what it would say first to knowledge questions, which have nothing to do with the behavior.

    Args:
        behavior: a built-in behavior, or a path to one of your own.
        vector: a file that `caa extract` wrote.
        layer: the layer to steer (output of that block, counted from 0).
        doses: the relative doses to try.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        adapter: a LoRA adapter to wear.
        facts: the questions that have nothing to do with it: facts (built in), or a file; see `caa grid --help`.
        limit: ask only the first questions of each kind; null asks all.
        max_new_tokens: longest answer.
        batch_size: rows in one forward pass.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa import Intervention, SteeringVector, load_behavior
    from caa import preflight as check
    from caa.data.behaviors import stem
    from caa.data.chat import ChatFormat
    from caa.data.sources import load_facts
    from caa.evals.damage import divergences
    from caa.evals.transfer import dose_response
    from caa.models.names import adapter_name

    loaded, direction = load_behavior(behavior).first_questions(limit), SteeringVector.load(vector)
    prompts = [stem(question.text) for question in load_facts(facts)[:limit]]  # with options, all begin with "("
    worn = {adapter_name(adapter): adapter} if adapter else {}
    problems = [*check.model_problems(model, dtype, device, [layer]), *check.adapter_problems(worn, model)]
    problems += check.vector_problems(direction, [layer], model)
    check.refuse([*problems, *check.behavior_problems(loaded, ("ab", "open"))])
    wrapper, tokenizer = load_wrapper(model, worn, dtype, device)
    chat = ChatFormat(tokenizer, arguments=template_arguments or {})
    responses = dose_response(
        wrapper,
        chat,
        loaded,
        direction,
        layer,
        doses,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    settings = [(Intervention(direction, layer, response.multiplier),) for response in responses]
    moved = divergences(wrapper, chat, prompts, settings, batch_size=batch_size)
    _print_damage(responses, moved)


def _print_damage(responses: Sequence[Any], moved: Sequence[Any]) -> None:
    """Dose by dose; `moved` are the divergences, those of each prompt one after the other."""
    from rich import box
    from rich.table import Table

    from caa.reports.statistics import mean_interval

    table = Table("dose", box=box.SIMPLE_HEAD)
    for column in ("multiplier", "matching answer", "perplexity of answers", "that loop", "divergence elsewhere"):
        table.add_column(column, justify="right")
    lines: list[dict[str, float]] = []
    for number, response in enumerate(responses):
        score, divergence = mean_interval(response.scores), mean_interval(moved[number :: len(responses)])
        loops = f"{response.loops} of {response.answers}"
        cells = (f"{response.multiplier:+.3g}", f"{score.mean:.2f} ±{score.half_width:.2f}")
        table.add_row(f"{response.dose:+g}", *cells, f"{response.perplexity:.1f}", loops, f"{divergence.mean:.3f}")
        counts = {"perplexity": response.perplexity, "loops": response.loops, "answers": response.answers}
        intervals = interval("matching answer", score) | interval("divergence elsewhere", divergence)
        lines.append({"dose": response.dose, "multiplier": response.multiplier, **intervals, **counts})
    show(table, lines)


def lm_eval_(
    tasks: list[str],
    out: Path,
    model: str = "tiny-chat",
    vector: Path | None = None,
    layer: int | None = None,
    multipliers: tuple[float, ...] | None = None,
    adapters: dict[str, Path] | None = None,
    metric: str = "acc",
    task_folder: Path | None = None,
    chat: bool = False,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Run tasks of lm-evaluation-harness on the live model, under every finetune and multiplier.

    Needs the extra: pip install 'caa[lm-eval]'. Without a vector only the finetunes are compared.

    Args:
        tasks: names of tasks, as `lm-eval ls tasks` lists them.
        out: a new folder for rows and tables.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        vector: a file that `caa extract` wrote; needs a layer and multipliers.
        layer: the layer to steer (output of that block, counted from 0).
        multipliers: how often the vector is added; `caa extract` prints what multiplier 1 is.
        adapters: finetunes by name, e.g. --adapters.positive runs/x/positive: adapters or full checkpoints of the same
            base; the base is always asked.
        metric: the number that is reported; a task without it is an error.
        task_folder: where tasks of your own are described (yaml).
        chat: whether the model's chat template is put around the questions.
        shots: solved examples in front of each question; null is the task's own number.
        limit: ask only the first questions of each task.
        batch_size: rows in one forward pass.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from importlib.util import find_spec

    from caa import Intervention, SteeringVector
    from caa import preflight as check
    from caa.data.chat import ChatFormat
    from caa.evals.lm_eval import harness_rows
    from caa.reports.tables import write_report
    from caa.runs.rows import Cell, append_rows

    if not find_spec("lm_eval"):
        raise ImportError("this needs lm-evaluation-harness: pip install 'caa[lm-eval]'")
    if not (vector is None) == (layer is None) == (multipliers is None):
        raise ValueError("say how to steer, by --vector, --layer and --multipliers, or name none of the three")
    refuse_to_overwrite(out / "rows.jsonl")
    direction = SteeringVector.load(vector) if vector else None
    layers: Sequence[int] = [] if layer is None else [layer]
    check.refuse(check.vector_problems(direction, layers, model) if direction else ())
    wrapper, tokenizer = load_wrapper(model, adapters or {}, dtype, device)
    name = (direction.source.behavior if direction else "") or "no vector"
    settings: dict[Cell, tuple[Intervention, ...]] = {}
    for finetune in finetunes_of(model, adapters or {}):
        for multiplier in multipliers or (0.0,):
            cell = Cell(name, "", finetune, layer or 0, multiplier)
            settings[cell] = (Intervention(direction, layer or 0, multiplier),) if direction and multiplier else ()
    rows = harness_rows(
        wrapper,
        ChatFormat(tokenizer, arguments=template_arguments or {}),
        settings,
        tasks,
        metric=metric,
        task_folder=task_folder,
        chat=chat,
        shots=shots,
        limit=limit,
        batch_size=batch_size,
    )
    append_rows(out / "rows.jsonl", rows)
    print_tables(write_report(out))
