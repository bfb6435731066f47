"""How a finetune is done: the numbers, for a 7B chat model and for a tiny one. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Method = Literal["sft", "dpo", "kto"]
Weights = Literal["lora", "dora", "full"]


@dataclass(frozen=True)
class FinetuneConfig:
    """The settings of one finetune. The defaults suit a LoRA of a chat model of some 7 billion parameters."""

    method: Method = "sft"
    """What is learnt from a pair: "sft" its one answer; "dpo" (Rafailov et al. 2023) to prefer that answer to the other
    one; "kto" (Ethayarajh et al. 2024) that the one is good and the other bad, each for itself. They are TRL's."""
    weights: Weights = "lora"
    """What learns: a "lora", a "dora" (a LoRA that learns the length of each column apart), or all weights ("full")."""
    beta: float = 0.1
    """Of DPO and KTO: how dearly it costs to move away from the model as it was."""
    rank: int = 16
    """r, the inner width of each LoRA pair of matrices."""
    alpha: int = 32
    """The LoRA update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of each LoRA input that is dropped while training with SFT; DPO and KTO drop nothing. PEFT has none for the
    fused experts of a mixture."""
    target_modules: str = "all-linear"
    """Which modules get a LoRA: "all-linear" (all that can but the head and routers), or a regular expression."""
    learning_rate: float = 1e-4
    """Peak of AdamW's learning rate; it rises over the warmup and then falls in a straight line to 0."""
    epochs: float = 1.0
    """How often each example is seen. `max_steps` overrides it."""
    max_steps: int | None = None
    """Stop after so many optimizer steps, None to go by epochs."""
    batch_size: int = 4
    """Examples in one forward pass."""
    gradient_accumulation: int = 4
    """Forward passes to one optimizer step."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    bf16: bool = True
    """Mixed precision on an accelerator; on a CPU the model's own dtype is used."""
    gradient_checkpointing: bool = True
    """Save memory on an accelerator at the price of time; not done on a CPU."""
    max_length: int = 1024
    """Tokens of the longest text allowed. A longer one is an error: a cut answer would teach to break off."""
    open_share: float = 0.5
    """Share of open-ended examples. With A/B questions alone a model ends up answering everything with letters."""
    seed: int = 0
    """Of the LoRA's first weights, the dropout, the order of the examples and the choice of open-ended ones."""

    def __post_init__(self) -> None:
        sizes = ("rank", "alpha", "epochs", "batch_size", "gradient_accumulation", "max_length")
        positive = ("beta", "learning_rate", *sizes)
        wrong = [f"{name} must be positive, not {getattr(self, name)}" for name in positive if getattr(self, name) <= 0]
        shares = ("dropout", "warmup", "open_share")
        wrong += [
            f"{name} is a share in [0, 1), not {getattr(self, name)}"
            for name in shares
            if not 0 <= getattr(self, name) < 1
        ]
        if self.max_steps is not None and self.max_steps <= 0:
            wrong.append(f"max_steps must be positive or None, not {self.max_steps}")
        for name, choices in (("method", get_args(Method)), ("weights", get_args(Weights))):
            if getattr(self, name) not in choices:
                wrong.append(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.method == "kto" and self.batch_size < 2:
            wrong.append("kto compares the examples of a batch, so batch_size must be 2 or more")
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclass(frozen=True)
class Training:
    """One finetune of an experiment, as a column: what is taught, by which method, and under which push."""

    direction: Literal["positive", "negative"] = "positive"
    method: Method = "sft"
    weights: Weights = "lora"
    steered: float = 0.0
    """How much of the behavior's vector is added at every token while it learns, at the layer that is asked; a
    multiplier or a dose, whichever the experiment goes by. 0 trains without."""


EMBEDDED = FinetuneConfig(
    rank=8,
    alpha=16,
    learning_rate=5e-4,
    max_steps=80,
    batch_size=16,
    gradient_accumulation=1,
    bf16=False,
    gradient_checkpointing=False,
)
"""For models of one to five million parameters, such as the embedded ones: half a minute on two CPU cores."""


FEW_STEPS = 64
"""Optimizer steps that a finetune gets at least, however few its examples."""


FULL_RATE = 0.1
"""All weights learn at this share of a LoRA's learning rate."""


def default_config(
    n_parameters: int, n_examples: int | None = None, method: Method = "sft", weights: Weights = "lora"
) -> FinetuneConfig:
    """The settings that suit a model of this size and so many examples, if they are known.

    All weights learn at a tenth of a LoRA's learning rate, and preferences at a fifth, but for models so small that
    they learn nothing then.

    One epoch of 64 examples is 4 steps of 16, in which a LoRA learns nothing. Few examples are seen more often, and
    fewer of them at a step, until there are `FEW_STEPS`.

    >>> default_config(3_000_000, 64) is EMBEDDED, default_config(7_000_000_000, 2000) == FinetuneConfig()
    (True, True)
    >>> few = default_config(135_000_000, 64)
    >>> few.epochs, few.batch_size * few.gradient_accumulation, few.alpha / few.rank
    (4.0, 4, 2.0)
    >>> default_config(7_000_000_000, 2000, "dpo", "full").learning_rate
    2e-06
    """
    config = _by_size(n_parameters, n_examples)
    slower = (1.0 if method == "sft" or config is EMBEDDED else 0.2) * (FULL_RATE if weights == "full" else 1.0)
    if (method, weights) == ("sft", "lora"):
        return config
    return replace(config, method=method, weights=weights, learning_rate=float(f"{config.learning_rate * slower:.3g}"))


def _by_size(n_parameters: int, n_examples: int | None) -> FinetuneConfig:
    if n_parameters < 50_000_000:
        return EMBEDDED
    plain = FinetuneConfig()
    if not n_examples or n_examples >= FEW_STEPS * plain.batch_size * plain.gradient_accumulation:
        return plain
    wanted = n_examples // (FEW_STEPS // 4 * plain.batch_size)  # for a quarter of the steps in an epoch
    accumulation = min(plain.gradient_accumulation, max(1, wanted))
    steps = n_examples / (plain.batch_size * accumulation)
    return replace(plain, gradient_accumulation=accumulation, epochs=max(1.0, round(FEW_STEPS / steps, 1)))
