"""Kind "embedding": closeness to the behavior's own answers, by a server's embeddings or sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from caa.data.behaviors import Behavior
from caa.judges.base import Judge
from caa.judges.clients.reach import server_problems
from caa.judges.config import JudgeConfig
from caa.judges.embedding import Embed, EmbeddingJudge


def make(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]) -> Judge:
    """A server's embeddings are kept in `folder`."""
    return EmbeddingJudge.fit(behavior, embedder(config, folder))


def embedder(config: JudgeConfig, folder: str | Path) -> Embed:
    """The embedding that `config` names: of its server if it has one, else of sentence-transformers."""
    from caa.judges.clients.embeddings import EndpointEmbedder, SentenceEmbedder

    return EndpointEmbedder(config, folder) if config.base_url else SentenceEmbedder(config.model, config.batch_size)


def problems(config: JudgeConfig, behavior: Behavior) -> Iterator[str]:
    """No server, or no sentence-transformers."""
    if config.base_url:
        yield from server_problems(config)
    elif not find_spec("sentence_transformers"):
        yield "an embedding judge without a server needs sentence-transformers: pip install 'caa[embed]'"
