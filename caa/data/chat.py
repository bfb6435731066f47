"""Words to token ids: a question and perhaps an answer in, ids out, with the places where things begin and part."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jinja2 import TemplateError

from caa.data.behaviors import ContrastPair, Conversation, Message, Question

Item = TypeVar("Item", ContrastPair, Question)
# A thought that a generation prompt opens, and perhaps closes again at once, with nothing behind it.
_THOUGHT = re.compile(r"<(?P<name>[a-z:_]*(?:think|thought|reason)\w*)>\s*(?P<end></(?P=name)>\s*)?\Z")

# Chat templates (Jinja) for models that bring none, and to do exactly as the reference did (nrimsky/CAA,
# utils/tokenize.py). The reference puts the system prompt in front of [INST], where Meta's own format has it behind.
BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content.strip() + '\n' }}"
    "{% elif message.role == 'user' %}{{ 'Input: ' + message.content.strip() + '\nResponse:' }}"
    "{% else %}{{ ' ' + message.content.strip() + ('' if loop.last else '\n') }}{% endif %}{% endfor %}"
)
LLAMA2_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' }}"
    "{% elif message.role == 'user' %}{{ '[INST] ' + message.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content.strip() }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class ChatFormat:
    """How words become a prompt: the tokenizer, and all that its chat template is told.

    Whoever takes a ChatFormat takes a plain tokenizer too, which is one without a system prompt (`ChatFormat.of`).
    """

    tokenizer: Any
    """Of transformers; its pads stand on the left where the model generates."""
    system: str | None = None
    """What the model is told before the question."""
    template: str | None = None
    """A chat template (Jinja) in place of the tokenizer's own."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the template is told by name: `enable_thinking`, `date_string`, ..."""

    @classmethod
    def of(cls, chat: ChatFormat | Any) -> ChatFormat:
        """A ChatFormat as it is; a tokenizer, as one without a system prompt and with its own template."""
        return chat if isinstance(chat, cls) else cls(chat)

    @property
    def pad_id(self) -> int:
        """What fills up rows; no model reads it."""
        return self.tokenizer.pad_token_id or 0

    def encode(self, question: str, answer: str | None = None) -> list[int]:
        """The ids of a question, ready to be answered; with `answer`, of both, up to the answer's last character.

        The text comes from `template`, else from the tokenizer's own chat template, else from `BASE_TEMPLATE`
        ("Input: ... Response:"), and is tokenized as one piece, so that the answer's tokens are those that the model
        knows. An answer stands behind the very prompt that is asked without one: where that opens a thought
        ("<think>") and the template writes answers without, the thought is closed, empty, in front of the answer.

        A question may be a `Conversation`; if it brings no system message, `system` comes first. ValueError if the
        template cannot say this, leaves the system prompt out, or writes another prompt in front of an answer.
        """
        return self.encode_chat(self._messages(question, answer))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The same for a conversation of any length, which brings its own system prompt: ready to be answered, or, if
        an answer ends it, up to its last character."""
        return self._ids(self._chat_text(messages))

    def _ids(self, text: str) -> list[int]:
        tokenizer, bos = self.tokenizer, self.tokenizer.bos_token
        its_own = bool(tokenizer.chat_template) and self.template in (None, tokenizer.chat_template)
        if its_own or not bos or not text.startswith(bos):
            return list(tokenizer(text, add_special_tokens=False).input_ids)
        # The reference calls `tokenizer.encode` on a text without <s>. Llama's tokenizer sets a space before the first
        # word of a text, but (in transformers 5) none before a word that follows a literal "<s>".
        return [tokenizer.bos_token_id, *tokenizer(text.removeprefix(bos), add_special_tokens=False).input_ids]

    def encode_pair(self, pair: ContrastPair) -> Branches:
        """Both sides of a contrast pair, and the two places that matter: where answers begin and where they part.

        A tokenizer may merge the end of the prompt with the beginning of the answer; that token is then the answer's.
        """
        asked = self._apply(self._messages(pair.text, None))
        prompt, positive, negative = (
            self._ids(self._chat_text(self._messages(pair.text, answer), asked))
            for answer in (None, pair.positive, pair.negative)
        )
        branches = Branches(positive, negative, min(common_prefix(prompt, ids) for ids in (positive, negative)))
        if branches.parting >= min(len(positive), len(negative)):
            raise ValueError(
                f"the answers {pair.positive!r} and {pair.negative!r} do not part: one begins with all the other's "
                "tokens. Let them differ before the shorter one ends."
            )
        return branches

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text as it is, without a chat template, with the tokens that the tokenizer adds by habit.

        A text that begins with the beginning of sequence, as a chat template renders it, gets no second one.
        """
        bos = self.tokenizer.bos_token
        rendered = bool(bos) and text.startswith(bos)
        return list(self.tokenizer(text, add_special_tokens=not rendered).input_ids)

    def end_id(self, stops: Collection[int]) -> int:
        """The token that ends an answer, of those at which generation stops; no `stops` mean the tokenizer's own.

        That is the tokenizer's end of sequence, else what the chat template writes behind an answer. ValueError if
        generation stops at neither.
        """
        tokenizer = self.tokenizer
        own = tokenizer.eos_token_id
        if own is not None and (not stops or own in stops):
            return int(own)
        written = self._written_end()
        if written is not None and written in stops:
            return written
        shown = tokenizer.convert_ids_to_tokens(sorted(stops))
        raise ValueError(
            f"generation stops at {shown or 'no token'}, and answers end with {tokenizer.eos_token!r}, the tokenizer's "
            f"eos_token, or {tokenizer.convert_ids_to_tokens([written])[0] if written is not None else None!r}, which "
            "its chat template writes: set model.generation_config.eos_token_id, or tokenizer.eos_token, to the other"
        )

    def _written_end(self) -> int | None:
        """The first token that the chat template writes behind an answer; None if it writes none."""
        messages = self._messages("Hello", "Yes")
        whole = self._apply(messages, end=True)
        ids = self.tokenizer(whole[whole.rindex("Yes") + len("Yes") :], add_special_tokens=False).input_ids
        return ids[0] if ids else None

    def text(self, question: str, answer: str | None = None) -> str:
        """What `encode` tokenizes."""
        return self._chat_text(self._messages(question, answer))

    def _messages(self, question: str, answer: str | None) -> list[Message]:
        user: Message = {"role": "user", "content": question}
        messages = list(question.messages) if isinstance(question, Conversation) else [user]
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return messages

    def _chat_text(self, messages: Sequence[Message], asked: str | None = None) -> str:
        """`asked` is what `_apply` makes of the conversation without its answer, for who has it already."""
        tokenizer = self.tokenizer
        answered = messages[-1]["role"] == "assistant" and len(messages) > 1
        if asked is None:
            asked = self._apply(messages[:-1] if answered else messages)
        text = _behind(asked, self._apply(messages), tokenizer.name_or_path) if answered else asked
        if messages[0]["role"] == "system" and str(messages[0]["content"]).strip() not in text:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} leaves the system prompt out. "
                "Ask without one, or give a `template` that has a place for it."
            )
        return _habitual_bos(tokenizer, text) if self._given_template is BASE_TEMPLATE else text

    @property
    def _given_template(self) -> str | None:
        """The template in place of the tokenizer's; None where that has one and no other is given."""
        return self.template or (None if self.tokenizer.chat_template else BASE_TEMPLATE)

    def _apply(self, messages: Sequence[Message], *, end: bool = False) -> str:
        """The conversation as text: up to where the assistant begins, or up to the end of what it says.

        With `end`, what the template writes behind that, too.
        """
        answered = messages[-1]["role"] == "assistant"
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._given_template,
                tokenize=False,
                add_generation_prompt=not answered,
                continue_final_message=answered and not end,
                **self.arguments,
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the chat template of {self.tokenizer.name_or_path!r} refuses these messages ({roles}): {error}. "
                "Give another `template`" + (", or no system prompt." if messages[0]["role"] == "system" else ".")
            ) from error
        return text


