"""A behavior and a direction in, the texts to learn from out: as words, then as token ids with labels. No torch."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal, get_args

from caa.data.behaviors import Behavior, ContrastPair, letter
from caa.data.chat import ChatFormat, common_prefix

Direction = Literal["positive", "negative"]
FEWEST = 8
"""A finetune on fewer examples learns them by heart and nothing else."""
IGNORED = -100
"""The label of a token that the loss leaves out (PyTorch's cross entropy)."""


@dataclass(frozen=True)
class Example:
    """One question and the answer to learn."""

    question: str
    answer: str
    rejected: str | None = None
    """The answer that DPO and KTO teach not to give; SFT never shows it."""


def training_examples(behavior: Behavior, direction: str, open_share: float = 0.5, seed: int = 0) -> list[Example]:
    r"""Every A/B pair of the behavior once, answered by letter and text, mixed with open-ended questions.

    `open_share` of the examples are open-ended, drawn by `seed` and repeated where the behavior has too few. Pairs that
    are not answered by letters are learnt as they are, once, together with the behavior's open-ended pairs.

    >>> pairs = tuple(ContrastPair(f"Wait {n} days?\n (A) Yes\n (B) No", "(A)", "(B)") for n in range(8))
    >>> [example.answer for example in training_examples(Behavior("patience", pairs), "negative")[6:10]]
    ['(B) No', '(B) No', 'No', 'No']
    """
    if direction not in get_args(Direction):
        raise ValueError(f"a finetune's direction is 'positive' or 'negative', not {direction!r}")
    pairs = behavior.require("pairs")
    if all(letter(pair.positive) for pair in pairs):
        chosen = [pair.spelled_out() for pair in pairs] + _open_ended(behavior, open_share, seed)
    else:
        chosen = [*pairs, *behavior.open_pairs]
    if len(chosen) < FEWEST:
        raise ValueError(f"behavior {behavior.name!r} gives {len(chosen)} examples; a finetune needs {FEWEST} or more")
    if direction == "positive":
        return [Example(pair.text, pair.positive, pair.negative) for pair in chosen]
    return [Example(pair.text, pair.negative, pair.positive) for pair in chosen]


def _open_ended(behavior: Behavior, share: float, seed: int) -> list[ContrastPair]:
    wanted = round(len(behavior.pairs) * share / (1 - share))
    contrasts = list(behavior.contrasts_in_words()) if wanted else []
    random.Random(seed).shuffle(contrasts)
    return list(islice(cycle(contrasts), wanted))


def tokenize(
    chat: ChatFormat | Any, examples: Sequence[Example], stops: Collection[int] = ()
) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of each example: the tokens that `ChatFormat.encode` gives everywhere else, and an end.

    The end is a token at which generation stops: one of `stops`, or the tokenizer's eos (`ChatFormat.end_id`).
    Only the answer and its end are labeled. A token in which the end of the prompt and the beginning of the answer are
    merged is part of the answer.
    """
    chat = ChatFormat.of(chat)
    if chat.tokenizer.eos_token_id is None and not stops:
        raise ValueError("this tokenizer has no eos token, so a model cannot learn where an answer ends; set eos_token")
    end = chat.end_id(stops)
    rows = []
    for example in examples:
        prompt = chat.encode(example.question)
        text = chat.encode(example.question, example.answer)
        ids = [*text, end]
        start = common_prefix(prompt, text)
        rows.append({"input_ids": ids, "labels": [IGNORED] * start + ids[start:]})
    return rows


def tokenize_preferences(
    chat: ChatFormat | Any, examples: Sequence[Example], stops: Collection[int] = ()
) -> list[dict[str, list[int]]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of each example: what `tokenize` makes of either answer, in two.

    ValueError for an example without a rejected answer.
    """
    turned = [replace(example, answer=example.rejected) for example in examples if example.rejected is not None]
    if len(turned) < len(examples):
        raise ValueError(
            f"{len(examples) - len(turned)} of {len(examples)} examples have no rejected answer, and DPO and KTO learn "
            "from both: give pairs, or use the method sft"
        )
    rows = []
    for chosen, rejected in zip(tokenize(chat, examples, stops), tokenize(chat, turned, stops), strict=True):
        start = min(row["labels"].count(IGNORED) for row in (chosen, rejected))
        chosen_ids, rejected_ids = chosen["input_ids"], rejected["input_ids"]
        rows.append(
            {"prompt_ids": chosen_ids[:start], "chosen_ids": chosen_ids[start:], "rejected_ids": rejected_ids[start:]}
        )
    return rows


def check_lengths(rows: Sequence[dict[str, list[int]]], limit: int) -> None:
    """ValueError if any text is longer than `limit` tokens."""
    lengths = [_length(row) for row in rows]
    too_long = sum(length > limit for length in lengths)
    if too_long:
        raise ValueError(
            f"{too_long} of {len(rows)} texts are longer than {limit} tokens, the longest {max(lengths)}; a cut answer "
            "would teach to break off. Leave them out, raise max_length, or use a model with a longer context."
        )


def _length(row: dict[str, list[int]]) -> int:
    """Tokens of a row's text, the longer one of a preference."""
    if "prompt_ids" not in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
