"""The names of a package, each imported from its module when it is first used. Knows no room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package; `home` is name -> its module in there.

    >>> names, listed = lazy_names("json", {"JSONDecoder": "decoder"})
    >>> names("JSONDecoder").__name__, listed()
    ('JSONDecoder', ['JSONDecoder'])
    """

    def named(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(sorted(home))}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return named, lambda: sorted(home)
