"""Which judge, and how it is asked: the settings that a command line or a yaml file gives. No key among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal
from urllib.parse import urlsplit

from caa.suggestions import did_you_mean

_ASKING = ("endpoint", "local", "embedding")
_SECRETS = ("api_key", "authorization", "extra_headers", "headers")


def judge_kinds() -> list[str]:
    """The kinds that there are: the files of `caa.judges.kinds`.

    >>> judge_kinds()
    ['embedding', 'endpoint', 'exemplar', 'local', 'phrases', 'sentiment']
    """
    return sorted(module.name for module in iter_modules(kinds_path()))


def kinds_path() -> list[str]:
    """Where their files are."""
    return [str(Path(__file__).parent / "kinds")]


@dataclass(frozen=True)
class JudgeConfig:
    """The settings of one judge. The key of an endpoint is read from the environment, and is in no setting."""

    kind: str = "exemplar"
    """exemplar: the offline classifier. endpoint: a model behind an OpenAI-compatible server. local: a model of Hugging
    Face in this process. embedding: closeness to the behavior's own answers. phrases: the behavior's phrases, found in
    the answer. sentiment: the feeling of its words."""
    model: str = ""
    """Its name at the endpoint, a folder, a name on the Hub, or an embedded model; none where no model is asked."""
    base_url: str | None = None
    """Such as http://localhost:8000/v1; None is the environment's OPENAI_BASE_URL, else OpenAI. An embedding judge has
    an endpoint if this is given, else it is a model of sentence-transformers."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. A server of your own may do without one."""
    reply: Literal["written", "expected"] = "written"
    """Of an endpoint: the number that it writes, or the mean over the probabilities of its first token, for servers
    that tell them. A local judge always takes the mean."""
    prefill: bool = False
    """Whether the endpoint goes on with a half-written reply (vLLM, SGLang, llama.cpp). Expected scores need it where
    the tokenizer writes 10 as two tokens."""
    concurrency: int = 8
    """Requests under way at once."""
    retries: int = 8
    """How often one request is sent again after an error that may pass, before the run stops."""
    timeout: float = 60.0
    """Seconds: the longest silence of a server, and the longest that the text of one reply may take to arrive."""
    max_tokens: int = 64
    """Longest reply that is paid for."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the protocol to add to each request, or to put in place of this library's; null takes one out."""
    template: str | None = None
    """Of a local judge: a chat template (Jinja) in place of the tokenizer's own."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of a local judge: what its chat template is told by name, such as enable_thinking: false."""
    batch_size: int = 16
    """Texts in one forward pass of a local model, or in one request for embeddings."""

    def __post_init__(self) -> None:
        counts = {"concurrency": self.concurrency, "max_tokens": self.max_tokens, "batch_size": self.batch_size}
        wrong = [f"{name} must be at least 1" for name, count in counts.items() if count < 1]
        if self.kind not in (kinds := judge_kinds()):
            hint = did_you_mean(self.kind, kinds)
            wrong.append(f"there is no kind of judge {self.kind!r}{hint}; there are {', '.join(kinds)}")
        if self.kind in _ASKING and not self.model:
            wrong.append(f"{'an' if self.kind[0] == 'e' else 'a'} {self.kind} judge needs a model")
        if self.retries < 0 or self.timeout <= 0:
            wrong.append("retries must be 0 or more, and timeout positive")
        if secret := [name for name in self.request if name.lower() in _SECRETS]:
            wrong.append(
                f"{secret[0]!r} is no part of a request; put the key into the environment ({self.key_variable})"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        check_url(self.base_url or "")


def check_url(url: str) -> None:
    """ValueError for a URL that holds a password or a key, for URLs are written into records."""
    parts = urlsplit(url)
    if parts.password or parts.username or parts.query:
        raise ValueError(
            f"the URL of the server {parts.hostname} holds a name, a password or a query, and would be written down "
            "with the results. Give it without, and put the key into the environment."
        )


OFFLINE = JudgeConfig()
"""The exemplar judge: it asks nobody."""
