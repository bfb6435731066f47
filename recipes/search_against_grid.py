"""python recipes/search_against_grid.py --behaviors '[myopic_reward,refusal]'

What a search by halves finds beside the full grid of the same candidates, which asks every one of them everything: the
effect of both choices on held-out questions, the damage there, and the cost in tokens that went into the model.
"""

from __future__ import annotations

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from caa import SteeringWrapper, extract, judges, load_behavior, load_model, search
from caa.data.sources import BUILTIN
from caa.studies.findings import Search

COLUMNS = ("search", "effect", "budget spent", "full grid", "effect", "budget spent", "effect / best", "cost")


def compare(
    behaviors: tuple[str, ...] = BUILTIN,
    model: str = "tiny-chat",
    judged: bool = False,
    doses: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6),
    controls: int = 3,
    limit: int | None = None,
    batch_size: int = 64,
) -> None:
    """Print one line for each behavior.

    Args:
        behaviors: built-in behaviors, or paths to ones of your own.
        model: an embedded model, a folder, or a name on the Hub.
        judged: whether the exemplar judge's word of open answers is the effect, in place of the A/B questions.
        doses: pushes beside the length of the residual stream, tried at all layers.
        controls: random directions beside each choice.
        limit: ask only the first questions of each kind, as a trial.
        batch_size: rows in one forward pass.
    """
    network, tokenizer = load_model(model)
    table = Table("behavior", *COLUMNS)
    for name in behaviors:
        behavior = load_behavior(name).first_questions(limit)
        vector = extract(network, tokenizer, behavior)
        others = [load_behavior(other) for other in BUILTIN if other != behavior.name]
        judge = judges.ExemplarJudge.fit(behavior, others) if judged else None
        found: list[Search] = [
            search(
                SteeringWrapper(network),
                tokenizer,
                behavior,
                vector,
                doses=doses,
                judge=judge,
                controls=controls,
                keep=keep,
                batch_size=batch_size,
            )
            for keep in (1 / 3, 1.0)
        ]
        table.add_row(behavior.name, *line(*found))
        Console().print(f"{behavior.name}: {found[0].verdict}", soft_wrap=True)
    Console().print(table)


def line(halved: Search, full: Search) -> list[str]:
    """The choice of both, and how they compare."""
    cells = []
    for result in (halved, full):
        gain = result.confirmation.trial.gain if result.confirmation else float("nan")
        cells += [str(result.chosen), f"{gain:+.3f}", f"{result.spent:.0%}"]
    share = float(cells[1]) / float(cells[4])
    tokens = [result.cost.screen + result.cost.texts for result in (halved, full)]
    return [*cells, f"{share:.2f}", f"{tokens[0] / tokens[1]:.0%}"]


if __name__ == "__main__":
    auto_cli(compare)
