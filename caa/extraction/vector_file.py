"""Contrast pairs and a path in, their vector out: from the file, or read once and kept there. Refuses other files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from caa.comparing import differences
from caa.data.chat import ChatFormat
from caa.extraction.extract import Pairs, extract, named_pairs, pair_texts
from caa.extraction.reader import Token
from caa.hashing import lines_digest
from caa.models.adapter_state import active_adapters
from caa.models.adapters import adapters_digest
from caa.models.fingerprint import fingerprint, has_fingerprint
from caa.models.names import model_name
from caa.vectors.vector import Provenance, SteeringVector

logger = logging.getLogger(__name__)


def load_or_extract(
    path: str | Path,
    model: Any,
    chat: ChatFormat | Any,
    pairs: Pairs,
    *,
    token: Token = "parting",
    behavior: str = "",
    batch_size: int = 8,
) -> SteeringVector:
    """The vector in the file `path`; where there is no such file, `extract` makes it.

    FileExistsError if the file says that it is of another base model, of other adapters or pairs, or read at other
    tokens.
    """
    name, pairs = named_pairs(pairs, behavior)
    if not Path(path).exists():
        logger.info("%s: reading the vector from %d contrast pairs", Path(path).stem, len(pairs))
        vector = extract(model, chat, pairs, token=token, behavior=name, batch_size=batch_size, progress=True)
        return SteeringVector.load(vector.save(path))
    vector = SteeringVector.load(path)
    digests = (text.digest() for text in pair_texts(ChatFormat.of(chat), pairs, token))
    if different := _differences(vector.source, model, lines_digest(digests), len(pairs), token):
        raise FileExistsError(
            f"{path} holds another vector: {'; '.join(different)}. Remove that file, or choose a new folder."
        )
    return vector


def _differences(source: Provenance, model: Any, data_hash: str, n_pairs: int, token: Token) -> list[str]:
    """In words; what a vector does not say of itself is not compared."""
    recorded: dict[str, str] = {}
    if source.model_fingerprint and not has_fingerprint(model, source.model_fingerprint):
        recorded["model"] = f"{source.model}, {source.model_fingerprint}"
    if source.adapter_hash:
        recorded["adapters"] = f"{source.adapter}, {source.adapter_hash}"
    if source.data_hash:
        recorded["text of the pairs"] = f"{source.n_pairs}, {source.data_hash}"
    if source.token:
        recorded["token"] = source.token
    wanted = {"model": f"{model_name(model)}, {fingerprint(model)}", "text of the pairs": f"{n_pairs}, {data_hash}"}
    wanted["adapters"] = f"{', '.join(active_adapters(model))}, {adapters_digest(model)}"
    wanted["token"] = token if isinstance(token, str) else f"answer token {token}"
    return list(differences(recorded, wanted))