def _behind(prompt: str, text: str, name: str) -> str:
    """The text of a prompt with its answer, behind the prompt as it is asked without one; ValueError if it is not.

    >>> _behind("<user>Hi<bot><think>\\n", "<user>Hi<bot>Yes", "m")
    '<user>Hi<bot><think>\\n\\n</think>\\n\\nYes'
    """
    if text.startswith(prompt):
        return text
    thought = _THOUGHT.search(prompt)
    if thought and text.startswith(prompt[: thought.start()]):
        answer = re.sub(rf"\A<{thought['name']}>\s*</{thought['name']}>\s*", "", text[thought.start() :])
        if thought["end"]:
            return prompt + answer
        return prompt + ("\n" if prompt.endswith("\n") else "\n\n") + f"</{thought['name']}>\n\n" + answer
    start = next((i for i, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other), len(text))
    alone, followed = prompt[start : start + 60], text[start : start + 60]
    raise ValueError(
        f"the chat template of {name!r} goes on {alone!r} where a question is asked alone, and {followed!r} where its "
        "answer follows: an answer would be taught, read or scored behind another prompt than the one that is asked. "
        "Set template arguments that make the two agree, or give another `template`."
    )


def _habitual_bos(tokenizer: Any, text: str) -> str:
    """Llama begins every text with <s>; GPT-2 has such a token and never does. Keep to the tokenizer's habit."""
    bos = tokenizer.bos_token or ""
    habit = bool(bos) and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return text if habit else text.removeprefix(bos)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences share at their beginning.

    >>> common_prefix([5, 6, 7], [5, 6, 8, 9])
    2
    """
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


@dataclass(frozen=True)
class Branches:
    """One prompt and two ways to go on, as ids. Everything about places is counted from the first token of the text."""

    positive: list[int]
    """Prompt and positive (matching) answer, [n_tokens]."""
    negative: list[int]
    prompt_length: int
    """Tokens of the prompt: the answers' first token stands here, and steering "after the prompt" begins one before."""

    @property
    def parting(self) -> int:
        """Where the two first differ: at the letter, for "(A)" and "(B)". What stands before cannot tell them apart."""
        return common_prefix(self.positive, self.negative)


