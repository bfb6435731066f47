"""python recipes/honesty_facts.py --model meta-llama/Llama-2-13b-chat-hf --facts facts_true_false.csv

The study of honesty on RepE's true and false facts: every claim answered honestly and dishonestly, vectors by mean
difference and by the second principal component, how well layers tell the two apart, and what a model says of unseen
claims when the vector is added, subtracted or zeroed out. The csv is data/facts/facts_true_false.csv of RepE. With
--out all of it is drawn too, with what is written to questions in which honesty costs something.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from caa import Intervention, SteeringWrapper, load_model
from caa.data.behaviors import Question, question_id
from caa.data.claims import Claim, counterbalanced, honesty_pairs
from caa.evals.tasks import answer_open
from caa.extraction.doses import prompt_profiles, to_doses
from caa.extraction.extract import read_pairs
from caa.reports.figures.activations import pair_accuracy_by_layer
from caa.steering.intervention import Setting
from caa.steering.operators import ablate
from caa.studies import honesty
from caa.vectors.activations import PairActivations
from caa.vectors.checks import held_out_accuracy, pair_accuracy
from caa.vectors.methods import Method, components, mean_difference, pca

METHODS: dict[str, Method] = {"mean difference": mean_difference, "PC2 of the differences": partial(pca, component=1)}


def by_kind(claims: Sequence[Claim], right: Sequence[bool]) -> list[str]:
    """The shares that are right of true claims, of false ones, of all."""
    outcomes = list(zip(claims, right, strict=True))
    true, false = ([ok for claim, ok in outcomes if claim.true == kind] for kind in (True, False))
    return [f"{sum(part) / len(part):.2f}" if part else "-" for part in (true, false, right)]


def separability(
    seen: PairActivations, unseen: PairActivations, claims: Sequence[Claim]
) -> tuple[Table, dict[str, dict[int, float]]]:
    """How well each layer tells the two answers apart, and the share of held-out pairs in order by method and layer."""
    table = Table("layer", "method", "held-out pairs", "unseen true", "unseen false", "unseen all", "variance")
    accuracy: dict[str, dict[int, float]] = {name: {} for name in METHODS}
    for layer, (name, method) in product(seen.layers, METHODS.items()):
        sides, direction = seen.at(layer), method(*seen.at(layer))
        accuracy[name][layer] = held_out_accuracy(*sides, method, letters=seen.letters)
        right = [pair_accuracy(direction, p[None], n[None]) > 0.5 for p, n in zip(*unseen.at(layer), strict=True)]
        explained = "-" if method is mean_difference else f"{components(*sides)[1][1]:.2f}"
        table.add_row(str(layer), name, f"{accuracy[name][layer]:.2f}", *by_kind(claims, right), explained)
    return table, accuracy


def honesty_facts(
    model: str = "tiny-chat",
    facts: str = "facts",
    layer: int | None = None,
    doses: tuple[float, ...] = (-0.2, 0.2),
    claims: int = 400,
    max_new_tokens: int = 30,
    out: Path | None = None,
) -> None:
    """Print how well each layer tells honest from dishonest answers, and what steering does to unseen claims.

    `facts` is a csv of claims, or what `load_facts` understands. Without a `layer` (output of that block, counted from
    0) the one that tells held-out pairs best is steered. A dose is a share of the length of the residual stream, which
    all vectors are brought to. `out` is a folder for the figures.
    """
    network, tokenizer = load_model(model)
    known = counterbalanced(honesty.read_facts(facts)[:claims])
    unseen = counterbalanced([claim for claim in known if int(question_id(claim.text), 16) % 4 == 0])
    seen = counterbalanced([claim for claim in known if claim not in set(unseen)])
    read = read_pairs(network, tokenizer, honesty_pairs(seen))
    table, accuracy = separability(read, read_pairs(network, tokenizer, honesty_pairs(unseen)), unseen)
    Console().print(f"{len(seen)} claims to find the vectors by, {len(unseen)} unseen ones", table)
    by_layer = accuracy["mean difference"]
    layer = max(by_layer, key=by_layer.__getitem__) if layer is None else layer
    profiles = prompt_profiles(network, tokenizer, [claim.pair().text for claim in seen[:64]])
    vectors = {name: to_doses(read.vector(method), profiles) for name, method in METHODS.items()}
    wrapper, asked = SteeringWrapper(network), [Question(claim.pair().text) for claim in unseen]
    figures = [pair_accuracy_by_layer(accuracy, "honesty"), *honesty.pictures_of_activations(read, seen, layer)]
    table = Table("vector", f"steering, layer {layer}", "true claims right", "false claims right", "all", "no verdict")
    for name, vector in vectors.items():
        ways: dict[str, Setting] = {
            f"{dose:+g}" if dose else "0": (Intervention(vector, layer, dose),) for dose in (0, *doses)
        }
        ways["zeroed out"] = (Intervention(vector, layer, 1.0, ablate),)
        texts = answer_open(wrapper, tokenizer, asked, list(ways.values()), max_new_tokens=max_new_tokens)
        right = {}
        for place, way in enumerate(ways):
            verdicts = [honesty.verdict(text) for text in texts[place :: len(ways)]]
            right[way] = [claim.true == answer for claim, answer in zip(unseen, verdicts, strict=True)]
            table.add_row(name, way, *by_kind(unseen, right[way]), f"{verdicts.count(None) / len(verdicts):.2f}")
        title = f"honesty, {name}, layer {layer}: verdicts that are right"
        figures.append(honesty.picture_of_verdicts(unseen, right, title, f"verdicts-{name.replace(' ', '_')}"))
    Console().print(table)
    if out is not None:
        push = Intervention(vectors["mean difference"], layer, max(doses))
        figures.append(honesty.picture_of_positions(wrapper, tokenizer, unseen[:20], push))
        figures.append(honesty.picture_of_dilemmas(wrapper, tokenizer, push, max_new_tokens))
        for figure in figures:
            figure.save(out)


if __name__ == "__main__":
    auto_cli(honesty_facts)
