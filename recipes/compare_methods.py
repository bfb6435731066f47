"""python recipes/compare_methods.py --out runs/methods --page docs/finding.md

Every way to find a direction, on every behavior: how far steering by it moves held-out letters and judged answers, from
-m to +m. All directions of a behavior have the length of its mean difference at the letter, but those "not rescaled".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from jsonargparse import auto_cli
from torch import Tensor

from caa import EvalGrid, SteeringVector, SteeringWrapper, extract, load_behavior, load_model
from caa.data.behaviors import Behavior
from caa.data.sources import BUILTIN
from caa.extraction.extract import read_pairs
from caa.extraction.reader import ReadConfig
from caa.judges import ExemplarJudge
from caa.reports.statistics import Estimate, mean_interval
from caa.runs.rows import read_rows
from caa.steering.operators import Operator, add, add_keeping_norm
from caa.steering.scopes import Scope, after_prompt, everywhere, last_prompt_token, prompt_only
from caa.vectors.checks import letter_direction, shuffle_labels
from caa.vectors.methods import Method, logistic_probe, mean_difference, mean_within, pca, random_direction, repe

METHODS: dict[str, Method] = {
    "mean difference": mean_difference,
    "PCA of differences, uncentered": pca,
    "PCA of differences, centered": partial(pca, center=True),
    "PCA of differences, RepE": repe,
    "PCA of differences, second": partial(pca, component=1),
    "PCA of values": partial(pca, of="values"),
    "logistic probe": logistic_probe,
}
READ: dict[str, ReadConfig] = {
    "mean over the answer": ReadConfig(token="mean"),
    "last token": ReadConfig(token="last"),
    "block input": ReadConfig(site="block input"),
    "attention output": ReadConfig(site="attention output"),
    "MLP output": ReadConfig(site="MLP output"),
}
STEERED: dict[str, tuple[Scope, Operator]] = {
    "mean difference, everywhere": (everywhere, add),
    "mean difference, on the prompt only": (prompt_only, add),
    "mean difference, on the prompt's last token only": (last_prompt_token, add),
    "mean difference, keeping the norm": (after_prompt, add_keeping_norm),
}
TITLES = {"ab": "Probability of the matching answer, at +m minus at -m", "open": "Judged answers (0 to 10), same"}
START, END = "<!-- compare_methods: begin -->", "<!-- compare_methods: end -->"


def directions(model: Any, tokenizer: Any, behavior: Behavior, layer: int, few: Sequence[int]) -> dict[str, Tensor]:
    """Name -> direction, the first of them CAA's own, which gives all others but the last their length."""
    activations = read_pairs(model, tokenizer, behavior, [layer])
    sides, own = activations.at(layer), activations.vector().at(layer)
    by_name = {name: method(*sides) for name, method in METHODS.items()}
    for name, config in READ.items():
        vector = extract(model, tokenizer, behavior, [layer], token=config.token, site=config.site)
        by_name[name] = vector.at(layer)
    for n in few:
        by_name[f"mean difference, {n} pairs"] = activations.subset(range(n)).vector().at(layer)
    for seed in range(2):
        by_name[f"control: random {seed}"] = random_direction(*sides, seed=seed)
    by_name["control: shuffled labels"] = mean_difference(*shuffle_labels(*sides))
    by_name["control: letter only"] = letter_direction(*sides, activations.letters)
    alike = {name: direction * (own.norm() / direction.norm()) for name, direction in by_name.items()}
    within = {f"mean difference in {k} of its components, not rescaled": mean_within(*sides, k=k) for k in (1, 4)}
    return alike | within


def effect(run: Path, task: str, multiplier: float) -> Estimate:
    """The mean over questions of score(+m) - score(-m), with its 95 % bootstrap interval."""
    scores: dict[str, dict[float, float]] = {}
    for row in read_rows(run / "rows.jsonl"):
        if row.cell.task == task and row.score is not None:
            scores.setdefault(row.question, {})[row.cell.multiplier] = row.score
    return mean_interval(both[multiplier] - both[-multiplier] for both in scores.values() if len(both) == 2)


def to_markdown(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [["direction", *columns], ["---", *["---:"] * len(columns)], *([name, *row] for name, row in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(effects: Sequence[Estimate]) -> str:
    """The mean over the behaviors, the smallest and the largest of them."""
    means = [estimate.mean for estimate in effects]
    return f"{mean(means):+.2f} ({min(means):+.2f} to {max(means):+.2f})"


def compare_methods(
    out: Path = Path("runs/methods"),
    page: Path | None = None,
    model: str = "tiny-chat",
    layer: int = 2,
    multiplier: float = 0.3,
    behaviors: tuple[str, ...] = BUILTIN,
    tasks: tuple[str, ...] = ("ab", "open"),
    few: tuple[int, ...] = (5, 20, 80),
) -> None:
    """Ask held-out questions under every direction: a table for each task in <out>/tables.md, one between the two marks
    of `page`."""
    network, tokenizer = load_model(model)
    loaded = [load_behavior(name) for name in behaviors]
    tables: dict[str, dict[str, list[Estimate]]] = {task: {} for task in tasks}
    for behavior in loaded:
        others = [load_behavior(name) for name in BUILTIN if name != behavior.name]
        judge = ExemplarJudge.fit(behavior, others) if "open" in tasks else None
        by_name = directions(network, tokenizer, behavior, layer, few)
        for name, direction in (by_name | dict.fromkeys(STEERED, by_name["mean difference"])).items():
            run, vector = out / behavior.name / name.replace(" ", "_"), SteeringVector({layer: direction})
            where, operator = STEERED.get(name, (after_prompt, add))
            grid = EvalGrid(behavior, vector, [layer], (-multiplier, multiplier), tasks=tasks, judge=judge)
            grid = replace(grid, where=where, operator=operator)
            grid.run(SteeringWrapper(network), tokenizer, run)
            for task in tasks:
                tables[task].setdefault(name, []).append(effect(run, task, multiplier))
    text = f"Model {model}, layer {layer}, m = {multiplier:g}, ± half of the 95 % bootstrap interval over questions.\n"
    for task, table in tables.items():
        rows = {name: [f"{e.mean:+.2f} ±{e.half_width:.2f}" for e in effects] for name, effects in table.items()}
        text += f"\n**{TITLES[task]}**\n\n{to_markdown([behavior.name for behavior in loaded], rows)}"
    (out / "tables.md").write_text(text, encoding="utf-8")
    if page:
        short = {name: [summary(tables[task][name]) for task in tasks] for name in tables[tasks[0]]}
        about = f"Model {model}, layer {layer}, m = {multiplier:g}: the mean over {len(loaded)} behaviors"
        text = f"{about} (the smallest to the largest).\n\n{to_markdown([TITLES[task] for task in tasks], short)}"
        before, rest = page.read_text(encoding="utf-8").split(START)
        page.write_text(f"{before}{START}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(compare_methods)
