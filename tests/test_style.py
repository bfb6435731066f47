"""The measure of the code: short functions, names that say what they hold, options that are not packed into dicts.

A limit may be lowered when the code has become better than it, never raised.
"""

from __future__ import annotations

import ast
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

CAA = Path(__file__).parents[1] / "caa"
VAGUE = {"found", "each", "how", "asked", "said", "told", "there"}
MEDIAN, NINETIETH, LONGEST = 6, 16, 58
"""Lines of a function. Version 0.1 had 5, 15 and 39; the longest is a command's options."""
VAGUE_SHARE = 0.01
PACKED = 11
"""Splats of dicts of options. Version 0.1 had 34."""


def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(CAA.rglob("*.py"))]


def functions(trees: Iterable[ast.Module]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end: signature and blank lines count, decorators and the docstring do not."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is None:
        return lines
    return lines - (function.body[0].end_lineno - function.body[0].lineno + 1)


def bound_names(trees: Iterable[ast.Module]) -> Counter[str]:
    """How often each name is bound: variables, fields, parameters, functions, classes, caught errors."""
    names: Counter[str] = Counter()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names[node.id] += 1
            elif isinstance(node, ast.arg):
                names[node.arg] += 1
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or (
                isinstance(node, ast.ExceptHandler) and node.name
            ):
                names[node.name] += 1
    return names


def vague_share(names: Counter[str]) -> float:
    return sum(names[name] for name in VAGUE) / names.total()


def packed_options(trees: Iterable[ast.Module]) -> list[str]:
    """The names of dicts of options that are splatted into a call: `dict[str, Any]`, or the function's own `**options`.

    What a wrapper takes in the place of another's parameters and hands on as `**kwargs` is no such dict.
    """
    names = []
    for function in functions(trees):
        options = {argument.arg for argument in [function.args.kwarg] if argument and argument.arg != "kwargs"}
        for node in ast.walk(function):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "dict[str, Any]":
                options.add(ast.unparse(node.target))
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        splats = [keyword.value for call in calls for keyword in call.keywords if keyword.arg is None]
        names += [ast.unparse(value) for value in splats if ast.unparse(value) in options]
    return names


def test_functions_are_short():
    lengths = sorted(map(length, functions(trees())))
    assert len(lengths) > 1000
    assert lengths[len(lengths) // 2] <= MEDIAN
    assert lengths[int(len(lengths) * 0.9)] <= NINETIETH
    assert lengths[-1] <= LONGEST


def test_names_say_what_they_hold():
    names = bound_names(trees())
    share = vague_share(names)
    assert share <= VAGUE_SHARE, {name: names[name] for name in VAGUE}


def test_options_are_not_packed_into_dicts():
    names = packed_options(trees())
    assert len(names) <= PACKED, names


def test_the_measures_see_what_they_are_for():
    tree = ast.parse(
        textwrap.dedent('''
            @decorator
            def f(each, **how):
                """Two lines
                of words."""
                found: dict[str, Any] = {}

                g(**found, **how)
                return h(**kwargs)
        ''')
    )
    assert [length(function) for function in functions([tree])] == [5]
    assert bound_names([tree]) == Counter(["f", "each", "how", "found"])
    assert vague_share(bound_names([tree])) == 0.75
    assert sorted(packed_options([tree])) == ["found", "how"]
