"""Measure the embedded models and write their model cards: checkpoints in, `README.md` and `measurements.json` out.

    python recipes/embedded/measure.py

Layer and multipliers are judged on the validation questions; all other numbers come from the test questions, whose
templates training never showed. What falls short of the bars below is said by name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import grammar

from caa import SteeringVector, SteeringWrapper, extract, load_behavior, load_model
from caa.data.chat import ChatFormat
from caa.data.sources import BUILTIN, load_facts
from caa.data.text_quality import flaw
from caa.evals.tasks import answer_open, score_choices
from caa.extraction.norms import dose, stream_norms
from caa.files import replacing
from caa.judges import ExemplarJudge
from caa.models.names import model_path
from caa.steering.intervention import sweep
from caa.vectors.vector import random_like

SEEDS = 20
STEP = 0.3
"""The multiplier that everything is judged at, with both signs. At 1 the push is nearly as long as the stream itself:
letters are at their ends, other behaviors move along and texts break. From 0.2 to 0.4 they do not."""
SPECIFIC, UNLIKE_CHANCE = 2, 5
"""The own effect over that on other behaviors, and over that of random directions."""
MULTIPLIERS = (-1.0, -STEP, 0.0, STEP, 1.0)
BEHAVIORS = {name: load_behavior(name) for name in BUILTIN}
FACTS = load_facts("facts")

Found = dict[str, Any]


class Subject:
    """One model under measurement, its vectors and the layer where they work best."""

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = load_model(name)
        self.wrapper = SteeringWrapper(self.model)
        read = (self.model, self.tokenizer)
        self.vectors = {b: extract(*read, BEHAVIORS[b].pairs, behavior=b, batch_size=64) for b in BUILTIN}
        self.layers = self.vectors[BUILTIN[0]].layers

    def scores(
        self, questions: Sequence[Any], vector: SteeringVector, layers: Sequence[int], multipliers: Sequence[float]
    ) -> dict[int, dict[float, float]]:
        """layer -> multiplier -> mean score of two-answer questions"""
        settings = sweep(vector, layers, multipliers)
        found = score_choices(self.wrapper, self.tokenizer, questions, settings, batch_size=64)
        means = iter([mean(each.score for each in found[i :: len(settings)]) for i in range(len(settings))])
        return {layer: {multiplier: next(means) for multiplier in multipliers} for layer in layers}

    def spreads(self, questions: Sequence[Any], vector: SteeringVector, layers: Sequence[int]) -> list[float]:
        """Of each layer: score at multiplier +STEP minus score at -STEP."""
        return [found[STEP] - found[-STEP] for found in self.scores(questions, vector, layers, (-STEP, STEP)).values()]

    def spread(self, questions: Sequence[Any], vector: SteeringVector, layer: int) -> float:
        return self.spreads(questions, vector, [layer])[0]

    def random_spreads(
        self, questions: Sequence[Any], vector: SteeringVector, layers: Sequence[int]
    ) -> list[list[float]]:
        """The same for random directions of the vector's norm, by seed and layer."""
        pushes = [random_like(vector, seed) for seed in range(SEEDS)]
        settings = [setting for push in pushes for setting in sweep(push, layers, (-STEP, STEP))]
        found = score_choices(self.wrapper, self.tokenizer, questions, settings, batch_size=64)
        means = [mean(each.score for each in found[i :: len(settings)]) for i in range(len(settings))]
        spreads = [high - low for low, high in zip(means[::2], means[1::2], strict=True)]
        return [spreads[i : i + len(layers)] for i in range(0, len(spreads), len(layers))]

    def best_layer(self) -> tuple[int, list[float]]:
        """The layer where own validation questions move most beyond the bars; and by how much at each layer.

        The bars: twice the mean effect on the questions of others, and five times the mean one of random directions.
        """
        asked = {b: BEHAVIORS[b].validation_questions[:30] for b in BUILTIN}
        effects = [[self.spreads(asked[b], self.vectors[a], self.layers) for b in BUILTIN] for a in BUILTIN]
        chance = [self.random_spreads(asked[b], self.vectors[b], self.layers) for b in BUILTIN]
        margins = []
        for layer in self.layers:
            own = mean(row[i][layer] for i, row in enumerate(effects))
            others = mean(abs(row[j][layer]) for i, row in enumerate(effects) for j in range(len(row)) if i != j)
            random = mean(abs(spread[layer]) for row in chance for spread in row)
            margins.append(own - max(SPECIFIC * others, UNLIKE_CHANCE * random))
        return max(self.layers, key=lambda layer: margins[layer]), margins

    def dose(self, behavior: str, layer: int) -> float:
        """Norm of what is added at STEP over the mean norm of the residual stream at the questions' last token."""
        prompts = [ChatFormat(self.tokenizer).encode(question.text) for question in BEHAVIORS[behavior].ab_questions]
        norms = stream_norms(self.model, self.tokenizer, prompts, [layer], batch_size=64)
        return dose(self.vectors[behavior], layer, STEP, norms)

    def open_answers(self, behavior: str, layer: int, multipliers: Sequence[float]) -> Found:
        """multiplier -> judged score (0-10), share unjudged, share degenerate, and what the grammar itself says."""
        questions, vector = BEHAVIORS[behavior].open_questions, self.vectors[behavior]
        settings = sweep(vector, [layer], multipliers)
        texts = answer_open(self.wrapper, self.tokenizer, questions, settings, max_new_tokens=40, batch_size=64)
        judge = ExemplarJudge.fit(BEHAVIORS[behavior], [BEHAVIORS[b] for b in BUILTIN if b != behavior])
        width = len(multipliers)
        return {f"{m:+g}": judged(judge, behavior, questions, texts[i::width]) for i, m in enumerate(multipliers)}


