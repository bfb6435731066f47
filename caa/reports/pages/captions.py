"""Names of picture files in; captions in words, and an order that tells the story, out."""

from __future__ import annotations

from collections.abc import Iterable

_WORDS = {
    "table-ab": "Scores of A/B questions: behaviors down, finetune and multiplier across",
    "table-open": "Scores of open answers: behaviors down, finetune and multiplier across",
    "table": "Scores: behaviors down, finetune and multiplier across",
    "effect_by_layer": "Mean score by the layer that is steered, one line for each multiplier: {}",
    "effect_by_category": "Mean score by multiplier, split by the kind of question: {}",
    "dose_response": "Effect, and below it the damage, by dose: {}",
    "effect_against_damage": "Effect against damage of every layer and dose that was tried: {}",
    "robustness": "Effect on each single prompt, by kind of prompt: {}",
    "elicitation": "Share of prompts that show the behavior by each dose: {}",
    "tokens": "A steered answer, each token colored by its cosine with the vector: {}",
    "side_by_side": "The same questions answered unsteered and steered both ways: {}",
    "positions-answered": "Where the two answers of a pair part, by layer and token: {}",
    "positions-written": "Where answers steered up and down part, by layer and token: {}",
    "projections": "How far the two answers of the pairs lie apart along the vector, by layer: {}",
    "pca": "The activations of all pairs on their first two principal components: {}",
    "pair_accuracy": "Share of pairs that a direction puts in the right order, by layer: {}",
    "inter_layer": "Cosine of one behavior's vectors between all layers: {}",
    "between_behaviors": "Cosine between the behaviors' vectors: {}",
    "logit_lens": "The tokens that the vector makes likelier, by layer: {}",
    "layer_transfer": "The effect of one layer's vectors, added at every layer",
    "base_vs_chat": "Cosine of the vectors of the model before and after chat training, by layer",
    "model_transfer": "The effect of the vector of the model before chat training, beside the model's own",
    "base_vs_finetune": "Cosine of the vectors of the model and of its finetunes, by layer",
}
"""How a file's name begins -> its caption; the rest of the name, in words, takes the place of {}. In reading order."""


def caption(name: str) -> str:
    """What a picture shows, in words; a name that is none of ours as it is.

    >>> caption("effect_by_layer-myopic_reward"), caption("my_plot")
    ('Mean score by the layer that is steered, one line for each multiplier: myopic_reward', 'my_plot')
    """
    start = _start(name)
    return _WORDS[start].format(name.removeprefix(start).lstrip("-").replace("-layer_", ", layer ")) if start else name


def in_reading_order(names: Iterable[str]) -> list[str]:
    """What was measured first, then how the vector was found, then what it has to do with other models; others last.

    >>> in_reading_order(["mine", "pca-b-layer_2", "table-ab-0"])
    ['table-ab-0', 'pca-b-layer_2', 'mine']
    """
    places = {start: place for place, start in enumerate(_WORDS)}
    return sorted(names, key=lambda name: (places.get(_start(name), len(places)), name))


def _start(name: str) -> str:
    """The longest of the known beginnings; empty if there is none."""
    known = [start for start in _WORDS if name == start or name.startswith(f"{start}-")]
    return max(known, key=len, default="")
