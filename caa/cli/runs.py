"""Commands that train and ask: `caa demo`, `caa run`, `caa finetune`, `caa grid`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from caa.cli.console import Dtype, finetunes_of, load_wrapper, print_summary, print_tables, say
from caa.cli.parsing import UsageError
from caa.data.behaviors import Question
from caa.data.sources import load_facts
from caa.judges.config import OFFLINE, JudgeConfig
from caa.reports.loggers import LoggerKind
from caa.runs.rows import read_rows
from caa.suggestions import did_you_mean
from caa.training.config import FinetuneConfig, Method, Weights
from caa.training.reporting import ReportTo
from caa.untrusted import read_yaml

if TYPE_CHECKING:
    from caa.reports.tables.layout import Table

CONFIGS = Path(__file__).parents[1] / "configs"
"""The experiments that come with the package, as yaml."""


def config_path(name: str) -> Path:
    """A file of the user's, or the shipped config of that name."""
    shipped = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    if Path(name).is_file() or (Path(name).suffix in (".yaml", ".yml") and name not in shipped):
        return Path(name)
    if name not in shipped:
        raise UsageError(
            f"there is no config {name!r}{did_you_mean(name, list(shipped))}; give a yaml file, or one of "
            f"{', '.join(shipped)} (`caa run --list`)"
        )
    return shipped[name]


def shipped_configs() -> str:
    """Each of them with the first line of its file, which says what it does."""
    first_lines = {path: path.read_text(encoding="utf-8").splitlines()[0] for path in sorted(CONFIGS.glob("*.yaml"))}
    return "".join(f"{path.stem:<18}{line.partition(': ')[2]}\n" for path, line in first_lines.items())


def run(
    list: bool = False,
    figures: bool = True,
    dry_run: bool = False,
    logger: LoggerKind | None = None,
    **experiment: Any,
) -> None:
    """Run an experiment of several behaviors from a yaml file: vectors, layer choice, finetunes, tables and figures.

    CONFIG is a yaml file, or the name of one that comes with caa (`caa run --list`); options override what it says. A
    stopped run goes on when the same command is run again.

    Args:
        list: name the configs that come with caa, and stop.
        figures: whether to draw every figure at the end, if matplotlib is there.
        dry_run: say what would be asked, check that it can be, and stop.
        logger: where the mean score of each cell is logged too: tensorboard, csv (both in the folder logs of the run's
            own), wandb or mlflow.
    """
    from importlib.util import find_spec

    from caa import Experiment

    job = Experiment(**experiment)
    if dry_run:
        return _dry_run(job)
    log = _log_to(logger, job.out, job.model)
    tables = job.run()
    print_tables(tables)
    print_summary(job.out)
    log(tables)
    text = f"\nTables, rows, vectors and adapters are in {job.out}; `caa report {job.out}` makes a page of them."
    say(text)
    if figures and find_spec("matplotlib"):
        from caa.gallery import Gallery

        paths = Gallery(job.out).save(job.out / "figures")
        say(f"{len(paths)} files of figures are in {job.out / 'figures'}")
    return None


def _dry_run(job: Any) -> None:
    from caa.cli.dry_run import experiment_work, print_work
    from caa.preflight import refuse

    behaviors = job.load_behaviors()
    refuse(job.problems(behaviors))
    trained = len(job.made) * len(behaviors)
    note = f"{trained} finetunes would be trained, where they are not there. " if trained else ""
    print_work([*experiment_work(job, behaviors)], note, job.out)