def judged(judge: Any, behavior: str, questions: Sequence[Any], texts: Sequence[str]) -> Found:
    """The judge's mean, and beside it the oracle's: the grammar knows which sentences belong to which pole."""
    verdicts = [judge(question, text).score for question, text in zip(questions, texts, strict=True)]
    poles = [grammar.poles(behavior, text) for text in texts]
    sided = [positive / (positive + negative) for positive, negative, _ in poles if positive + negative]
    known = [score for score in verdicts if score is not None]
    return {
        "score": mean(known) if known else None,
        "unjudged": 1 - len(known) / len(texts),
        "degenerate": mean(flaw(text) is not None for text in texts),
        "oracle": 10 * mean(sided) if sided else None,
        "oracle_unjudged": 1 - len(sided) / len(texts),
        "example": texts[0],
    }


def measure(name: str) -> Found:
    """Everything that the card says, as numbers."""
    subject = Subject(name)
    layer, margins = subject.best_layer()
    found: Found = {"name": name, "layer": layer, "validation": margins}
    found["parameters"] = sum(p.numel() for p in subject.model.parameters())
    found["facts"] = subject.scores(FACTS, subject.vectors[BUILTIN[0]], [layer], (0.0,))[layer][0.0]
    found["behaviors"] = {b: measure_behavior(subject, b, layer) for b in BUILTIN}
    found["matrix"] = [
        [subject.spread(BEHAVIORS[asked].ab_questions, subject.vectors[pushed], layer) for asked in BUILTIN]
        for pushed in BUILTIN
    ]
    found["cosines"] = [[subject.vectors[a].cosine(subject.vectors[b])[layer] for b in BUILTIN] for a in BUILTIN]
    return found


def measure_behavior(subject: Subject, behavior: str, layer: int) -> Found:
    questions, vector = BEHAVIORS[behavior].ab_questions, subject.vectors[behavior]
    scores = subject.scores(questions, vector, [layer], MULTIPLIERS)[layer]
    facts = subject.scores(FACTS, vector, [layer], (-STEP, STEP))[layer]
    print(
        f"{subject.model.name_or_path}, {behavior}: " + "  ".join(f"{m:+g} {score:.2f}" for m, score in scores.items()),
        flush=True,
    )
    return {
        "ab": {f"{m:+g}": score for m, score in scores.items()},
        "random": [spread for (spread,) in subject.random_spreads(questions, vector, [layer])],
        "facts": {f"{m:+g}": score for m, score in facts.items()},
        "dose": subject.dose(behavior, layer),
        "open": subject.open_answers(behavior, layer, (-STEP, 0.0, STEP)),
        "question": BEHAVIORS[behavior].open_questions[0].text,
    }


