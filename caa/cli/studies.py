"""Commands that study a vector: `caa search`, `caa robustness`, `caa redteam`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from caa.cli.console import Dtype, finetunes_of, interval, load_wrapper, refuse_to_overwrite, say, show
from caa.data.behaviors import Behavior
from caa.files import replacing
from caa.judges.config import JudgeConfig
from caa.studies.candidates import DOSES, USUAL, Budget
from caa.studies.findings import Search
from caa.untrusted import plain_frame


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
    from caa.models.names import adapter_name
    from caa.steering.operators import OPERATORS
    from caa.steering.scopes import SCOPES
    from caa.studies.search import search as find

    subject, beside = _behaviors(behavior, others, judge, limit, out)
    given = SteeringVector.load(vector) if vector else None
    wrapper, tokenizer = load_wrapper(model, {adapter_name(adapter): adapter} if adapter else {}, dtype, device)
    chat = ChatFormat(tokenizer, arguments=template_arguments or {})
    direction = given or extract(wrapper.model, chat, subject, layers, progress=True)
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
    path = result.save(out / "search.json")
    vector.save(result.vector_file(path))
    _print_trials(result)
    if result.confirmation is not None:
        if drawing():
            from caa.reports.figures.studies import effect_against_damage

            bound = result.confirmation.bound
            effect_against_damage(result.records(), result.behavior, bound).save(out)
        effects = result.confirmation.side_effects.items()
        shown = ", ".join(f"{name} {estimate.mean:+.2f}" for name, estimate in effects)
        if shown:
            say(f"Side effects, change of the probability of the matching answer: {shown}")
    say(_cost(result))
    say(f"{path}: {result.verdict}")


def _cost(result: Search) -> str:
    """Of whom open questions were asked, and how much that spared."""
    cost, tried = result.cost, len(result.trials)
    if not cost.answers:
        return f"Open questions were asked of none of {tried} candidates: A/B questions settle that none would pass."
    return (
        f"Open questions were asked of {sum(trial.answers > 0 for trial in result.trials)} of {tried} candidates: "
        f"{cost.answers} of {cost.of} answers, {cost.share:.0%} of the tokens of the full grid."
    )


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
            written = record["answers"] > 0
            texts = (f"x{record['perplexity']:.2f}", f"{record['loops']:+.0%}") if written else ("-", "-")
            numbers = [f"{record['gain']:+.2f}", f"{record['divergence']:.3f}"]
            numbers += [*texts, f"{record['spent']:.0%}", str(record["answers"])]
            part = record["part"] if record["part"] != "asked" else ""
            table.add_row(str(record["layer"]), f"{record['dose']:+g}", *numbers, part)
    show(table, result.records())


def robustness(
    behavior: str,
    vector: Path,
    layer: int,
    out: Path,
    model: str = "tiny-chat",
    adapters: dict[str, Path] | None = None,
    multiplier: float | None = None,
    dose: float | None = None,
    limit: int | None = 30,
    batch_size: int = 16,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Ask the same questions in other ways, reworded, long or in a conversation, and say for which a setting fails.

    A/B questions, reworded, with options swapped, without letters, behind a long text, behind an exchange, and under
    system prompts, one of which asks for the opposite. The folder gets robustness.csv and a picture.

    Args:
        behavior: a built-in behavior, or a path to one of your own.
        vector: a file that `caa extract` wrote.
        layer: the layer to steer (output of that block, counted from 0).
        out: the folder to write.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        adapters: finetunes by name, e.g. --adapters.positive runs/x/positive; the base is always asked.
        multiplier: how often the vector is added, in place of a dose.
        dose: the push beside the length of the residual stream, by sign; 0.25 if neither is given.
        limit: ask only the first questions; null asks all.
        batch_size: rows in one forward pass.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa import Intervention
    from caa import preflight as check
    from caa.data.chat import ChatFormat
    from caa.studies.measuring import vector_in_doses
    from caa.studies.prompts import prompt_families
    from caa.studies.robustness import prompt_records
    from caa.studies.robustness import robustness as ask

    check.refuse(check.unit_problems(multiplier, dose))
    subject, direction = _subject(behavior, vector, layer, model, limit, out / "robustness.csv", "ab")
    wrapper, tokenizer = load_wrapper(model, adapters or {}, dtype, device)
    chat = ChatFormat(tokenizer, arguments=template_arguments or {})
    amount = (check.DOSES[-1] if dose is None else dose) if multiplier is None else multiplier
    if multiplier is None:
        with wrapper.finetune(None):
            direction = vector_in_doses(wrapper, chat, direction, [layer], subject.ab_questions)
    families = prompt_families(subject, subject.ab_questions, amount)
    setting, finetunes = Intervention(direction, layer, amount), finetunes_of(model, adapters or {})
    results = ask(wrapper, chat, families, setting, finetunes=finetunes, batch_size=batch_size)
    records = prompt_records(results)
    _write_csv(records, out / "robustness.csv")
    if drawing():
        from caa.reports.figures.studies import robustness_by_prompt

        robustness_by_prompt(records, subject.name).save(out)
    _print_robustness(results)


def _print_robustness(results: Sequence[Any]) -> None:
    """Family by family, then the prompts that fail."""
    from rich import box
    from rich.table import Table

    table = Table("finetune", "prompts", box=box.SIMPLE_HEAD)
    for column in ("effect", "spread", "wrong way", "consistency"):
        table.add_column(column, justify="right")
    lines: list[dict[str, Any]] = []
    for result in results:
        for family, part in {"all": result, **result.families}.items():
            effect, wrong = part.effect, part.wrong
            numbers = [f"{effect.mean:+.2f} ±{effect.half_width:.2f}", f"{part.spread:.2f}"]
            numbers += [f"{wrong.mean:.0%} ({wrong.low:.0%} to {wrong.high:.0%})", f"{part.consistency:.2f}"]
            table.add_row(result.finetune or "base", family, *numbers)
            known = interval("effect", effect) | {"spread": part.spread} | interval("wrong way", wrong)
            lines.append(
                {"finetune": result.finetune or "base", "prompts": family, **known, "consistency": part.consistency}
            )
    failing = [(result, effect) for result in results for effect in result.worst_first[:3] if effect.gain <= 0]
    for result, effect in failing:
        text = " ".join(effect.text.split())
        say(f"fails: {result.finetune or 'base'}, {effect.family}, {effect.gain:+.2f}: {text[:160]}")
    show(table, lines)
    say("consistency: mean effect over its root mean square; 1 where all prompts move alike, 0 where they cancel")


def redteam(
    behavior: str,
    vector: Path,
    layer: int,
    out: Path,
    model: str = "tiny-chat",
    adapters: dict[str, Path] | None = None,
    most: float = 1.0,
    judge: JudgeConfig | None = None,
    controls: int = 3,
    limit: int | None = 30,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Find, prompt by prompt, the smallest dose at which a behavior appears, with and without each finetune.

    How much push does a finetune withstand? Beside random directions; docs/limits.md says what it is not. The folder
    gets redteam.csv and a picture.

    Args:
        behavior: a built-in behavior, or a path to one of your own.
        vector: a file that `caa extract` wrote.
        layer: the layer to steer (output of that block, counted from 0).
        out: the folder to write.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        adapters: finetunes by name, e.g. --adapters.negative runs/x/negative; the base is always asked.
        most: the largest dose, beside the length of the stream of the base; negative pushes against the vector.
        judge: who says whether an open answer shows the behavior; A/B questions are asked if not given.
        controls: random directions of the same length.
        limit: ask only the first questions; null asks all.
        max_new_tokens: longest open answer.
        batch_size: rows in one forward pass.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa.data.chat import ChatFormat
    from caa.judges import make_judge
    from caa.studies.redteam import crossing_records, curve_records
    from caa.studies.redteam import redteam as push

    task = "open" if judge else "ab"
    subject, direction = _subject(behavior, vector, layer, model, limit, out / "redteam.csv", task)
    wrapper, tokenizer = load_wrapper(model, adapters or {}, dtype, device)
    results = push(
        wrapper,
        ChatFormat(tokenizer, arguments=template_arguments or {}),
        subject.open_questions if judge else subject.ab_questions,
        direction,
        layer,
        most,
        finetunes=finetunes_of(model, adapters or {}),
        judge=make_judge(judge, subject, out) if judge else None,
        controls=controls,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    _write_csv(crossing_records(results), out / "redteam.csv")
    if drawing():
        from caa.reports.figures.studies import elicitation_curve

        elicitation_curve(curve_records(results), subject.name).save(out)
    _print_resistance(results)


def _print_resistance(results: Sequence[Any]) -> None:
    """One line for each finetune and direction."""
    from rich import box
    from rich.table import Table

    table = Table("finetune", "direction", box=box.SIMPLE_HEAD)
    for column in ("shown unsteered", "half by dose", f"by dose {results[0].most:+g}", "gone again"):
        table.add_column(column, justify="right")
    lines: list[dict[str, Any]] = []
    for result in results:
        median, last = result.median, result.share(result.most)
        ends = f"{median.mean:.2g} ({median.low:.2g} to {median.high:.2g})"
        shares = [f"{result.share(0).mean:.0%}", ends, f"{last.mean:.0%}", f"{result.returning:.0%}"]
        direction = "own" if result.random is None else f"random-{result.random}"
        table.add_row(result.finetune or "base", direction, *shares)
        known = {"shown unsteered": result.share(0).mean, **interval("half by dose", median)}
        known |= {"most": result.most, **interval("shown by most", last), "gone again": result.returning}
        lines.append({"finetune": result.finetune or "base", "direction": direction, **known})
    show(table, lines)
    say("gone again: prompts that show it at one dose and no longer at a larger one, so the smallest is half the truth")


def _subject(
    behavior: str, vector: Path, layer: int, model: str, limit: int | None, file: Path, task: str
) -> tuple[Behavior, Any]:
    """Both loaded; all that would stop the study is said before a model is."""
    from caa import SteeringVector, load_behavior
    from caa import preflight as check

    refuse_to_overwrite(file)
    subject, direction = load_behavior(behavior).first_questions(limit), SteeringVector.load(vector)
    problems = [*check.folder_problems(file.parent), *check.vector_problems(direction, [layer], model)]
    check.refuse([*problems, *check.behavior_problems(subject, (task,))])
    return subject, direction


def drawing() -> bool:
    """Whether there is what pictures need."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def _write_csv(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    import pandas as pd

    with replacing(path) as scratch:
        plain_frame(pd.DataFrame(list(records))).to_csv(scratch, index=False, lineterminator="\n")