def demo(
    behavior: str = "myopic_reward",
    out: Path = Path("runs/demo"),
    model: str = "tiny-chat",
    layer: int | None = 2,
    multipliers: tuple[float, ...] = (-0.3, 0.0, 0.3),
    limit: int | None = None,
    template_arguments: dict[str, Any] | None = None,
) -> None:
    """Find a vector, finetune for and against, steer all three models, print the finetune x multiplier tables.

    Args:
        behavior: a built-in behavior (`caa data list` names them), or a path to one of your own.
        out: the run's folder; a stopped demo goes on where it was.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        layer: the block whose output is steered, counted from 0; null chooses it on validation questions.
        multipliers: how often the vector is added; those of the embedded models are long.
        limit: ask only the first questions of each task, as a trial.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
    """
    from caa import Experiment, load_behavior

    experiment = Experiment(
        out,
        [behavior],
        model,
        layer,
        multipliers,
        random_controls=1,
        limit=limit,
        batch_size=64,
        template_arguments=template_arguments or {},
    )
    print_tables(experiment.run())
    print_summary(out)
    loaded = load_behavior(behavior)
    command = f'caa generate "{loaded.open_questions[0].text}" --steered {out / "steered" / loaded.name}'
    text = f"\nRows, tables and adapters are in {out}. The steered adapter reloads with\n  {command}"
    say(text)