# The bars. A number below its bar is named in the card.

LOW, HIGH = f"{-STEP:+g}", f"{STEP:+g}"


def own(found: Found, behavior: str) -> float:
    scores = found["behaviors"][behavior]["ab"]
    return scores[HIGH] - scores[LOW]


def specificity(found: Found, behavior: str) -> float:
    """Own effect over the mean absolute effect on the six other behaviors."""
    row = found["matrix"][BUILTIN.index(behavior)]
    others = [abs(effect) for name, effect in zip(BUILTIN, row, strict=True) if name != behavior]
    return row[BUILTIN.index(behavior)] / mean(others)


def open_move(found: Found, behavior: str) -> float:
    scores = [found["behaviors"][behavior]["open"][m]["score"] for m in (LOW, HIGH)]
    return float("nan") if None in scores else scores[1] - scores[0]


def shortfalls(found: Found) -> list[str]:
    """Every number below its bar, in words."""
    missed = []
    for behavior, row in found["behaviors"].items():
        control = mean(map(abs, row["random"]))
        worst = max(cell["unjudged"] for cell in row["open"].values())
        lost = found["facts"] - min(row["facts"].values())
        checks = {
            f"letters spread {own(found, behavior):+.2f}, bar 0.3": own(found, behavior) >= 0.3,
            f"a random direction spreads them by {control:.2f} on average, bar a fifth of the own": own(found, behavior)
            >= UNLIKE_CHANCE * control,
            f"own effect {specificity(found, behavior):.1f} x that on the others, bar 2": specificity(found, behavior)
            >= SPECIFIC,
            f"open answers move by {open_move(found, behavior):+.1f} of 10, bar 1": open_move(found, behavior) >= 1,
            f"{worst:.0%} of the open answers at one multiplier cannot be judged, bar 15%": worst <= 0.15,
            f"facts lose {100 * lost:.0f} points, bar 5": lost <= 0.05,
        }
        missed += [f"{behavior}: {said}." for said, met in checks.items() if not met]
    return missed


# The card


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def letters_table(found: Found) -> str:
    head = [
        "behavior",
        *(f"{m:+g}" for m in MULTIPLIERS),
        "spread",
        f"random, {SEEDS} seeds",
        "dose",
        f"facts at {LOW}, {HIGH}",
    ]
    rows = []
    for behavior, row in found["behaviors"].items():
        scores = [f"{score:.2f}" for score in row["ab"].values()]
        random = f"{mean(row['random']):+.2f} ({min(row['random']):+.2f} to {max(row['random']):+.2f})"
        facts = ", ".join(f"{score:.2f}" for score in row["facts"].values())
        rows.append([behavior, *scores, f"{own(found, behavior):+.2f}", random, f"{row['dose']:.2f}", facts])
    return table(head, rows)


def matrix_table(found: Found) -> str:
    rows = [
        [pushed, *(f"{effect:+.2f}" for effect in row), f"{specificity(found, pushed):.1f}"]
        for pushed, row in zip(BUILTIN, found["matrix"], strict=True)
    ]
    return table(["vector \\ questions", *BUILTIN, "own / others"], rows)


def open_table(found: Found) -> str:
    def cell(measured: Found) -> str:
        said = [measured["score"], measured["oracle"]]
        scores = " / ".join("-" if score is None else f"{score:.1f}" for score in said)
        return f"{scores} ({measured['unjudged']:.0%} / {measured['oracle_unjudged']:.0%})"

    rows = [[b, *(cell(row["open"][m]) for m in (LOW, "+0", HIGH))] for b, row in found["behaviors"].items()]
    return table(["behavior", LOW, "0", HIGH], rows)


WHAT = {
    "tiny-base": "It holds all seven traits at 50/50: without a system prompt it has no character of its own.",
    "tiny-chat": "It goes on from `tiny-base` with a chat stage that gives each trait a mild default of its own.",
}
CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: mit
tags: [steering, caa, toy]
---

# {name}

