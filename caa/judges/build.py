"""Settings in, one behavior's judge out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from caa.data.behaviors import Behavior
from caa.judges.base import Judge
from caa.judges.clients.protocol import Asker
from caa.judges.config import JudgeConfig, judge_kinds
from caa.judges.embedding import Embed


@runtime_checkable
class Kind(Protocol):
    """A file of `caa.judges.kinds`."""

    def make(
        self, config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]
    ) -> Judge: ...

    def problems(self, config: JudgeConfig, behavior: Behavior) -> Iterator[str]: ...


def kind_of(name: str) -> Kind:
    """The file of `caa.judges.kinds` that knows how to make judges of this kind."""
    return cast(Kind, import_module(f"caa.judges.kinds.{name}"))


def make_judge(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior] = ()) -> Judge:
    """The judge that `config` describes, for one behavior; a server's replies are kept in `folder`.

    The exemplar judge learns from `others` what is off topic; no other judge needs them.
    """
    return kind_of(config.kind).make(config, behavior, folder, others)


def make_asker(config: JudgeConfig, folder: str | Path) -> Asker:
    """The model that an endpoint judge or a local judge asks; one can serve all behaviors, and comparisons too."""
    asker = getattr(kind_of(config.kind), "asker", None)
    if asker is None:
        asking = [name for name in judge_kinds() if hasattr(kind_of(name), "asker")]
        raise ValueError(f"an {config.kind} judge asks no model; kinds that do are {' and '.join(asking)}")
    return cast(Asker, asker(config, folder))


def make_embedder(config: JudgeConfig, folder: str | Path) -> Embed:
    """The embedding that `config` names: of its server if it has one, else of sentence-transformers."""
    from caa.judges.kinds.embedding import embedder

    return embedder(config, folder)
