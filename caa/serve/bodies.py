"""What clients send, as OpenAI's interface has it, and `steering` beside it. What is not known here is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from caa.serve.catalog import Push

LONGEST_STOP = 200
MOST_CHOICES = 16
MOST_PROMPTS = 2048
MOST_MESSAGES = 4096
"""Of a conversation, and parts of a message."""


class _Strict(BaseModel):
    """A field that nobody would heed is an error, and so are infinite numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    """What a stream tells beside the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any] | dict[str, Any], Field(max_length=0)]


class Body(_Strict):
    """What both kinds of completions take."""

    model: str
    steering: Push | Annotated[list[Push], Field(max_length=16)] = []
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Not read."""
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Nothing | None = None

    @property
    def edits(self) -> list[Push]:
        return [self.steering] if isinstance(self.steering, Push) else self.steering

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int | None:
        """Tokens that an answer may have; None where the client does not say."""
        return self.max_tokens


class Part(_Strict):
    """Of a message in parts: text alone can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MOST_MESSAGES)]
    name: str | None = None
    """Not read."""

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(Body):
    """What /v1/chat/completions takes."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Nothing | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """How many log probabilities are told at each place; None for none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TextBody(Body):
    """What /v1/completions takes."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_count(cls, prompt: Any) -> Any:
        """Before any of them is looked at. One list of ids is one prompt, whose length the engine checks."""
        if prompt == []:
            raise ValueError("there is no prompt in the list; give a text, several, or the ids of their tokens")
        if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > MOST_PROMPTS:
            raise ValueError(f"a request has at most {MOST_PROMPTS} prompts, and not {len(prompt)}; send several")
        return prompt

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        return [ids] if ids else [part for part in self.prompt if not isinstance(part, int)]
