"""Commands that study a vector: `caa search`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from caa.cli.console import Dtype, console, load_wrapper, refuse_to_overwrite, say
from caa.data.behaviors import Behavior
from caa.judges.config import JudgeConfig
from caa.studies.candidates import USUAL, Budget
from caa.studies.findings import Search

DOSES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)


def search(
    behavior: str,
    out: Path,
    model: str = "tiny-chat",
    vector: Path | None = None,
    layers: list[int] | None = None,
    doses: tuple[float, ...] = DOSES,
    budget: Budget = USUAL,
    judge: JudgeConfig | None = None,
    adapter: Path | None = None,
    others: list[str] | None = None,
    facts: str = "facts",
    operator: Literal["add", "add_keeping_norm"] = "add",
    where: Literal["after_prompt", "everywhere", "prompt_only", "last_prompt_token"] = "after_prompt",
    controls: int = 3,
    limit: int | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Find the layer and dose that do most of a behavior within a damage budget, or say that nothing works here.

    Chosen on some questions, confirmed on others, beside random directions. The folder gets search.json, which `run`,
    `grid`, `generate` and `play` take by --from, the vector, and a picture.

    Args:
        behavior: a built-in behavior, or a path to one of your own.
        out: the folder to write.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        vector: a file that `caa extract` wrote; else it is read as that command does by itself.
        layers: the layers to try (outputs of these blocks, counted from 0); all if not given.
        doses: the pushes to try, beside the length of the residual stream; all negative for less of the behavior.
        budget: the damage that may be done, e.g. --budget.perplexity 1.5.
        judge: who scores open answers, whose word is then the effect, e.g. --judge.kind exemplar; none if not given.
        adapter: a LoRA adapter to wear.
        others: behaviors asked under the choice, for its side effects; those built in beside it if not given.
        facts: the questions that have nothing to do with it: facts (built in), or a file; see `caa grid --help`.
        operator: what is done with the vector; see docs/applying.md.
        where: which tokens are steered.
        controls: random directions to lay beside the choice.
        limit: ask only the first questions of each kind, as a trial.
        max_new_tokens: longest open answer.
        batch_size: rows in one forward pass.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa import SteeringVector, extract
    from caa.data.chat import ChatFormat
    from caa.data.sources import load_facts
    from caa.judges import make_judge
    from caa.steering.operators import OPERATORS
    from caa.steering.scopes import SCOPES
    from caa.studies.search import search as find

    subject, beside = _behaviors(behavior, others, judge, limit, out)
    wrapper, tokenizer = load_wrapper(model, {adapter.name: adapter} if adapter else {}, dtype, device)
    chat = ChatFormat(tokenizer, arguments=template_arguments or {})
    direction = SteeringVector.load(vector) if vector else extract(wrapper.model, chat, subject)
    result = find(
        wrapper,
        chat,
        subject,
        direction,
        layers,
        doses,
        budget=budget,
        judge=make_judge(judge, subject, out, beside) if judge else None,
        others=beside,
        facts=load_facts(facts),
        operator=OPERATORS[operator],
        where=SCOPES[where],
        controls=controls,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    _keep(replace(result, model=model, loaded_as=behavior, adapter=str(adapter or "")), direction, out)


def _behaviors(
    behavior: str, others: list[str] | None, judge: JudgeConfig | None, limit: int | None, out: Path
) -> tuple[Behavior, list[Behavior]]:
    """The one that is searched for and those asked beside it; all that would stop the search is said before it."""
    from caa import load_behavior
    from caa import preflight as check
    from caa.data.sources import BUILTIN, IN_WORDS

    refuse_to_overwrite(out / "search.json")
    subject = load_behavior(behavior).first_questions(limit)
    problems = [*check.folder_problems(out), *check.behavior_problems(subject, ("ab", "open"))]
    check.refuse([*problems, *(check.judge_problems(judge, subject) if judge else ())])
    family = next((names for names in (BUILTIN, IN_WORDS) if behavior in names), ())
    names = [name for name in family if name != behavior] if others is None else others
    return subject, [load_behavior(name).first_questions(limit) for name in names]


def _keep(result: Search, vector: Any, out: Path) -> None:
    """Write what the folder is to hold, and say what was found."""
    from importlib.util import find_spec

    path = result.save(out / "search.json")
    vector.save(result.vector_file(path))
    _print_trials(result)
    if result.confirmation is not None:
        if find_spec("matplotlib"):
            from caa.reports.figures.studies import effect_against_damage

            bound = result.confirmation.bound
            effect_against_damage(result.records(), result.behavior, bound).save(out)
        effects = result.confirmation.side_effects.items()
        shown = ", ".join(f"{name} {estimate.mean:+.2f}" for name, estimate in effects)
        say(f"Side effects, change of the probability of the matching answer: {shown}")
    cost = result.cost
    say(
        f"Open questions were asked of {sum(trial.answers > 0 for trial in result.trials)} of {len(result.trials)} "
        f"candidates: {cost.answers} of {cost.of} answers, {cost.share:.0%} of the tokens of the full grid."
    )
    say(f"{path}: {result.verdict}")


def _print_trials(result: Search) -> None:
    """The candidates that were asked open questions, by layer and dose."""
    from rich import box
    from rich.table import Table

    columns = ("dose", "effect", "divergence", "perplexity", "loops", "budget spent", "questions", "")
    table = Table("layer", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    for record in result.records():
        if record["part"] in ("asked", "front", "chosen"):
            numbers = [f"{record['gain']:+.2f}", f"{record['divergence']:.3f}", f"x{record['perplexity']:.2f}"]
            numbers += [f"{record['loops']:+.0%}", f"{record['spent']:.0%}", str(record["answers"])]
            part = record["part"] if record["part"] != "asked" else ""
            table.add_row(str(record["layer"]), f"{record['dose']:+g}", *numbers, part)
    console().print(table)
