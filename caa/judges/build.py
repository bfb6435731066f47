"""Settings in, one behavior's judge out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caa.data.behaviors import Behavior
from caa.judges.base import Judge
from caa.judges.clients.protocol import Asker
from caa.judges.config import JudgeConfig
from caa.judges.embedding import Embed, EmbeddingJudge
from caa.judges.exemplar import ExemplarJudge
from caa.judges.rating import RatingJudge


def make_judge(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior] = ()) -> Judge:
    """The judge that `config` describes, for one behavior; a server's replies are kept in `folder`.

    The exemplar judge learns from `others` what is off topic; no other judge needs them.
    """
    if config.kind == "exemplar":
        return ExemplarJudge.fit(behavior, others)
    if config.kind == "embedding":
        return EmbeddingJudge.fit(behavior, make_embedder(config, folder))
    return RatingJudge(behavior, make_asker(config, folder), "expected" if config.kind == "local" else config.reply)


def make_asker(config: JudgeConfig, folder: str | Path) -> Asker:
    """The model that an endpoint judge or a local judge asks; one can serve all behaviors, and comparisons too."""
    if config.kind == "endpoint":
        from caa.judges.clients.endpoint import EndpointModel

        return EndpointModel(config, folder)
    if config.kind != "local":
        raise ValueError(f"an {config.kind} judge asks no model; kinds that do are endpoint and local")
    from caa.judges.clients.local import LocalModel
    from caa.models.loading import load_model

    return LocalModel(*load_model(config.model), template=config.template, batch_size=config.batch_size)


def make_embedder(config: JudgeConfig, folder: str | Path) -> Embed:
    """The embedding that `config` names: of its server if it has one, else of sentence-transformers."""
    from caa.judges.clients.embeddings import EndpointEmbedder, SentenceEmbedder

    return EndpointEmbedder(config, folder) if config.base_url else SentenceEmbedder(config.model, config.batch_size)
