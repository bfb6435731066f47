"""python recipes/love_hate.py --model openai-community/gpt2-xl --layer 15

Two lists of prompts, unpaired, read at their last token: the mean over one minus the mean over the other, added to
every token of a prompt, makes a plain language model write more lovingly or more hatefully.
"""

from __future__ import annotations

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caa import Intervention, SteeringWrapper, load_model
from caa.extraction.extract import extract_from_texts
from caa.steering.scopes import everywhere

LOVE = ("I really love", "I absolutely adore", "Nothing makes me happier than", "I am so fond of")
HATE = ("I really hate", "I absolutely despise", "Nothing makes me angrier than", "I am so sick of")


def love_hate(
    model: str = "openai-community/gpt2-xl",
    layer: int = 15,
    prompts: tuple[str, ...] = ("I think that you", "My neighbor is", "When I think of work"),
    multipliers: tuple[float, ...] = (-2.0, 0.0, 2.0),
    positive: tuple[str, ...] = LOVE,
    negative: tuple[str, ...] = HATE,
    max_new_tokens: int = 40,
) -> None:
    """Print what the model makes of each prompt at each multiplier.

    Args:
        model: a folder or a name on the Hub; a base model, for the prompts are given without a chat template.
        layer: the layer to read and to steer (output of that block, counted from 0).
        prompts: texts to continue.
        multipliers: how often the vector is added.
        positive: prompts that lead to love.
        negative: prompts that lead to hate.
        max_new_tokens: longest continuation.
    """
    network, tokenizer = load_model(model)
    vector = extract_from_texts(network, tokenizer, positive, negative, [layer], behavior="love")
    wrapper = SteeringWrapper(network)
    table = Table("prompt", *(f"{m:+g}" if m else "0" for m in multipliers), show_lines=True)
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt).input_ids] * len(multipliers), device=network.device)
        with wrapper.steer(Intervention(vector, layer, multipliers, where=everywhere)):
            written = wrapper.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
        table.add_row(*map(Text, [prompt, *texts]))
    Console().print(table)


if __name__ == "__main__":
    auto_cli(love_hate)
