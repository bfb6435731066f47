"""A Hugging Face model in this process: prompts in, the probabilities of its reply's first word out. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from caa.data.chat import ChatFormat
from caa.judges.clients.protocol import Reply
from caa.judges.scales import TOP, Tokens, may_begin_ten
from caa.models.batching import by_length, pad
from caa.models.blocks import context_length, evaluating
from caa.models.fingerprint import fingerprint
from caa.models.names import model_name
from caa.models.tensors import check_logits
from caa.steering.wrapper import SteeringWrapper

BLANKS = 3
"""How many blank tokens a reply may begin with: Llama 2 writes one before a number."""

Likely = dict[int, float]
"""Token id -> probability, for the likeliest tokens in one place, the likeliest first."""


class LocalModel:
    """A causal LM as it is: give it a model of its own, not the one that is being steered and finetuned."""

    def __init__(self, model: Any, chat: ChatFormat | Any, *, batch_size: int = 16) -> None:
        self._wrapper, self._chat, self._batch_size = SteeringWrapper(model), ChatFormat.of(chat), batch_size
        self._tokenizer = self._chat.tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        """What a reply depends on besides its prompt."""
        model = self._wrapper.model
        template = self._chat.template or self._tokenizer.chat_template
        settings = {"model": model_name(model), "fingerprint": fingerprint(model), "template": template}
        told = {"template_arguments": dict(self._chat.arguments), "system": self._chat.system}
        return settings | {name: value for name, value in told.items() if value}

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        """The replies in the order of the prompts, `batch_size` in a pass; refused where the context is short."""
        texts = [self._chat.encode(prompt) for prompt in prompts]
        limit = context_length(self._wrapper.model, self._tokenizer)
        fitting = [i for i, ids in enumerate(texts) if len(ids) + BLANKS < limit]
        replies = dict(zip(fitting, self._replies([texts[i] for i in fitting]), strict=True))
        return [replies.get(i, Reply("", refused="context_length_exceeded")) for i in range(len(texts))]

    def _replies(self, texts: Sequence[list[int]]) -> list[Reply]:
        begun, likely = self._skip_blanks(texts)
        first = [self._as_texts(tokens) for tokens in likely]
        after_one: dict[int, Tokens] = {}
        ones = {i: self._one(likely[i]) for i, tokens in enumerate(first) if may_begin_ten(tokens)}
        for (i, one), tokens in zip(ones.items(), self._next([[*begun[i], ones[i]] for i in ones]), strict=True):
            after_one[i] = self._as_texts(tokens, one)
        return [Reply(next(iter(tokens)), tokens, after_one.get(i, {})) for i, tokens in enumerate(first)]

    def _skip_blanks(self, texts: Sequence[list[int]]) -> tuple[list[list[int]], list[Likely]]:
        """The texts, each up to where its reply's first word begins, and the likeliest tokens there."""
        begun, likely = list(texts), self._next(texts)
        for _ in range(BLANKS):
            blank = [i for i, tokens in enumerate(likely) if not self._text([next(iter(tokens))]).strip()]
            for i in blank:
                begun[i] = [*begun[i], next(iter(likely[i]))]
            for i, tokens in zip(blank, self._next([begun[i] for i in blank]), strict=True):
                likely[i] = tokens
        return begun, likely

    def _one(self, tokens: Likely) -> int:
        """The id of the likeliest token that says 1."""
        return next(token for token in tokens if self._text([token]).strip() == "1")

    def _as_texts(self, tokens: Likely, after: int | None = None) -> Tokens:
        """What each token adds to the text; some tokenizers drop the blank of a token that stands alone."""
        before = [] if after is None else [after]
        texts: dict[str, float] = {}
        for token, probability in tokens.items():
            text = self._text([*before, token])[len(self._text(before)) :]
            texts[text] = texts.get(text, 0.0) + probability
        return texts

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    @torch.no_grad()
    def _next(self, texts: Sequence[list[int]]) -> list[Likely]:
        """The likeliest next tokens after each text, from a float32 softmax."""
        likeliest: dict[int, Likely] = {}
        with evaluating(self._wrapper), self._wrapper.paused():  # whoever judges is not steered
            for rows in by_length(texts, self._batch_size):
                ids, mask = pad([texts[row] for row in rows], self._tokenizer.pad_token_id or 0, side="left")
                device = self._wrapper.model.get_input_embeddings().weight.device
                output = self._wrapper(ids.to(device), mask.to(device), logits_to_keep=1, use_cache=False)
                check_logits(output.logits[:, -1], "of the judge")
                top = output.logits[:, -1].float().softmax(-1).topk(TOP)
                for row, tokens, values in zip(rows, top.indices.tolist(), top.values.tolist(), strict=True):
                    likeliest[row] = dict(zip(tokens, values, strict=True))
        return [likeliest[row] for row in range(len(texts))]
