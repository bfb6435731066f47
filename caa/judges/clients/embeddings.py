"""Texts in, vectors out: by a server, or by a model of sentence-transformers. What a server sent is kept."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from caa.judges.clients.cache import CACHE, ReplyCache, request_key
from caa.judges.clients.transport import RefusedError, Transport
from caa.judges.config import JudgeConfig


class EndpointEmbedder:
    """The embeddings of an OpenAI-compatible server; each text is paid for once, and kept in `<folder>/judge.jsonl`."""

    def __init__(self, config: JudgeConfig, folder: str | Path) -> None:
        self.config = config
        self.transport = Transport(config)
        self.cache = ReplyCache(Path(folder) / CACHE)

    @property
    def settings(self) -> dict[str, Any]:
        """What a vector depends on besides its text. No key."""
        return {"url": self.transport.url, "model": self.config.model, "request": dict(self.config.request)}

    def __call__(self, texts: Sequence[str]) -> ndarray:
        """Vectors in the order of the texts, [text, d] in float32; JudgeError if the server gives none."""
        keys = {text: request_key("embedding", self.settings, text) for text in texts}
        missing = [text for text, key in keys.items() if key not in self.cache]
        size = self.config.batch_size
        batches = [missing[i : i + size] for i in range(0, len(missing), size)]
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            list(pool.map(lambda batch: self._fetch({text: keys[text] for text in batch}), batches))
        return np.stack([_vector(self.cache.get(keys[text])["vector"]) for text in texts])

    def _fetch(self, keys: dict[str, str]) -> None:
        """Ask for the vectors of these texts and keep each under its key."""
        texts = list(keys)

        def ask(client: Any) -> Any:
            create = client.embeddings.with_streaming_response.create
            extra = dict(self.config.request)
            return create(model=self.config.model, input=texts, encoding_format="float", extra_body=extra)

        try:
            received = self.transport.send(ask, lambda content: _vectors(content, len(texts)))
        except RefusedError as error:
            self.transport.give_up(str(error))
        for text, vector in zip(texts, received.content, strict=True):
            self.cache.put(keys[text], {"vector": _text(vector), "retries": received.retries})


class SentenceEmbedder:
    """A model of sentence-transformers (extra `embed`), from a folder or the Hub."""

    def __init__(self, model: str, batch_size: int = 16) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "an embedding judge without base_url needs sentence-transformers: pip install 'caa[embed]'"
            ) from error
        self.settings = {"model": model}
        self._model, self._batch_size = SentenceTransformer(model), batch_size

    def __call__(self, texts: Sequence[str]) -> ndarray:
        """Vectors in the order of the texts, [text, d]."""
        vectors: ndarray = self._model.encode(list(texts), batch_size=self._batch_size, show_progress_bar=False)
        return vectors


def _vectors(content: Any, count: int) -> list[list[float]]:
    """In the order of the texts; ValueError if some are missing."""
    vectors = {item["index"]: list(map(float, item["embedding"])) for item in content["data"]}
    if set(vectors) != set(range(count)) or not all(np.isfinite(vector).all() for vector in vectors.values()):
        raise ValueError(f"{len(vectors)} vectors for {count} texts")
    return [vectors[i] for i in range(count)]


def _text(vector: Sequence[float]) -> str:
    """
    >>> _vector(_text([0.5, -2.0])).tolist()
    [0.5, -2.0]
    """
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def _vector(text: str) -> ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
