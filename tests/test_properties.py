"""Scopes, batches and readers on drawn cases: each against a slow definition, one token or value at a time."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caa.models.batching import branched, by_length, by_tokens, in_batches, pad
from caa.models.positions import position_ids
from caa.steering.scopes import SCOPES, At, Decay, First, Steps
from caa.untrusted import DEEPEST, as_dataclass, cell_text, fits, parse_json, plain, plain_cell, read_json, read_yaml

drawn = settings(deadline=None, derandomize=True, max_examples=60, database=None)
TEXT = st.lists(st.integers(3, 99), min_size=1, max_size=6)
TEXTS = st.lists(TEXT, min_size=1, max_size=4)
SIDE = st.sampled_from(["left", "right"])
K = 2
BY_HAND = {
    "after_prompt": (SCOPES["after_prompt"], lambda place, last: place >= last),
    "everywhere": (SCOPES["everywhere"], lambda place, last: True),
    "prompt_only": (SCOPES["prompt_only"], lambda place, last: place <= last),
    "last_prompt_token": (SCOPES["last_prompt_token"], lambda place, last: place == last),
    "first": (First(K), lambda place, last: place in range(K)),
    "steps": (Steps(K), lambda place, last: place in range(last, last + K)),
    "decay": (Decay(K), lambda place, last: 0.5 ** ((place - last) / K) if place >= last else 0.0),
}


@drawn
@given(TEXTS, SIDE, st.data())
def test_a_scope_on_a_padded_batch_is_its_definition_at_every_token(texts, side, data):
    lasts = [data.draw(st.integers(0, len(text) - 1)) for text in texts]
    mask = pad(texts, 0, side)[1]
    for scope, by_hand in BY_HAND.values():
        chosen = scope(position_ids(mask), torch.tensor(lasts)[:, None])
        for row, text in enumerate(texts):
            expected = [float(by_hand(place, lasts[row])) for place in range(len(text))]
            assert chosen[row][mask[row].bool()].float().tolist() == pytest.approx(expected)


@drawn
@given(TEXTS, SIDE, st.data())
def test_the_places_of_a_mask_choose_the_tokens_of_the_mask(texts, side, data):
    wanted = [data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text))) for text in texts]
    mask = pad(texts, 0, side)[1]
    chosen = mask.bool().clone()
    for row, flags in enumerate(wanted):
        chosen[row, mask[row].bool()] = torch.tensor(flags)
    scope = At.mask(chosen | (mask == 0), mask)
    assert scope.places == tuple(tuple(place for place, flag in enumerate(flags) if flag) for flags in wanted)
    again = scope(position_ids(mask), torch.zeros(len(texts), 1).long())
    assert torch.equal(again & mask.bool(), chosen)


@drawn
@given(TEXTS, SIDE)
def test_a_padded_row_is_its_text_on_one_side_and_pads_on_the_other(texts, side):
    longest = max(map(len, texts))
    for text, ids, mask in zip(texts, *(tensor.tolist() for tensor in pad(texts, 1, side)), strict=True):
        pads, ones = [1] * (longest - len(text)), [1] * len(text)
        assert ids == (pads + text if side == "left" else text + pads)
        assert mask == ([0] * len(pads) + ones if side == "left" else ones + [0] * len(pads))


LENGTHS = st.lists(st.integers(1, 9), max_size=12)


@drawn
@given(LENGTHS, st.integers(1, 20))
def test_batches_hold_every_text_once_shortest_first_and_as_many_as_fit(lengths, budget):
    batches = by_tokens(lengths, budget)
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for batch, behind in zip(batches, [*batches, None][1:], strict=True):
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
        assert behind is None or lengths[behind[0]] * (len(batch) + 1) > budget
    equal = by_length([[0] * length for length in lengths], budget)
    assert [i for batch in equal for i in batch] == order
    assert [len(batch) for batch in equal[:-1]] == [budget] * len(equal[:-1])


@drawn
@given(LENGTHS, st.integers(1, 40), st.integers(9, 30))
def test_where_memory_runs_out_every_text_still_comes_once(lengths, budget, memory):
    def run(batch):
        if max(lengths[i] for i in batch) * len(batch) > memory:
            raise torch.OutOfMemoryError
        return [lengths[i] for i in batch]

    answers = {
        i: length for batch, result in in_batches(run, lengths, budget) for i, length in zip(batch, result, strict=True)
    }
    assert answers == dict(enumerate(lengths))
    assert len(lengths) == sum(len(batch) for batch, _ in in_batches(run, lengths, budget))


@drawn
@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_branch_sees_its_stem_and_itself_and_stands_where_it_would_alone(rows, count, data):
    stems = [data.draw(TEXT) for _ in range(rows)]
    tails = [[data.draw(TEXT) for _ in range(count)] for _ in range(rows)]
    text = branched(stems, tails, pad_id=0)
    sees = text.mask(torch.float32)[:, 0] == 0
    for row, stem in enumerate(stems):
        for branch, tail in enumerate(tails[row]):
            begin = text.stem + branch * text.width
            columns = [*range(text.stem - len(stem), text.stem), *range(begin, begin + len(tail))]
            assert text.ids[row, columns].tolist() == stem + tail
            assert text.positions[row, columns].tolist() == list(range(len(columns)))
            for place, column in enumerate(columns):
                assert sees[row, column].nonzero().flatten().tolist() == columns[: place + 1]
        assert not text.positions[row][text.real[row] == 0].any()
        assert text.real[row].sum() == len(stem) + sum(map(len, tails[row]))


PLAIN = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from([True, 1, 1.0, "", "a", "b"])
)
VALUE = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "é"]), inner),
    max_leaves=6,
)
ATOMS: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "null": None, "a or 1": Literal["a", 1]}
KIND = st.recursive(
    st.sampled_from(sorted(ATOMS)).map(lambda name: (name,)),
    lambda inner: st.tuples(st.sampled_from(["list", "dict"]), inner) | st.tuples(st.just("union"), inner, inner),
    max_leaves=3,
)


def hint_of(kind: tuple) -> Any:
    """The annotation that a tree of names stands for."""
    if kind[0] in ATOMS:
        return ATOMS[kind[0]]
    inner = [hint_of(part) for part in kind[1:]]
    if kind[0] == "union":
        return inner[0] if inner[0] == inner[1] else (inner[0] or type(None)) | (inner[1] or type(None))
    return list[inner[0]] if kind[0] == "list" else dict[str, inner[0]]


def is_of(value: Any, kind: tuple) -> bool:
    """Whether json would write the value as the tree of names says."""
    name, written = kind[0], json.dumps(value)
    if name == "union":
        return is_of(value, kind[1]) or is_of(value, kind[2])
    if name in ("list", "dict"):
        inner = value if name == "list" else value.values() if written[0] == "{" else ()
        return written[0] == ("[" if name == "list" else "{") and all(is_of(item, kind[1]) for item in inner)
    number = written[0] in "-0123456789"
    return {
        "int": number and not set(written) & set(".e"),
        "float": number,
        "str": written[0] == '"',
        "bool": written in ("true", "false"),
        "null": written == "null",
        "a or 1": written in ('"a"', "1"),
    }[name]


@settings(drawn, max_examples=200)
@given(VALUE, KIND)
def test_a_value_fits_the_types_that_its_json_has(value, kind):
    for tree in [kind, *((name,) for name in ATOMS)]:
        assert fits(value, hint_of(tree)) == is_of(value, tree)


@drawn
@given(VALUE)
def test_json_comes_back_from_every_reader_as_it_was_written(value):
    text = json.dumps(value)
    assert parse_json(text, "a") == parse_json(text.encode(), "a") == value
    with TemporaryDirectory() as folder:
        Path(folder, "a").write_text(text, encoding="utf-8")
        assert read_json(Path(folder, "a")) == read_yaml(Path(folder, "a")) == value


@drawn
@given(
    st.sampled_from(range(DEEPEST - 1, DEEPEST + 2)).flatmap(lambda deep: st.text("[{", min_size=deep, max_size=deep))
)
def test_a_document_is_refused_from_the_first_depth_beyond_the_limit(brackets):
    text = "null"
    for bracket in brackets:  # with a neighbor, so that there are more of them than are in each other
        text = f"[{text},[]]" if bracket == "[" else f'{{"a":{text},"b":{{}}}}'
    if len(brackets) <= DEEPEST:
        assert json.dumps(parse_json(text, "a"), separators=(",", ":")) == text
    else:
        with pytest.raises(ValueError, match=f"a is nested more than {DEEPEST} deep"):
            parse_json(text, "a")


@dataclass(frozen=True)
class Leaf:
    name: str
    share: float | None = None


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    leaves: tuple[Leaf, ...] = ()
    named: dict[str, int] | None = None


LEAF = st.builds(Leaf, st.text(max_size=3), st.none() | st.floats(-2, 2))
TREE = st.builds(
    Tree, LEAF, st.lists(LEAF, max_size=3).map(tuple), st.none() | st.dictionaries(st.text(), st.integers())
)


@drawn
@given(TREE)
def test_a_record_comes_back_from_its_json(tree):
    assert as_dataclass(Tree, json.loads(json.dumps(asdict(tree))), "a.json") == tree


@drawn
@given(TREE, st.sampled_from(["leaf", "leaves", "named"]), VALUE)
def test_a_record_with_another_value_is_read_or_refused_by_the_fields_name(tree, name, value):
    record = json.loads(json.dumps(asdict(tree))) | {name: value}
    right = fits(value, {"leaf": dict, "leaves": list[dict], "named": dict[str, int] | None}[name])
    with (
        nullcontext()
        if right and (name == "named" or not value) and name != "leaf"
        else pytest.raises(ValueError, match=rf"a.json(: |, ){name}")
    ):
        assert json.loads(json.dumps(asdict(as_dataclass(Tree, record, "a.json"))))[name] == value


SIGNED = st.text("+-1. ", max_size=3)
CELL = SIGNED | st.text(st.sampled_from("=+-@'\t\n \r\x1b\u202e\uff1d1.a"), max_size=6)


@settings(drawn, max_examples=200)
@given(CELL)
def test_a_cell_comes_back_and_is_no_formula(text):
    cell = plain_cell(text)
    assert cell_text(cell) == plain(text)
    assert plain(plain(text)) == plain(text)
    assert not set(cell) & set("\r\x1b\u202e")
    if re.fullmatch(r"\s*[+-]?(1+\.?1*|\.1+)\s*", plain(text)):
        assert cell == plain(text)
    else:
        assert cell.strip()[:1] not in set("=+-@\uff1d")
