"""Kind "local": a Hugging Face model in this process, told the behavior's rubric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from caa.data.behaviors import Behavior
from caa.data.chat import ChatFormat
from caa.judges.base import Judge
from caa.judges.clients.protocol import Asker
from caa.judges.config import JudgeConfig
from caa.judges.rating import RatingJudge, rubric_problems


def make(config: JudgeConfig, behavior: Behavior, folder: str | Path, others: Sequence[Behavior]) -> Judge:
    """It takes the mean over the numbers that the model might reply with."""
    return RatingJudge(behavior, asker(config, folder), "expected")


def asker(config: JudgeConfig, folder: str | Path) -> Asker:
    """The model; one can serve all behaviors, and comparisons too."""
    from caa.judges.clients.local import LocalModel
    from caa.models.loading import load_model

    model, tokenizer = load_model(config.model)
    chat = ChatFormat(tokenizer, template=config.template, arguments=config.template_arguments)
    return LocalModel(model, chat, batch_size=config.batch_size)


def problems(config: JudgeConfig, behavior: Behavior) -> Iterator[str]:
    """No rubric; `caa.preflight` looks at the model."""
    yield from rubric_problems(config.kind, behavior)
