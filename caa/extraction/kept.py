"""Contrast pairs in, their vector out, read once and kept in a file that is refused for any other model or pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from caa.data.behaviors import ContrastPair
from caa.data.chat import ChatFormat
from caa.extraction.extract import extract, pair_forks
from caa.hashing import lines_digest
from caa.models.fingerprint import has_fingerprint
from caa.models.names import model_name
from caa.vectors.vector import Provenance, SteeringVector

logger = logging.getLogger(__name__)


def extract_once(
    path: str | Path,
    model: Any,
    chat: ChatFormat | Any,
    pairs: Sequence[ContrastPair],
    *,
    behavior: str = "",
    batch_size: int = 8,
) -> SteeringVector:
    """The vector in the file `path`; where there is no such file, `extract` makes it.

    FileExistsError if the file says that it is of another base model, or of other pairs.
    """
    if Path(path).exists():
        vector = SteeringVector.load(path)
        forks = pair_forks(ChatFormat.of(chat), pairs)
        if wrong := list(_differences(vector.source, model, lines_digest(map(lines_digest, forks)), len(pairs))):
            raise FileExistsError(
                f"{path} holds another vector: {'; '.join(wrong)}. Remove that file, or choose a new folder."
            )
        return vector
    logger.info("%s: reading the vector from %d contrast pairs", Path(path).stem, len(pairs))
    how: dict[str, Any] = {"batch_size": batch_size, "progress": True}
    return SteeringVector.load(extract(model, chat, pairs, behavior=behavior, **how).save(path))


def _differences(source: Provenance, model: Any, data_hash: str, n_pairs: int) -> Iterator[str]:
    """In words; what a vector does not say of itself is not compared."""
    if source.model_fingerprint and not has_fingerprint(model, source.model_fingerprint):
        yield f"its model is {source.model!r}, and not this {model_name(model)!r}"
    if source.data_hash not in ("", data_hash):
        yield f"its {source.n_pairs} pairs are not these {n_pairs}, or went through another chat template"
