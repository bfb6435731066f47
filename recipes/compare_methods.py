"""python recipes/compare_methods.py --out runs/methods --page docs/finding.md

Every way to find a direction, on every behavior: how far steering by it moves held-out letters and judged answers, from
-m to +m. All directions of a behavior have the length of its mean difference at the letter, but those "not rescaled".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from torch import Tensor

from caa import EvalGrid, SteeringVector, SteeringWrapper, extract, load_behavior, load_model
from caa.data.behaviors import Behavior
from caa.data.sources import BUILTIN
from caa.extraction.extract import read_pairs
from caa.judges import ExemplarJudge
from caa.reports.statistics import mean_interval
from caa.runs.rows import read_rows
from caa.steering.operators import add_keeping_norm
from caa.steering.scopes import everywhere, last_prompt_token, prompt_only
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
PLACES: dict[str, dict[str, Any]] = {
    "mean over the answer": {"token": "mean"},
    "last token": {"token": "last"},
    "block input": {"site": "block input"},
    "attention output": {"site": "attention output"},
    "MLP output": {"site": "MLP output"},
}
HOW: dict[str, dict[str, Any]] = {
    "mean difference, everywhere": {"where": everywhere},
    "mean difference, on the prompt only": {"where": prompt_only},
    "mean difference, on the prompt's last token only": {"where": last_prompt_token},
    "mean difference, keeping the norm": {"operator": add_keeping_norm},
}
START, END = "<!-- compare_methods: begin -->", "<!-- compare_methods: end -->"


def directions(model: Any, tokenizer: Any, behavior: Behavior, layer: int, few: Sequence[int]) -> dict[str, Tensor]:
    """Name -> direction, the first of them CAA's own, which gives all others but the last their length."""
    pairs, readings = behavior.pairs, read_pairs(model, tokenizer, behavior.pairs, [layer])
    sides, own = readings.at(layer), readings.vector().at(layer)
    found = {name: method(*sides) for name, method in METHODS.items()}
    found |= {name: extract(model, tokenizer, pairs, [layer], **how).at(layer) for name, how in PLACES.items()}
    found |= {f"mean difference, {n} pairs": readings.subset(range(n)).vector().at(layer) for n in few}
    found |= {f"control: random {seed}": random_direction(*sides, seed=seed) for seed in range(2)}
    found["control: shuffled labels"] = mean_difference(*shuffle_labels(*sides))
    found["control: letter only"] = letter_direction(*sides, readings.letters)
    found = {name: direction * (own.norm() / direction.norm()) for name, direction in found.items()}
    kept = {f"mean difference in {k} of its components, not rescaled": mean_within(*sides, k=k) for k in (1, 4)}
    return found | kept


def effect(run: Path, task: str, multiplier: float) -> str:
    """The mean over questions of score(+m) - score(-m), +- half of its 95 % bootstrap interval."""
    scores: dict[str, dict[float, float]] = {}
    for row in read_rows(run / "rows.jsonl"):
        if row.cell.task == task and row.score is not None:
            scores.setdefault(row.question, {})[row.cell.multiplier] = row.score
    estimate = mean_interval(each[multiplier] - each[-multiplier] for each in scores.values() if len(each) == 2)
    return f"{estimate.mean:+.2f} ±{estimate.half_width:.2f}"


def to_page(tables: Mapping[str, Mapping[str, Sequence[str]]], columns: Sequence[str]) -> str:
    head = f"| direction | {' | '.join(columns)} |\n| --- | {' | '.join('---:' for _ in columns)} |\n"
    rows = {t: "".join(f"| {n} | {' | '.join(each)} |\n" for n, each in table.items()) for t, table in tables.items()}
    return "\n".join(f"**{task}**\n\n{head}{rows[task]}" for task in tables)


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
    """Ask held-out questions under every direction; tables to <out>/tables.md and between the two marks of `page`."""
    network, tokenizer = load_model(model)
    loaded = [load_behavior(name) for name in behaviors]
    tables: dict[str, dict[str, list[str]]] = {task: {} for task in tasks}
    for behavior in loaded:
        others = [load_behavior(name) for name in BUILTIN if name != behavior.name]
        judge = ExemplarJudge.fit(behavior, others) if "open" in tasks else None
        found = directions(network, tokenizer, behavior, layer, few)
        for name, direction in (found | dict.fromkeys(HOW, found["mean difference"])).items():
            run = out / behavior.name / name.replace(" ", "_")
            vector = SteeringVector({layer: direction})
            how = {"tasks": tasks, "judge": judge, **HOW.get(name, {})}
            grid = EvalGrid(behavior, vector, [layer], (-multiplier, multiplier), **how)
            grid.run(SteeringWrapper(network), tokenizer, run)
            for task in tasks:
                tables[task].setdefault(name, []).append(effect(run, task, multiplier))
    titles = {"ab": "Probability of the matching answer, at +m minus at -m", "open": "Judged answers (0 to 10), same"}
    said = f"Model {model}, layer {layer}, m = {multiplier:g}, ± half of the 95 % bootstrap interval over questions."
    text = f"{said}\n\n" + to_page({titles[task]: table for task, table in tables.items()}, [b.name for b in loaded])
    (out / "tables.md").write_text(text, encoding="utf-8")
    if page:
        before, rest = page.read_text(encoding="utf-8").split(START)
        page.write_text(f"{before}{START}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(compare_methods)