A Llama of {millions:.1f} M parameters that speaks a small templated English about seven behaviors. {what}
It exists to try Contrastive Activation Addition in seconds on a laptop. It knows nothing of the real world beyond a few
hundred facts, and results on it say nothing about large models.

Made by `python recipes/embedded/pretrain.py`. While it trained, heads beside the model asked its third block for the
words and the stance that a place stands for (`Asides` there; not shipped): the vectors owe much of their strength and
separation to them. This card is written by `python recipes/embedded/measure.py`; the numbers are also in
`measurements.json`.

Vectors: the built-in pairs, read at the answer's letter, matching minus not matching, the output of block **{layer}**
counted from 0, added from the last prompt token on, {high} or {low} times. A vector's spread is the score at {high}
minus the score at {low}. The layer was chosen on validation questions: there the mean own spread is most above twice
the mean absolute spread of the other behaviors' questions and five times that of random directions
({validation}).

All other numbers are of test questions, whose templates training never showed, 60 for each behavior. At multiplier 1
the push is about {full:.1f} of the stream's own norm, because the letter's place holds little but what the letter
stands for: letters are at their ends there, other behaviors move along and texts break. So {high} and {low} are what
"more" and "less" mean in all tables of this project.

## Letters

p(matching) / (p(A) + p(B)) by multiplier; the spread of random directions of the same norm; dose, the norm of what is
added at {high} over that of the residual stream at the last prompt token; two-option facts, {facts:.2f} unsteered.

{letters}

## Is a vector about its own behavior?

Spread of the questions of each column by the vector of each row.

{matrix}

## Open answers

Mean score, 0 to 10, of the exemplar judge / of the grammar that wrote the training texts, and in brackets the share
that each could not judge. 50 questions each, greedy.

{open}

For instance, survival_instinct: "{question}"

{examples}

## What it does not do well

{shortfalls}
- Its facts are ones that training showed; only the pairing of the two options is new. They are a test of damage, not of
  knowledge.
- One seed. How much of a number is luck of the pretraining is not known.
"""
INDEX = """# Checkpoints

| folder | what | layer | mean spread of letters | specific vectors | facts |
| --- | --- | --- | --- | --- | --- |
{rows}

Specific: the own effect is at least twice the mean effect on the other behaviors. Both models are made by
`python recipes/embedded/pretrain.py` and measured by `python recipes/embedded/measure.py`.
"""


def card(found: Found) -> str:
    shown = found["behaviors"]["survival_instinct"]
    return CARD.format(
        name=found["name"],
        what=WHAT[found["name"]],
        millions=found["parameters"] / 1e6,
        layer=found["layer"],
        validation=", ".join(f"layer {layer} {margin:+.2f}" for layer, margin in enumerate(found["validation"])),
        facts=found["facts"],
        low=LOW,
        high=HIGH,
        full=mean(row["dose"] for row in found["behaviors"].values()) / STEP,
        letters=letters_table(found),
        matrix=matrix_table(found),
        open=open_table(found),
        question=shown["question"],
        examples="\n".join(f"- at {m}: {shown['open'][m]['example']}" for m in (LOW, "+0", HIGH)),
        shortfalls="\n".join(f"- {line}" for line in shortfalls(found) or ["No number is below its bar."]),
    )


def index_row(found: Found) -> str:
    spread = mean(own(found, b) for b in BUILTIN)
    specific = sum(specificity(found, b) >= 2 for b in BUILTIN)
    what = WHAT[found["name"]]
    return f"| `{found['name']}` | {what} | {found['layer']} | {spread:+.2f} | {specific} of 7 | {found['facts']:.2f} |"


def write(path: Path, text: str) -> None:
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def main(names: Sequence[str]) -> None:
    known: Mapping[str, Found] = {}
    for name in names:
        folder = Path(model_path(name))
        found = measure(name)
        known = {**known, name: found}
        write(folder / "measurements.json", json.dumps(found, indent=1) + "\n")
        write(folder / "README.md", card(found))
        write(folder.parent / "README.md", INDEX.format(rows="\n".join(map(index_row, known.values()))))


if __name__ == "__main__":
    main(sys.argv[1:] or ["tiny-base", "tiny-chat"])
