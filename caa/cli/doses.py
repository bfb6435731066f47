"""How often a vector is added if nobody says: as its provenance recommends, else a quarter of the stream's length."""

from __future__ import annotations

from collections.abc import Sequence

from caa.cli.console import say
from caa.data.chat import ChatFormat
from caa.extraction.norms import multiplier_of, stream_norms
from caa.steering.wrapper import SteeringWrapper
from caa.vectors.vector import SteeringVector

DOSE = 0.25
"""Length of the push beside that of the residual stream: clearly seen in most models, and not yet an overdose."""
RECOMMENDED = "layer {}: recommended multiplier"
"""Among the checks of a vector's provenance, where whoever made it has found one."""


def suited_multiplier(
    wrapper: SteeringWrapper, chat: ChatFormat, vector: SteeringVector, layers: Sequence[int], prompts: Sequence[str]
) -> float:
    """A multiplier that suits vector and model, to two digits, and said aloud: the smallest over the layers.

    The stream is that of the model without a finetune, at the last tokens of the prompts.
    """
    stated = [vector.source.checks.get(RECOMMENDED.format(layer)) for layer in layers]
    recommended = [multiplier for multiplier in stated if multiplier is not None]
    if len(recommended) == len(layers):
        _say_multiplier(min(recommended, key=abs), "as the vector's provenance recommends")
        return min(recommended, key=abs)
    ids = [chat.encode(prompt) for prompt in prompts]
    with wrapper.finetune(None):
        norms = stream_norms(wrapper.model, chat.tokenizer, ids, layers)
    multiplier = min(float(f"{multiplier_of(vector, layer, DOSE, norms):.2g}") for layer in layers)
    _say_multiplier(
        multiplier, f"a push of {DOSE:g} times the length of the residual stream at layer {', '.join(map(str, layers))}"
    )
    return multiplier


def _say_multiplier(multiplier: float, reason: str) -> None:
    say(f"multiplier {multiplier:g}: {reason}; another by --multiplier or --multipliers")
