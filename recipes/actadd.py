"""python recipes/actadd.py --model openai-community/gpt2-xl --layer 5

Activation addition (Turner et al. 2023): what "Love" writes into the residual stream and "Hate" does not, position by
position, added to the first tokens of a prompt. Only the prompt's own pass is edited, so that whatever the model writes
then, it writes by itself. ActAdd's "layer 6" is the input of block 6: the output of block 5, counted from 0.
"""

from __future__ import annotations

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caa import Intervention, SteeringWrapper, load_model
from caa.extraction.actadd import prompt_difference, prompt_ids
from caa.steering.scopes import prompt_only


def actadd(
    model: str = "tiny-base",
    layer: int = 1,
    positive: str = "Love",
    negative: str = "Hate",
    prompts: tuple[str, ...] = ("I hate you because", "I went up to my friend and said"),
    coefficients: tuple[float, ...] = (-5.0, 0.0, 5.0),
    max_new_tokens: int = 40,
) -> None:
    """Print what the model makes of each prompt with the difference of two others added to its beginning.

    Args:
        model: an embedded model, a folder, or a name on the Hub; a base model, for no chat template is used.
        layer: the layer to read and to edit (output of that block, counted from 0).
        positive: the prompt to move toward.
        negative: the prompt to move away from; " " for none in particular.
        prompts: texts to continue.
        coefficients: how often the difference is added.
        max_new_tokens: longest continuation.
    """
    network, tokenizer = load_model(model)
    wrapper = SteeringWrapper(network)
    difference = prompt_difference(network, tokenizer, positive, negative, [layer])
    table = Table("prompt", *(f"{c:+g}" if c else "0" for c in coefficients), show_lines=True)
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=network.device)
        texts = []
        for coefficient in coefficients:
            with wrapper.steer(Intervention(difference, layer, coefficient, where=prompt_only)):
                written = wrapper.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
            texts.append(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
        table.add_row(*map(Text, [prompt, *texts]))
    norms = ", ".join(f"{norm:.1f}" for norm in difference.at(layer)[0].norm(dim=1).tolist())
    Console().print(f"{difference.source.behavior}, layer {layer}: norm by position {norms}", table)


if __name__ == "__main__":
    auto_cli(actadd)
