"""A model behind an OpenAI-compatible server: prompts in, replies out, each asked for once. Knows no rubric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from caa.judges.clients.cache import CACHE, ReplyCache, request_key
from caa.judges.clients.protocol import Reply
from caa.judges.clients.transport import RefusedError, Transport
from caa.judges.config import JudgeConfig
from caa.judges.scales import TOP, Tokens, may_begin_ten

ABOUT_THE_TEXT = ("content_filter", "context_length_exceeded", "string_above_max_length")
"""Codes of refusals (400) that are about one text; any other is about all requests, and ends the run."""
PREFILL = {"continue_final_message": True, "add_generation_prompt": False}
"""How vLLM and SGLang are asked to go on with the last message."""
TEN = "Reply with the number 10 and nothing else."
"""Asked once of a server that tells probabilities, to see whether its tokenizer has a token for 10."""


class EndpointModel:
    """A served model. Replies are kept in `<folder>/judge.jsonl` the moment they come, by server, model and request."""

    def __init__(self, config: JudgeConfig, folder: str | Path) -> None:
        self.config = config
        self.transport = Transport(config)
        self.cache = ReplyCache(Path(folder) / CACHE)

    @property
    def settings(self) -> dict[str, Any]:
        return {"url": self.transport.url, "prefill": self.config.prefill, **self._fields}

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        """The replies in the order of the prompts, `concurrency` at a time; JudgeError if the server gives none.

        After a JudgeError all replies that came are in the cache: the next call asks only for the others.
        """
        distinct = list(dict.fromkeys(prompts))
        if self.config.reply == "expected" and distinct:
            _ = self._has_ten  # asked here, once, and not by every thread
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            replies = dict(zip(distinct, pool.map(self._ask, distinct), strict=True))
        return [replies[prompt] for prompt in prompts]

    def _ask(self, prompt: str) -> Reply:
        messages = [{"role": "user", "content": prompt}]
        record = self._record(messages)
        reply = Reply(record["text"], record.get("first"), record.get("after_one"), record.get("refused", ""))
        if reply.first is None or reply.after_one is not None or not may_begin_ten(reply.first):
            return reply
        if self._has_ten:
            return Reply(reply.text, reply.first, {})
        if self.config.prefill:
            begun = self._record([*messages, {"role": "assistant", "content": "1"}], PREFILL)
            return Reply(reply.text, reply.first, begun.get("first"))
        return reply

    @cached_property
    def _has_ten(self) -> bool:
        """Whether the tokenizer writes 10 as one token; where it does not show, it is taken to write two."""
        first = self._record([{"role": "user", "content": TEN}]).get("first")
        return first is not None and max(first, key=first.__getitem__).strip() == "10"

    def _record(self, messages: list[dict[str, str]], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The fields of a `Reply`, from the cache, else from the server."""
        fields = self._fields | dict(more or {})
        key = request_key(self.transport.url, fields, messages)
        if key not in self.cache:
            self.cache.put(key, self._fetch(fields, messages))
        record: dict[str, Any] = self.cache.get(key)["reply"]
        return record

    def _fetch(self, fields: dict[str, Any], messages: list[dict[str, str]]) -> dict[str, Any]:
        def ask(client: Any) -> Any:
            create = client.chat.completions.with_streaming_response.create
            return create(model=fields["model"], messages=messages, extra_body=fields)

        try:
            received = self.transport.send(ask, _kept)
        except RefusedError as error:
            if error.code not in ABOUT_THE_TEXT:
                self.transport.give_up(str(error))
            return {"reply": {"text": "", "refused": error.code}, "retries": 0}
        kept: dict[str, Any] = received.content
        return kept | {"retries": received.retries}

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """A request, but for its messages."""
        config = self.config
        likely = {"logprobs": True, "top_logprobs": TOP} if config.reply == "expected" else {}
        fields = {"model": config.model, "temperature": 0, "max_tokens": config.max_tokens, **likely, **config.request}
        return {name: value for name, value in fields.items() if value is not None}


def _kept(content: dict[str, Any]) -> dict[str, Any]:
    """What the cache keeps of a reply: its words, its probabilities, the snapshot that answered, and what it cost."""
    choice = content["choices"][0]
    message = choice["message"]
    refused = "content_filter" if choice.get("finish_reason") == "content_filter" else ""
    text = message.get("content") or message.get("refusal") or ""
    if not isinstance(text, str):
        raise TypeError(f"a reply's content is a text, not {type(text).__name__}")
    first, after_one = _beginning((choice.get("logprobs") or {}).get("content") or [])
    reply = {"text": text, "first": first, "after_one": after_one, "refused": refused}
    return {"reply": reply, "model": content.get("model"), "usage": content.get("usage")}


def _beginning(places: Sequence[Mapping[str, Any]]) -> tuple[Tokens | None, Tokens | None]:
    """The likeliest tokens where the first word begins, and those after it if it is "1"."""
    begin = next((i for i, place in enumerate(places) if place["token"].strip()), None)
    if begin is None:
        return None, None
    one = places[begin]["token"].strip() == "1"
    return _tokens(places[begin]), _tokens(places[begin + 1]) if one and begin + 1 < len(places) else None


def _tokens(place: Mapping[str, Any]) -> Tokens:
    """token -> probability; byte tokens that look alike as text are added up."""
    tokens: dict[str, float] = {}
    for likely in place["top_logprobs"]:
        tokens[likely["token"]] = tokens.get(likely["token"], 0.0) + math.exp(likely["logprob"])
    return tokens
