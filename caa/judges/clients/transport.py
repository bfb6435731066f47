"""A request in, a reply out, over a server that fails now and then. Knows retries and deadlines, no judge."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn

from caa.judges.config import JudgeConfig, check_url
from caa.untrusted import parse_json

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before a broken reply is asked for again, doubled each time: as the client waits after a failed request."""
NO_KEY = "none"
"""What a server gets that needs no key."""
LARGEST_REPLY = 2**28
"""Bytes. The largest that are wanted are embeddings of a whole batch of texts."""
HIDDEN = "[key]"
"""What stands in place of the key if a server sends it back."""


class JudgeError(RuntimeError):
    """A server that does not answer, or will not. What it answered before is kept; run the job again to go on."""


class ReplyTooLongError(Exception):
    """A reply that has no end, or none that memory should wait for."""


class RefusedError(Exception):
    """A server that will not have this one request (400); it may be for its text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _BrokenReplyError(Exception):
    """A reply that came, but not whole, not in time, or not in the protocol's form."""

    def __init__(self, why: str, retries: int) -> None:
        super().__init__(why)
        self.retries = retries


@dataclass(frozen=True)
class Received:
    """What a server sent for one request."""

    content: Any
    """As the caller's `read` made it of the reply's JSON."""
    retries: int
    """How many times the request was sent again."""


Ask = Callable[[Any], AbstractContextManager[Any]]
"""Client -> one request of its `with_streaming_response`."""
Read = Callable[[Any], Any]
"""The JSON of a reply -> what is kept of it; any error says that it is not in the protocol's form."""


class Transport:
    """Sends requests to one OpenAI-compatible server, again where that may help. Safe to use from many threads.

    The `openai` client repeats what ends in a timeout, a lost connection, 408, 409, 429 or 5xx: after the time that
    the server asks for, else with exponential backoff. What breaks off, drips in too slowly or is not in the protocol's
    form is repeated here, out of the same budget of retries.
    """

    def __init__(self, config: JudgeConfig) -> None:
        key = os.environ.get(config.key_variable, "").strip()
        if not key and not (config.base_url or os.environ.get("OPENAI_BASE_URL")):
            raise ValueError(f"no key: set the environment variable {config.key_variable}, or give base_url")
        self._retries, self._timeout, self._key = config.retries, config.timeout, key
        openai = import_openai()
        self._client = openai.OpenAI(
            api_key=key or NO_KEY,
            base_url=config.base_url,
            timeout=config.timeout,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_bound]}),
        )
        check_url(self.url)

    @property
    def url(self) -> str:
        return str(self._client.base_url)

    def send(self, ask: Ask, read: Read) -> Received:
        """What `read` makes of the server's reply.

        JudgeError if there is none after all retries, or the server knows neither key nor model, or sends requests on
        to another address; RefusedError for 400.
        """
        retries = 0
        while True:
            try:
                return self._send_once(ask, read, retries)
            except _BrokenReplyError as error:
                retries = error.retries
                if retries >= self._retries:
                    self.give_up(f"its last reply {error}")
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**retries)
            time.sleep(wait * random.uniform(0.75, 1))
            retries += 1

    def _send_once(self, ask: Ask, read: Read, retries: int) -> Received:
        """One whole reply; the client may take what retries are left."""
        openai = import_openai()
        client = self._client.with_options(max_retries=self._retries - retries)
        try:
            with ask(client) as response:
                retries += response.retries_taken
                body = self._body(response, retries)
        except openai.BadRequestError as error:
            raise RefusedError(str(error.code or ""), self._clean(str(error))) from None
        except openai.APIStatusError as error:
            self.give_up(_elsewhere(error.response) or str(error))
        except (openai.APIError, ReplyTooLongError) as error:
            self.give_up(str(error))
        try:
            # Once more when it is decoded: json may write the letters of a key as codes.
            return Received(read(self._clean_values(parse_json(self._clean(body.decode()), "it"))), retries)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise _BrokenReplyError(f"is not in the protocol's form ({type(error).__name__})", retries) from None

    def _body(self, response: Any, retries: int) -> bytes:
        """The text of a reply; a pause ends it after `timeout` seconds, drop by drop it ends after as many in all."""
        if (packed := response.headers.get("content-encoding", "identity")) != "identity":
            self.give_up(f"it packs its replies ({packed}), though it was asked not to, and they could be of any size")
        end = time.monotonic() + self._timeout
        pieces = []
        try:
            for piece in response.iter_bytes():
                pieces.append(piece)
                if time.monotonic() > end:
                    raise TimeoutError
        except Exception as error:  # the client's HTTP library raises errors of its own here, and it has changed before
            raise _BrokenReplyError(f"broke off ({type(error).__name__})", retries) from None
        return b"".join(pieces)

    def give_up(self, why: str) -> NoReturn:
        """Raise a JudgeError that says why."""
        raise JudgeError(
            f"the judge at {self.url} gives no reply: {self._clean(why)} ({self._retries} retries allowed). "
            "Replies that came are kept: run the job again, and it asks only for what is missing."
        ) from None

    def _clean(self, text: str) -> str:
        """Without the key, should a server send it back."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def _clean_values(self, value: Any) -> Any:
        """The same for all texts of a decoded reply, the names of its fields too."""
        if isinstance(value, dict):
            return {self._clean(name): self._clean_values(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._clean_values(inner) for inner in value]
        return self._clean(value) if isinstance(value, str) else value


def _elsewhere(response: Any) -> str:
    """What to say of a server that sends requests on; nothing of others."""
    if not 300 <= response.status_code < 400:
        return ""
    place = response.headers.get("location", "nowhere")
    return f"it sends requests on to {place}, with all that they hold; if you trust that address, give it as base_url"


def _bound(response: Any) -> None:
    """Let no reply be longer than `LARGEST_REPLY`, one that says what was wrong neither, whatever it is packed in."""
    stream, taken = response.stream, 0
    kind = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")

    class Bounded(kind):  # type: ignore[misc,valid-type]
        def __iter__(self) -> Iterator[bytes]:
            nonlocal taken
            for piece in stream:
                taken += len(piece)
                if taken > LARGEST_REPLY:
                    raise ReplyTooLongError(f"its reply is longer than {LARGEST_REPLY:,} bytes")
                yield piece

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()
    if response.status_code >= 300:  # the client reads these itself, and would unpack them
        response.headers.pop("content-encoding", None)


def import_openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("an endpoint needs the openai client: pip install 'caa[judge]'") from error
    return openai
