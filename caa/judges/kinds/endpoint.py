"""Kind "endpoint": a model behind an OpenAI-compatible server, told the behavior's rubric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from caa.data.behaviors import Behavior
from caa.judges.base import Judge
from caa.judges.clients.protocol import Asker
from caa.judges.clients.reach import server_problems
from caa.judges.config import JudgeConfig
from caa.judges.rating import RatingJudge, rubric_problems


def make(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]) -> Judge:
    """Replies are kept in `folder`."""
    return RatingJudge(behavior, asker(config, folder), config.reply)


def asker(config: JudgeConfig, folder: str | Path) -> Asker:
    """The served model; one can serve all behaviors, and comparisons too."""
    from caa.judges.clients.endpoint import EndpointModel

    return EndpointModel(config, folder)


def problems(config: JudgeConfig, behavior: Behavior) -> Iterator[str]:
    """No rubric, no key, no server."""
    yield from rubric_problems(config.kind, behavior)
    yield from server_problems(config)