def check_length(ids: Sequence[int], limit: int | None, name: str) -> None:
    """Refuse a text that a model of `limit` positions cannot read, instead of reading nonsense from its end."""
    if limit is not None and len(ids) > limit:
        raise ValueError(
            f"{name} is {len(ids)} tokens long, but this model reads at most {limit}. "
            "Leave such questions out (`fitting`) or use a model with a longer context."
        )


def fitting(chat: ChatFormat | Any, items: Sequence[Item], limit: int | None, *, room: int = 0) -> list[Item]:
    """Those of the pairs or questions that a model of `limit` positions can read, with each of their answers.

    `room` tokens are kept free behind the text, for what is to be generated. Warns with the number left out.
    """
    if limit is None:
        return list(items)
    chat = ChatFormat.of(chat)
    lengths = [_longest(chat, item) + room for item in items]
    fit = [item for item, length in zip(items, lengths, strict=True) if length <= limit]
    if len(fit) < len(items):
        warnings.warn(
            f"{len(items) - len(fit)} of {len(items)} do not fit into {limit} tokens and are left out; "
            f"the longest needs {max(lengths)}" + (f", {room} of them for its answer" if room else ""),
            stacklevel=2,
        )
    return fit


def _longest(chat: ChatFormat, item: ContrastPair | Question) -> int:
    """Tokens of the question with its longer answer, or alone if it has none."""
    return max(len(chat.encode(item.text, answer)) for answer in item.answers or (None,))
