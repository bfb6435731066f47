"""A function or a frozen dataclass that is called like one, as a name and as data, and back. Knows no room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from caa.untrusted import fits


def name_of(function: Any) -> str:
    """The one name that errors, tables, cards and records use; never a memory address.

    A dataclass says its fields, a partial its arguments, an object its class.

    >>> name_of(len), name_of(partial(sorted, reverse=True))
    ('len', 'sorted(reverse=True)')
    """
    if isinstance(function, partial):
        arguments = [*map(_value, function.args), *(f"{key}={_value(v)}" for key, v in function.keywords.items())]
        return f"{name_of(function.func)}({', '.join(arguments)})"
    if is_dataclass(function) and not isinstance(function, type):
        values = [f"{field.name}={_value(getattr(function, field.name))}" for field in fields(function)]
        return f"{type(function).__name__}({', '.join(values)})"
    name: str = getattr(function, "__name__", type(function).__name__)
    return name


def lasting_name(function: Any) -> str:
    """`name_of`, the same in every process; ValueError for a lambda, which nobody could tell from another one."""
    name = name_of(function)
    if "<lambda>" in name:
        raise ValueError(f"a {name} has no name to tell it by when a run goes on: use def, or a frozen dataclass")
    return name


def _value(value: Any) -> str:
    return name_of(value) if callable(value) else repr(value)


def to_record(function: Any, known: Mapping[str, Any], kind: str) -> str | dict[str, Any]:
    """What json keeps of one of the `known` functions or dataclasses: its name; of a dataclass, its fields too.

    ValueError for one that is not known, for nobody could load it. `kind` ("operator") says what it is.
    """
    parametrized = is_dataclass(function) and not isinstance(function, type)
    wanted = type(function) if parametrized else function
    name = next((name for name, candidate in known.items() if candidate is wanted), None)
    if name is None:
        raise ValueError(
            f"an {kind} of your own cannot be saved, for nobody could load it; those known are {list(known)}"
        )
    if not parametrized:
        return name
    record: dict[str, Any] = {"name": name}
    for field in fields(function):
        value = getattr(function, field.name)
        record[field.name] = to_record(value, known, kind) if callable(value) else value
    return record


def from_record(record: str | Mapping[str, Any], known: Mapping[str, Any], kind: str) -> Any:
    """What `to_record` wrote down. ValueError, with the names there are, for one that is not known, and for fields that
    it has not or that are no numbers, texts or nothing."""
    values = {"name": record} if isinstance(record, str) else dict(record)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"this version of caa knows no {kind} {str(name)[:60]!r}; it knows {list(known)}")
    if isinstance(record, str):
        return known[name]
    if not is_dataclass(known[name]):
        raise ValueError(f"the {kind} {name!r} has no settings; write its name alone")
    own = {field.name: field for field in fields(known[name])}
    for key, value in values.items():
        if key not in own:
            raise ValueError(f"the {kind} {name!r} has no setting {key!r}; it has {', '.join(own)}")
        if key != kind and not fits(value, float | list[list[int]] | None):
            raise ValueError(f"{key} of the {kind} {name!r} is {str(value)[:60]!r}, and should be a number")
    if kind in values:
        values[kind] = from_record(values[kind], known, kind)
    try:
        return known[name](**values)
    except TypeError as error:
        raise ValueError(f"the {kind} {name!r} cannot be made of {values}: {error}") from error
