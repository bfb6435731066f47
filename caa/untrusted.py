"""Text that others wrote: json and yaml in, values of the wanted types out, or one refusal. Knows no room.

Nothing here runs, imports or builds what a text names.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DEEPEST = 64
"""How deep lists and objects of a document may lie in each other. What is deeper ends in a stack overflow somewhere."""
LARGEST = 512 * 2**20
"""Bytes of a document that is read whole."""
LARGEST_SETTINGS = 2**20
"""Bytes of a yaml file, which people write by hand."""
MOST_NODES = 200_000
"""Values of a yaml file, each counted as often as the file refers to it."""


def parse_json(text: str | bytes, place: str) -> Any:
    """What a json text holds; ValueError, which begins with `place`, for one that is none, or is nested too deep."""
    _check_size(len(text), LARGEST, place)
    if not text.strip():
        raise ValueError(f"{place} is empty")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_too_deep(place)) from None
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(f"{place} is not json: {error}") from error
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > DEEPEST:
        _check_nesting(value, place, None)
    return value


def read_json(path: str | Path, place: str = "") -> Any:
    """The same of a file in UTF-8, whose errors begin with `place`, by default its path; OSError without it."""
    place = place or str(path)
    _check_size(Path(path).stat().st_size, LARGEST, place)
    return parse_json(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf"), place)


def read_object(path: str | Path, place: str = "") -> dict[str, Any]:
    """The same of a file that holds one json object."""
    value = read_json(path, place)
    if not isinstance(value, dict):
        raise ValueError(f"{place or path} should be an object with named values, and is {_shown(value)}")
    return value


def read_yaml(path: str | Path) -> Any:
    """What a yaml file holds, as plain data; ValueError for one that is none, too large, too deep or too repetitive."""
    import yaml

    _check_size(Path(path).stat().st_size, LARGEST_SETTINGS, str(path))
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(_too_deep(str(path))) from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as yaml: {error}") from error
    _check_nesting(value, str(path), MOST_NODES)
    return value


def _check_size(size: int, largest: int, place: str) -> None:
    if size > largest:
        raise ValueError(f"{place} is {size:,} bytes long, and may have {largest:,}; it is not what it should be")


def _too_deep(place: str) -> str:
    return f"{place} is nested more than {DEEPEST} deep; it is not what it should be"


def _check_nesting(value: Any, place: str, most: int | None) -> None:
    """ValueError for what is too deep, or has too many values with each alias counted."""
    waiting, seen = [(value, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        seen += len(inner)
        if inner and depth > DEEPEST:
            raise ValueError(_too_deep(place))
        if most is not None and seen > most:
            raise ValueError(f"{place} holds more than {most:,} values; it is not what it should be")
        waiting += [(child, depth + 1) for child in inner if isinstance(child, (dict, list))]


# Values held against types.


def fits(value: Any, hint: Any) -> bool:
    """Whether a json value is of a type; a whole number is a float too, true and false are no numbers.

    >>> fits([1, 2.5], list[float]), fits(True, int), fits({"a": None}, dict[str, int | None]), fits("c", Literal["a"])
    (True, False, True, False)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, member) for member in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (list, Sequence) or (origin is tuple and inner[1:] == (...,)):
        return isinstance(value, (list, tuple)) and all(fits(item, inner[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**1000)
    if is_dataclass(hint):
        return isinstance(value, dict)
    return type(value) is (type(None) if hint is None else hint)


def check_fields(record: Any, hints: Mapping[str, Any], place: str, *, required: bool = True) -> dict[str, Any]:
    """The record, if it is an object whose fields of these names are of these types; other fields are let be.

    ValueError that names the first one that is missing or of another type.

    >>> check_fields({"layer": "1"}, {"layer": int}, "a.json")
    Traceback (most recent call last):
    ValueError: a.json: layer should be int, and is '1'
    """
    if not isinstance(record, dict):
        raise ValueError(f"{place} should be an object with named values, and is {_shown(record)}")
    for name, hint in hints.items():
        if name not in record:
            if required:
                raise ValueError(
                    f"{place} has no {name!r}; it has {', '.join(map(str, list(record)[:8])) or 'nothing'}"
                )
        elif not fits(record[name], hint):
            raise ValueError(f"{place}: {name} should be {_type_name(hint)}, and is {_shown(record[name])}")
    return record


def as_dataclass(kind: Any, record: Any, place: str) -> Any:
    """A dataclass of plain values and such dataclasses from the json object of its fields; ValueError for fields of
    other types or names."""
    hints = _hints(kind)
    needed = {f.name: hints[f.name] for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    check_fields(record, needed, place)
    check_fields(record, hints, place, required=False)
    if unknown := [name for name in record if name not in hints]:
        raise ValueError(f"{place} has an unknown field {unknown[0]!r}; perhaps a later version of caa wrote it")
    return kind(**{name: _built(value, hints[name], f"{place}, {name}") for name, value in record.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _built(value: Any, hint: Any, place: str) -> Any:
    """A value that fits, with the tuples and dataclasses that json does not know."""
    members = [member for member in _members(hint) if member not in (None, type(None))]
    if value is None or len(members) != 1:
        return value
    kind, inner = members[0], get_args(members[0])
    if is_dataclass(kind):
        return as_dataclass(kind, value, place)
    if get_origin(kind) is tuple:
        return tuple(_built(item, inner[0], place) for item in value)
    if get_origin(kind) in (dict, Mapping):
        return {key: _built(item, inner[1], f"{place}, {key}") for key, item in value.items()}
    return value


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _type_name(hint: Any) -> str:
    """
    >>> _type_name(int | None), _type_name(list[str]), _type_name(Literal["a", "b"])
    ('int or null', 'list[str]', "'a' or 'b'")
    """
    if get_origin(hint) in (Union, types.UnionType, Literal):
        literal = get_origin(hint) is Literal
        return " or ".join(repr(member) if literal else _type_name(member) for member in get_args(hint))
    if hint in (None, type(None)):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _shown(value: Any) -> str:
    """A value in a few characters."""
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 62 else f"a {type(value).__name__}"


# Characters.

# C0 but for tab and line feed, DEL, C1; marks that turn the direction of what follows; the ends of lines that only
# some programs know; halves of characters, which no file can hold.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def plain(text: str) -> str:
    r"""Text in which no character commands a terminal or turns the order of others: each is shown as its code.

    >>> plain("a\x1b[2Jb\u202ec\n\td")
    'a\\x1b[2Jb\\u202ec\n\td'
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plain_values(value: Any) -> Any:
    r"""The same for all texts of a json value, names too.

    >>> plain_values({"a\x07": ["b\u202e", 1, None]})
    {'a\\x07': ['b\\u202e', 1, None]}
    """
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain_values(key): plain_values(inner) for key, inner in value.items()}
    return [plain_values(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def plain_cell(text: str) -> str:
    r"""The same for one cell of a CSV: before what a spreadsheet would take for a formula stands an apostrophe.

    >>> plain_cell("=1+1"), plain_cell("-0.5"), plain_cell("- no"), plain_cell("a")
    ("'=1+1", '-0.5', "'- no", 'a')
    """
    text = plain(text)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def cell_text(cell: str) -> str:
    """What `plain_cell` was given, but for control characters.

    >>> [cell_text(plain_cell(text)) for text in ("=1+1", "'=1", "-", "a'", "'tis")]
    ['=1+1', "'=1", '-', "a'", "'tis"]
    """
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell[1:]) else cell


# With the signs of full width, which some spreadsheets take for the same.
_FORMULA = re.compile("'*\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]")


def plain_frame(frame: Any) -> Any:
    """The same for all texts of a data frame of pandas, the names of its columns too."""
    return frame.map(lambda value: plain_cell(value) if isinstance(value, str) else value).rename(columns=plain_cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_finite(value: Any) -> bool:
    """Whether a json value is a number that a float can hold; true and false are none.

    >>> [is_finite(value) for value in (1, 0.5, True, float("nan"), float("inf"), 10**400, "1", None)]
    [True, True, False, False, False, False, False, False]
    """
    return type(value) in (int, float) and -1.7e308 < value < 1.7e308
