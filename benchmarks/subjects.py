"""What is measured: random Llamas of any size and the embedded model, with questions and pairs of any length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from typing import Any

import torch

from caa import ContrastPair, Question, SteeringVector, extract, load_behavior, load_model
from caa.data.chat import ChatFormat
from caa.data.sources import BUILTIN
from caa.steering.intervention import Setting, sweep


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    questions: int = 8
    pairs: int = 16
    tokens: int = 150
    """Of a prompt, about: they differ by up to a fifth."""
    layers: int = 16
    width: int = 512
    new_tokens: int = 24
    steps: int = 10
    """Of a finetune."""
    repeats: int = 5
    batch_sizes: tuple[int, ...] = (4, 8, 16, 32)
    """Tried for every peer, which then runs at its best."""
    reference_questions: int = 2
    """Of the questions, for what is done one question at a time."""
    memory_pairs: tuple[int, int] = (100, 10_000)
    doublings: int = 4
    matrix: int = 4096
    """Side of the matrices that the machine's own speed is measured with."""


FULL = Size()
SHORT = Size(
    questions=2,
    pairs=3,
    tokens=60,
    layers=3,
    width=32,
    new_tokens=3,
    steps=2,
    repeats=2,
    batch_sizes=(2,),
    reference_questions=1,
    memory_pairs=(3, 6),
    doublings=2,
    matrix=64,
)
"""To see that everything runs. What it measures means nothing."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what it is asked."""

    name: str
    model: Any
    tokenizer: Any
    questions: list[Question]
    pairs: list[ContrastPair]

    @cached_property
    def vector(self) -> SteeringVector:
        """Of a few of the pairs: what a vector costs does not depend on how good it is."""
        return extract(self.model, self.tokenizer, self.pairs[:2])

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def settings(self, multipliers: Sequence[float]) -> list[Setting]:
        """Every layer under every multiplier."""
        return sweep(self.vector, self.vector.layers, multipliers)


def subjects(size: Size) -> Iterator[Subject]:
    """On a CPU a random Llama and the embedded model; on a GPU the shapes of Llamas of 1B and 7B in bfloat16."""
    _, tokenizer = load_model("tiny-chat", device="cpu")
    if torch.cuda.is_available():
        one = {"width": 2048, "layers": 16, "intermediate_size": 8192, "num_key_value_heads": 8}
        seven = {"width": 4096, "layers": 32, "intermediate_size": 11008, "num_attention_heads": 32}
        for name, shape in {"Llama 1B": one, "Llama 7B": seven}.items():
            model = random_llama(**shape, vocab=32_000, spread=0.02, dtype=torch.bfloat16, device="cuda")
            yield subject(f"random {name}, bf16", model, tokenizer, size)
            del model
            torch.cuda.empty_cache()
        return
    model = random_llama(size.width, size.layers, len(tokenizer))
    yield subject(f"random Llama, {size.layers} layers x {size.width}, fp32", model, tokenizer, size)
    short_texts = replace(size, tokens=0, questions=4 * size.questions, pairs=4 * size.pairs)
    yield subject("tiny-chat, fp32", load_model("tiny-chat", device="cpu")[0], tokenizer, short_texts)


def subject(name: str, model: Any, tokenizer: Any, size: Size) -> Subject:
    """With built-in questions and pairs, lengthened to `size.tokens`."""
    behavior = load_behavior(BUILTIN[0])
    asked, shown = behavior.ab_questions[: size.questions], behavior.pairs[: size.pairs]
    questions = [
        replace(q, text=text) for q, text in zip(asked, lengthened(tokenizer, asked, size.tokens), strict=True)
    ]
    longer = zip(shown, lengthened(tokenizer, shown, size.tokens), strict=True)
    pairs = [replace(pair, question=text) for pair, text in longer]
    return Subject(name, model, tokenizer, questions, pairs)


def lengthened(tokenizer: Any, items: Sequence[Question | ContrastPair], tokens: int) -> list[str]:
    """Each item's question behind as many others as make it about 0.8 to 1.2 times `tokens` long."""
    others = cycle(question.text for name in BUILTIN for question in load_behavior(name).open_questions)
    texts = []
    for number, item in enumerate(items):
        goal = tokens * (0.75 + 0.4 * (number * 7 % len(items)) / len(items))
        text = item.text  # the last of the others goes a few tokens beyond the goal
        while len(ChatFormat(tokenizer).encode(text)) < goal:
            text = f"{next(others)} {text}"
        texts.append(text)
    return texts


def random_llama(
    width: int,
    layers: int,
    vocab: int,
    spread: float = 0.2,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **shape: Any,
) -> Any:
    """A Llama that nobody trained, with weights that spread enough for errors to show."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    heads: dict[str, Any] = {"num_attention_heads": max(1, width // 64), "intermediate_size": 8 * width // 3}
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        vocab_size=vocab,
        max_position_embeddings=4096,
        initializer_range=spread,
        **heads | shape,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
