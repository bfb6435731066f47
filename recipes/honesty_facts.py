"""python recipes/honesty_facts.py --model meta-llama/Llama-2-13b-chat-hf --facts facts_true_false.csv

The study of honesty on RepE's true and false facts: every claim answered honestly and dishonestly, vectors by mean
difference and by the second principal component, how well layers tell the two apart, and what a model says of unseen
claims when the vector is added, subtracted or zeroed out. The csv is data/facts/facts_true_false.csv of RepE.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.data.behaviors import letter, options, question_id, stem
from caa.data.chat import ChatFormat
from caa.data.claims import Claim, counterbalanced, honesty_pairs, read_claims
from caa.data.sources import load_facts
from caa.extraction.extract import read_pairs
from caa.models.batching import by_length, pad
from caa.steering.operators import ablate
from caa.vectors.activations import PairActivations
from caa.vectors.checks import held_out_accuracy, pair_accuracy
from caa.vectors.methods import Method, components, mean_difference, pca

METHODS: dict[str, Method] = {"mean difference": mean_difference, "PC2 of the differences": partial(pca, component=1)}
SAID = re.compile(r"\(([AB])\)|^\s*([AB])\b(?! \w)|\b(true|false)\b|\b([AB])\b(?=[.,:;)]|$)", re.IGNORECASE)


def verdict(answer: str) -> bool | None:
    """What an answer takes the claim to be: the first "A", "B", "True" or "False" in it; None without one."""
    match = SAID.search(answer)
    return next(group for group in match.groups() if group).lower() in ("a", "true") if match else None


def read_facts(facts: str) -> list[Claim]:
    """The claims of a csv; else two-option questions, by turns with the right and with the wrong option."""
    if facts.endswith(".csv"):
        return counterbalanced(read_claims(facts))
    claims = []
    for number, question in enumerate({question_id(q.text): q for q in load_facts(facts)}.values()):
        option = options(question.text)[letter(question.answers[number % 2]) or ""]
        claims.append(Claim(f"{stem(question.text)} {option}.", number % 2 == 0))
    return counterbalanced(claims)


def by_kind(claims: Sequence[Claim], right: Sequence[bool]) -> list[str]:
    """The shares that are right of true claims, of false ones, of all."""
    outcomes = list(zip(claims, right, strict=True))
    true, false = ([ok for claim, ok in outcomes if claim.true == kind] for kind in (True, False))
    return [f"{sum(part) / len(part):.2f}" if part else "-" for part in (true, false, right)]


def answers(wrapper: SteeringWrapper, tokenizer: Any, claims: Sequence[Claim], tokens: int) -> list[str]:
    prompts = [ChatFormat(tokenizer).encode(claim.pair().text) for claim in claims]
    texts: dict[int, str] = {}
    for rows in by_length(prompts, 32):
        ids, mask = (t.to(wrapper.model.device) for t in pad([prompts[row] for row in rows], 0, side="left"))
        out = wrapper.generate(ids, mask, max_new_tokens=tokens, do_sample=False)[:, ids.shape[1] :]
        texts.update(zip(rows, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True))
    return [texts[row] for row in range(len(claims))]


def separability(seen: PairActivations, unseen: PairActivations, claims: Sequence[Claim]) -> tuple[Table, int]:
    """How well each layer tells the two answers apart, and the layer at which the mean difference does so best."""
    table = Table("layer", "method", "held-out pairs", "unseen true", "unseen false", "unseen all", "variance")
    accuracy: dict[int, float] = {}
    for layer, (name, method) in product(seen.layers, METHODS.items()):
        sides, direction = seen.at(layer), method(*seen.at(layer))
        held_out = held_out_accuracy(*sides, method, letters=seen.letters)
        right = [pair_accuracy(direction, p[None], n[None]) > 0.5 for p, n in zip(*unseen.at(layer), strict=True)]
        explained = "-" if method is mean_difference else f"{components(*sides)[1][1]:.2f}"
        table.add_row(str(layer), name, f"{held_out:.2f}", *by_kind(claims, right), explained)
        accuracy.setdefault(layer, held_out)  # of the mean difference, which is the first method
    return table, max(accuracy, key=accuracy.__getitem__)


def honesty_facts(
    model: str = "tiny-chat",
    facts: str = "facts",
    layer: int | None = None,
    multipliers: tuple[float, ...] = (-0.3, 0.3),
    claims: int = 400,
    max_new_tokens: int = 30,
) -> None:
    """Print how well each layer tells honest from dishonest answers, and what steering does to unseen claims.

    `facts` is a csv of claims, or what `load_facts` understands. Without a `layer` (output of that block, counted from
    0) the one that tells held-out pairs best is steered. All vectors are as long as the mean difference.
    """
    network, tokenizer = load_model(model)
    known = counterbalanced(read_facts(facts)[:claims])
    unseen = counterbalanced([claim for claim in known if int(question_id(claim.text), 16) % 4 == 0])
    seen = counterbalanced([claim for claim in known if claim not in set(unseen)])
    activations = read_pairs(network, tokenizer, honesty_pairs(seen))
    table, best = separability(activations, read_pairs(network, tokenizer, honesty_pairs(unseen)), unseen)
    Console().print(f"{len(seen)} claims to find the vectors by, {len(unseen)} unseen ones", table)
    layer = best if layer is None else layer
    wrapper, length = SteeringWrapper(network), mean_difference(*activations.at(layer)).norm()
    table = Table("vector", f"steering, layer {layer}", "true claims right", "false claims right", "all", "no verdict")
    for name, method in METHODS.items():
        direction = method(*activations.at(layer))
        vector = SteeringVector({layer: direction * (length / direction.norm())}, activations.vector(method).source)
        settings = {f"{m:+g}": Intervention(vector, layer, m) for m in (0, *multipliers)}
        settings["zeroed out"] = Intervention(vector, layer, 1.0, ablate)
        for title, intervention in settings.items():
            with wrapper.steer(intervention):
                verdicts = [verdict(text) for text in answers(wrapper, tokenizer, unseen, max_new_tokens)]
            right = [claim.true == answer for claim, answer in zip(unseen, verdicts, strict=True)]
            table.add_row(name, title, *by_kind(unseen, right), f"{verdicts.count(None) / len(verdicts):.2f}")
    Console().print(table)


if __name__ == "__main__":
    auto_cli(honesty_facts)
