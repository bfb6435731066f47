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
from caa.vectors.checks import held_out_accuracy, pair_accuracy
from caa.vectors.methods import Method, components, mean_difference, pca

METHODS: dict[str, Method] = {"mean difference": mean_difference, "PC2 of the differences": partial(pca, component=1)}
SAID = re.compile(r"\(([AB])\)|^\s*([AB])\b(?! \w)|\b(true|false)\b|\b([AB])\b(?=[.,:;)]|$)", re.IGNORECASE)


def verdict(answer: str) -> bool | None:
    """What an answer takes the claim to be: the first "A", "B", "True" or "False" in it; None without one."""
    found = SAID.search(answer)
    return next(group for group in found.groups() if group).lower() in ("a", "true") if found else None


def read_facts(facts: str) -> list[Claim]:
    """The claims of a csv; else two-option questions, by turns with the right and with the wrong option."""
    if facts.endswith(".csv"):
        return counterbalanced(read_claims(facts))
    found = []
    for number, question in enumerate({question_id(q.text): q for q in load_facts(facts)}.values()):
        chosen = options(question.text)[letter(question.answers[number % 2]) or ""]
        found.append(Claim(f"{stem(question.text)} {chosen}.", number % 2 == 0))
    return counterbalanced(found)


def by_kind(shares: Sequence[tuple[bool, bool]]) -> list[str]:
    """Of (is it true, did it succeed): the shares of true claims, of false ones, of all."""
    each = ([ok for true, ok in shares if kind in (true, None)] for kind in (True, False, None))
    return [f"{sum(part) / len(part):.2f}" if part else "-" for part in each]


def answers(wrapper: SteeringWrapper, tokenizer: Any, claims: Sequence[Claim], tokens: int) -> list[str]:
    prompts = [ChatFormat(tokenizer).encode(claim.pair().text) for claim in claims]
    texts: dict[int, str] = {}
    for rows in by_length(prompts, 32):
        ids, mask = (t.to(wrapper.model.device) for t in pad([prompts[row] for row in rows], 0, side="left"))
        out = wrapper.generate(ids, mask, max_new_tokens=tokens, do_sample=False)[:, ids.shape[1] :]
        texts.update(zip(rows, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True))
    return [texts[row] for row in range(len(claims))]


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
    readings, tests = (read_pairs(network, tokenizer, honesty_pairs(part)) for part in (seen, unseen))
    table = Table("layer", "method", "held-out pairs", "unseen true", "unseen false", "unseen all", "variance")
    held, letters = {}, readings.letters
    for at, (name, method) in product(readings.layers, METHODS.items()):
        held[at, name], direction = (
            held_out_accuracy(*readings.at(at), method, letters=letters),
            method(*readings.at(at)),
        )
        right = [pair_accuracy(direction, p[None], n[None]) > 0.5 for p, n in zip(*tests.at(at), strict=True)]
        shares = by_kind([(claim.true, ok) for claim, ok in zip(unseen, right, strict=True)])
        explained = "-" if method is mean_difference else f"{components(*readings.at(at))[1][1]:.2f}"
        table.add_row(str(at), name, f"{held[at, name]:.2f}", *shares, explained)
    Console().print(f"{len(seen)} claims to find the vectors by, {len(unseen)} unseen ones", table)
    at = max(readings.layers, key=lambda i: held[i, "mean difference"]) if layer is None else layer
    wrapper = SteeringWrapper(network)
    table = Table("vector", f"steering, layer {at}", "true claims right", "false claims right", "all", "no verdict")
    length = mean_difference(*readings.at(at)).norm()
    for name, method in METHODS.items():
        direction = method(*readings.at(at))
        vector = SteeringVector({at: direction * (length / direction.norm())}, readings.vector(method).source)
        settings = {f"{m:+g}": Intervention(vector, at, m) for m in (0, *multipliers)}
        for title, steering in {**settings, "zeroed out": Intervention(vector, at, 1.0, ablate)}.items():
            with wrapper.steer(steering):
                said = [verdict(text) for text in answers(wrapper, tokenizer, unseen, max_new_tokens)]
            told = [(claim.true, claim.true == heard) for claim, heard in zip(unseen, said, strict=True)]
            table.add_row(name, title, *by_kind(told), f"{said.count(None) / len(said):.2f}")
    Console().print(table)


if __name__ == "__main__":
    auto_cli(honesty_facts)
