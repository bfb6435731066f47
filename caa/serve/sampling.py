"""Logits in, the next token and its log probability out, for one row at a time and by its own seed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 1.0
    """0 takes the most probable token each time."""
    top_p: float = 1.0
    """Only the most probable tokens that make up this share are drawn from."""
    seed: int | None = None
    """The same seed gives the same text; None draws one."""


class Sampler:
    """Draws the tokens of one row."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator().manual_seed(seed % 2**63)

    def token(self, logits: Float[Tensor, " vocab"]) -> int:
        """One number is drawn for each token, and leads to the token in whose share of the whole it falls.

        In the order of the vocabulary, so that rounding moves the edges of the shares and nothing else.
        """
        if not self.sampling.temperature:
            return int(logits.argmax())
        shares = (logits.double().cpu() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            shares = shares * nucleus(shares, self.sampling.top_p)
        edges = shares.cumsum(-1)
        drawn = torch.rand((), generator=self._generator, dtype=torch.float64) * edges[-1]
        return int(torch.searchsorted(edges, drawn, right=True).clamp(max=int(shares.nonzero()[-1])))


def nucleus(shares: Float[Tensor, " vocab"], top_p: float) -> Tensor:
    """True for the most probable tokens, as few of them as make up `top_p`.

    >>> nucleus(torch.tensor([0.1, 0.6, 0.3]), 0.7)
    tensor([False,  True,  True])
    """
    ordered, tokens = shares.sort(descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    return torch.zeros_like(kept).scatter(0, tokens, kept)


@dataclass(frozen=True)
class TokenInfo:
    """A token that was written, with its log probability, and the most probable ones in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_info(logits: Float[Tensor, " vocab"], token: int, count: int) -> TokenInfo:
    """Of the model's own distribution, whatever the temperature.

    >>> token_info(torch.tensor([1.0, 1.0]).log(), 1, 0)
    TokenInfo(token=1, logprob=-0.6931471824645996, top=())
    """
    logprobs = logits.float().log_softmax(-1)
    values, tokens = logprobs.topk(min(count, len(logprobs)))
    return TokenInfo(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