def finetune(
    behavior: str,
    direction: Literal["positive", "negative", "data"],
    out: Path,
    model: str = "tiny-chat",
    method: Method = "sft",
    use_dora: bool = False,
    full: bool = False,
    vector: Path | None = None,
    layer: int | None = None,
    multiplier: float | None = None,
    training: FinetuneConfig | None = None,
    report_to: ReportTo = "none",
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Teach a model a behavior, its opposite or your own data; save a plain PEFT adapter, or with --full a checkpoint.

    Args:
        behavior: a built-in behavior, a path to one of your own, or for data a jsonl file, a folder of `datasets` or a
            name on the Hub, whose rows have messages, prompt and completion, or prompt, chosen and rejected.
        direction: positive teaches the behavior, negative its opposite, data what the rows say.
        out: the folder of the adapter or checkpoint; a stopped finetune goes on where it was.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        method: sft learns the one answer of each pair, dpo to prefer it to the other, kto that one is good, one bad.
        use_dora: train a DoRA, a LoRA that learns the length of each column apart.
        full: train all weights, of which memory must hold five times as many, and save a checkpoint.
        vector: a file that `caa extract` wrote, to steer each step of the training by, at all tokens; the result is not
            steered. Needs a layer and a multiplier.
        layer: the layer at which it is added (output of that block, counted from 0).
        multiplier: how often it is added; `caa extract` prints what multiplier 1 is.
        training: the settings; those that suit the method, the model's size and the examples if not given.
        report_to: where each step's loss is shown too: none, tensorboard (files in OUT.logs), wandb or mlflow.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa import load_model
    from caa.data.chat import ChatFormat
    from caa.training.reporting import check_installed
    from caa.training.sft import config_for, finetune_on
    from caa.training.sft import finetune as teach

    if full and use_dora:
        raise ValueError("a DoRA learns beside the weights and --full learns the weights themselves: say one of them")
    check_installed(report_to)
    weights: Weights = "full" if full else "dora" if use_dora else "lora"
    taught, examples = _taught(behavior, direction)
    steered_by = _pushes(vector, layer, multiplier, model)
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    chat = ChatFormat(tokenizer, arguments=template_arguments or {})
    config = replace(training or config_for(loaded, examples, method, weights), method=method, weights=weights)
    if direction == "data":
        name = Path(behavior).stem
        finetune_on(loaded, chat, examples, out, config, name=name, steered_by=steered_by, report_to=report_to)
    else:
        teach(loaded, chat, taught, direction, out, config, steered_by=steered_by, report_to=report_to)
    say(f"{out} holds the {'model' if full else 'adapter'}")


def _taught(source: str, direction: str) -> tuple[Any, list[Any]]:
    """The behavior, if it is one, and the examples."""
    from caa import load_behavior
    from caa.training.data import load_examples
    from caa.training.examples import training_examples

    if direction == "data":
        return None, load_examples(source)
    behavior = load_behavior(source)
    return behavior, training_examples(behavior, direction)


def _pushes(vector: Path | None, layer: int | None, multiplier: float | None, model: str) -> list[Any]:
    """What steers the training: one intervention or none."""
    from caa import Intervention, SteeringVector
    from caa import preflight as check
    from caa.steering.scopes import everywhere

    if vector is None or layer is None or multiplier is None:
        if (vector, layer, multiplier) != (None, None, None):
            raise ValueError("say by what the training is steered, by --vector, --layer and --multiplier, or by none")
        return []
    direction = SteeringVector.load(vector)
    check.refuse(check.vector_problems(direction, [layer], model))
    return [Intervention(direction, layer, multiplier, where=everywhere)]


def grid(
    behavior: str,
    vector: Path,
    layers: list[int],
    out: Path,
    model: str = "tiny-chat",
    adapters: dict[str, Path] | None = None,
    together: list[str] | None = None,
    multipliers: tuple[float, ...] | None = None,
    doses: tuple[float, ...] | None = None,
    settings: Path | None = None,
    tasks: tuple[Literal["ab", "open", "facts"], ...] = ("ab", "open"),
    facts: str = "facts",
    random_controls: int = 0,
    judge: JudgeConfig = OFFLINE,
    limit: int | None = None,
    dry_run: bool = False,
    logger: LoggerKind | None = None,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    answers_at_once: int | None = None,
    template_arguments: dict[str, Any] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> None:
    """Ask held-out questions under every finetune, layer and multiplier, and print the tables.

    Args:
        behavior: a built-in behavior, or a path to one of your own.
        vector: a file that `caa extract` wrote.
        layers: the layers to steer, one at a time (outputs of these blocks, counted from 0); [] for settings only.
        out: the run's folder; a stopped grid goes on where it was.
        model: an embedded model, a folder, a GGUF file, smollm2, or a name on the Hub.
        adapters: finetunes by name, e.g. --adapters.positive runs/x/positive: adapters or full checkpoints of the same
            base; the base is always asked.
        together: several adapters at once as one more finetune, e.g. --together helpful+positive.
        multipliers: how often the vector is added, in place of doses.
        doses: the push beside the length of the residual stream at each layer, by sign; -0.25, 0 and 0.25 if neither is
            given. The rows' multipliers are then doses, and run.json has the multiplier of dose 1.
        settings: a yaml file of whole settings by name, asked as well; multipliers of the vectors, or doses.
        tasks: ab (letter probabilities), open (judged text), facts (two-option knowledge).
        facts: the knowledge questions: facts (built in), or a json file in CAA's format or of MMLU or TruthfulQA.
        random_controls: random directions of the same norm to ask as well.
        judge: who scores open answers, e.g. --judge.kind endpoint --judge.model gpt-4o-mini; see docs/judges.md.
        limit: ask only the first questions of each task, as a trial.
        dry_run: say what would be asked, check that it can be, and stop.
        logger: where the mean score of each cell is logged too: tensorboard, csv (both in the folder logs of the run's
            own), wandb or mlflow.
        max_new_tokens: longest open-ended answer.
        batch_size: texts in one pass that reads.
        answers_at_once: open answers that are written at once, fewer where memory runs out; by itself as many as keys
            and values of half the weights' size allow, 256 at most.
        template_arguments: what the chat template is told by name, e.g. --template_arguments.enable_thinking false.
        dtype: of the weights: auto, float32, bfloat16, float16.
        device: auto, cpu, cuda, ...
    """
    from caa import EvalGrid, load_behavior, preflight
    from caa.cli.dry_run import grid_work, nobody, print_work

    loaded, (direction, named, edited) = load_behavior(behavior).first_questions(limit), _steering(vector, settings)
    preflight.refuse(
        preflight.folder_problems(out),
        preflight.model_problems(model, dtype, device, [*layers, *edited]),
        preflight.vector_problems(direction, layers, model),
        preflight.finetune_problems(adapters or {}, model),
        preflight.behavior_problems(loaded, tasks, facts="facts" in tasks),
        preflight.judge_problems(judge, loaded) if "open" in tasks else (),
        preflight.amount_problems(multipliers, doses),
    )
    plan = EvalGrid(
        loaded,
        direction,
        layers,
        preflight.amounts_of(multipliers, doses),
        finetunes_of(model, adapters or {}, together or ()),
        tasks,
        facts=_facts(facts, tasks, limit),
        random_controls=random_controls,
        settings=named,
        judge=nobody if "open" in tasks else None,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        answers_at_once=answers_at_once,
        template_arguments=template_arguments or {},
    )
    if dry_run:
        return print_work([*grid_work(plan, read_rows(out / "rows.jsonl"))], "", out)
    log, wrapped = _log_to(logger, out, model), load_wrapper(model, adapters or {}, dtype, device)
    return log(_ask(plan, judge, wrapped, out, multipliers is None, settings))


def _log_to(kind: LoggerKind | None, run: Path, model: str) -> Callable[[Sequence[Table]], None]:
    """What logs the tables of a run; made before anything is asked, so that a missing package is told then."""
    if kind is None:
        return lambda tables: None
    from caa.reports.loggers import log_tables, make_logger

    logger = make_logger(kind, run)
    return lambda tables: log_tables(tables, logger, model)


def _facts(name: str, tasks: Collection[str], limit: int | None) -> tuple[Question, ...]:
    """The knowledge questions, if they are to be asked."""
    return load_facts(name)[:limit] if "facts" in tasks else ()


def _steering(vector: Path, settings: Path | None) -> tuple[Any, dict[str, Any], list[int]]:
    """The vector, the settings of a file, doses as if it were as long as the stream, and the layers that these edit."""
    from caa import SteeringVector
    from caa.steering.settings_file import load_settings

    direction = SteeringVector.load(vector)
    named = load_settings(settings, direction, direction.norms()) if settings else {}
    return direction, named, [intervention.layer for setting in named.values() for intervention in setting]


def _with_doses(plan: Any, settings: Path | None, wrapper: Any, tokenizer: Any) -> Any:
    """The plan with the multipliers of its settings' doses, which only a model can tell."""
    from caa.cli.doses import profiles_of
    from caa.steering.settings_file import load_settings, says_doses

    if settings is None or not says_doses(read_yaml(settings)):
        return plan
    prompts = [question.text for question in plan.questions(plan.tasks[0])]
    layers = sorted({edit.layer for setting in plan.settings.values() for edit in setting})
    profiles = profiles_of(wrapper, plan.chat(tokenizer, ""), layers, prompts)
    norms = {layer: profile.short_norm for layer, profile in profiles.items()}
    return replace(plan, settings=load_settings(settings, plan.vector, norms))


def _in_doses(plan: Any, wrapper: Any, tokenizer: Any) -> Any:
    from caa.cli.doses import vector_in_doses

    prompts = [question.text for question in plan.questions(plan.tasks[0])]
    scaled = vector_in_doses(wrapper, plan.chat(tokenizer, ""), plan.vector, plan.layers, prompts)
    return replace(plan, vector=scaled)


def _ask(
    plan: Any, judge: JudgeConfig, loaded: tuple[Any, Any], out: Path, in_doses: bool, settings: Path | None
) -> Sequence[Table]:
    from caa import load_behavior
    from caa.data.sources import BUILTIN
    from caa.judges import make_judge
    from caa.reports.tables import write_report

    wrapper, tokenizer = loaded
    plan = _with_doses(plan, settings, wrapper, tokenizer)
    if in_doses and plan.layers:
        plan = _in_doses(plan, wrapper, tokenizer)
    if "open" in plan.tasks:
        others = [load_behavior(name) for name in BUILTIN if name != plan.behavior.name]
        plan = replace(plan, judge=make_judge(judge, plan.behavior, out, others))
    plan.run(wrapper, tokenizer, out)
    tables = write_report(out)
    print_tables(tables)
    print_summary(out)
    return tables
