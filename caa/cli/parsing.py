"""Words of a command line in, a command's arguments out: lists as people type them, every wrong word with a hint."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from caa.suggestions import did_you_mean
from caa.untrusted import read_yaml

Command = Callable[..., None]
CONFIG_HELP = "a yaml file with any of these settings, as data: it can name no code to run; options override it"
_YES_OR_NO = ("true", "false", "yes", "no")


class UsageError(Exception):
    """A command line that no command understands; its text says what would be."""


def parser_of(name: str, command: Command, fields_of: type | None = None) -> Any:
    """The parser of one command: its signature is its options, its docstring is its help.

    With `fields_of`, a dataclass, the fields of that are options too.
    """
    from jsonargparse import ArgumentParser

    _hold_configs_to_data(command, fields_of)
    summary = (inspect.getdoc(command) or "").partition("\n\n")[0]
    parser = ArgumentParser(prog=f"caa {name}", description=summary, exit_on_error=False)
    parser.add_argument("--config", action="config", help=CONFIG_HELP)
    fields: set[str | int] = set()
    if fields_of is not None:
        fields = set(parser.add_class_arguments(fields_of, as_group=False, as_positional=False, sub_configs=True))
    parser.add_function_arguments(command, as_group=False, as_positional=True, sub_configs=True, skip=fields)
    return parser


def _hold_configs_to_data(command: Command, fields_of: type | None) -> None:
    """From now on no value is imported or built, but for the dataclasses that stand in the signatures themselves.

    jsonargparse would else import, and call, what a `class_path` names wherever a field is typed Any or as a class.
    """
    from jsonargparse import set_parsing_settings

    kinds = set(_dataclasses_of(command, fields_of))
    # jsonargparse calls a class by its shortest path, which is that of the package where it has the name
    known = sorted(f"{module}.{kind.__qualname__}" for kind in kinds for module in (kind.__module__, "caa"))
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*"],
        import_path_allowlist=known,
    )


def _dataclasses_of(*signatures: Any) -> Iterator[type]:
    """The dataclasses in the annotations of functions and dataclasses, however deep."""
    for hint in (hint for signature in signatures if signature for hint in get_type_hints(signature).values()):
        for kind in _leaves(hint):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield kind
                yield from _dataclasses_of(kind)


def _leaves(hint: Any) -> Iterator[Any]:
    """
    >>> from pathlib import Path
    >>> [leaf.__name__ for leaf in _leaves(dict[str, Path | None] | int)]
    ['str', 'Path', 'NoneType', 'int']
    """
    inner = () if get_origin(hint) is Literal else get_args(hint)
    if not inner:
        yield hint
    for part in inner:
        yield from _leaves(part)


def parse(parser: Any, words: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments that the words give; UsageError, with all that is wrong at once, for words that give none.

    Lists may be typed as "-1,0,1", as "-1 0 1" (numbers) and as "[-1, 0, 1]"; a negative number is no option; dashes
    in the names of options may be typed for underscores; an option that is true or false may stand alone.
    """
    from argparse import ArgumentError

    reader = _Words(parser, words)
    spelled = reader.spelled()
    problems = [*reader.problems, *(problem for path in reader.configs for problem in config_problems(parser, path))]
    if problems:
        raise UsageError("; ".join(problems))
    try:
        namespace = parser.parse_args(spelled)
    except ArgumentError as error:
        raise UsageError(_readable(str(error))) from error
    arguments = parser.instantiate(namespace).as_dict()
    arguments.pop("config", None)
    return dict(arguments)


def config_problems(parser: Any, path: str) -> Iterator[str]:
    """What is wrong with a yaml file of settings, before anything else reads it."""
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        yield f"there is no file {path}"
        return
    except OSError as error:
        yield f"{path} cannot be read as yaml: {error}"
        return
    except ValueError as error:
        yield str(error)
        return
    if not isinstance(content, Mapping):
        yield f"{path} should hold settings, as `name: value` on each line"
        return
    names = [name for action in parser._actions for name in _key_names(action)]
    yield from _unknown_keys(content, names, str(path))


def _key_names(action: Any) -> list[str]:
    """The key of an option in a file, and those below it: "training", "training.rank"."""
    return [action.dest, *(f"{action.dest}.{field}" for field in _fields(_type_of(action)))]


def _unknown_keys(content: Mapping[str, Any], known: Sequence[str], path: str) -> Iterator[str]:
    heads = sorted({name.partition(".")[0] for name in known} - {"help", "config", "print_config"})
    for key, value in content.items():
        inner = [name.partition(".")[2] for name in known if name.startswith(f"{key}.") and not name.endswith(".help")]
        if key not in heads:
            yield f"{path}: unknown key {key!r}{did_you_mean(str(key), heads)}"
        elif inner and isinstance(value, Mapping):
            yield from _unknown_keys(value, inner, f"{path}, {key}")


class _Words:
    """One pass over a command line, which spells every word as jsonargparse wants it."""

    def __init__(self, parser: Any, words: Sequence[str]) -> None:
        self.options: dict[str, Any] = dict(parser._option_string_actions)
        self.positionals = [action for action in parser._actions if not action.option_strings]
        self.words = list(words)
        self.problems: list[str] = []
        self.configs: list[str] = []

    def spelled(self) -> list[str]:
        """All words; what is wrong with them is in `problems` afterwards."""
        spelled: list[str] = []
        positionals = iter(self.positionals)
        while self.words:
            word = self.words.pop(0)
            if word.startswith("--") and len(word) > 2:
                spelled += self._option(*word.partition("=")[::2], "=" in word)
            elif word == "-h":
                spelled.append(word)
            else:
                action = next(positionals, None)
                kind = _type_of(action)
                self.problems += _choice_problems(getattr(action, "dest", ""), word, kind)
                spelled.append(_as_list([word], kind) if _items(kind) else word)
        return spelled

    def _option(self, typed: str, value: str, has_value: bool) -> list[str]:
        name = self._known_name(typed)
        if name is None:
            self.problems.append(f"there is no option {typed}{did_you_mean(typed, self._known_names())}")
            self._values(value, has_value, None)
            return []
        action = self.options.get(name)
        if action is not None and (action.nargs == 0 or action.dest == "print_config"):  # may stand alone
            return [f"{name}={value}" if has_value else name]
        kind = _type_of(action)
        if kind is bool and not has_value and not (self.words and self.words[0].lower() in _YES_OR_NO):
            return [f"{name}=true"]
        values = self._values(value, has_value, kind)
        if not values or (_items(kind) and values == [""]):
            self.problems.append(f"{name} needs a value")
        if name == "--config":
            self.configs += values
        self.problems += [problem for text in values for problem in _choice_problems(name, text, kind)]
        return [f"{name}={_as_list(values, kind) if _items(kind) else ' '.join(values)}"]

    def _known_name(self, typed: str) -> str | None:
        """The option as it is declared; of a mapping, "--adapters.positive" too."""
        name = f"--{typed[2:].replace('-', '_')}"
        if typed in self.options or name in self.options:
            return typed if typed in self.options else name
        head, dot, key = typed.partition(".")
        head = f"--{head[2:].replace('-', '_')}"
        kind = _type_of(self.options.get(head))
        return f"{head}.{key}" if dot and (_is_mapping(kind) or key in _fields(kind)) else None

    def _known_names(self) -> list[str]:
        inner = [f"{name}.{field}" for name, action in self.options.items() for field in _fields(_type_of(action))]
        return [*(name for name in self.options if name.startswith("--")), *inner]

    def _values(self, value: str, has_value: bool, kind: Any) -> list[str]:
        """The value behind "=", else the next word; of a list of numbers, all next words that are numbers."""
        if has_value:
            return [value]
        values: list[str] = []
        numbers = _items(kind) in (int, float)
        while self.words and not self.words[0].startswith("--"):
            if values and not (numbers and _is_numeric(self.words[0]) and _is_numeric(values[-1])):
                break
            values.append(self.words.pop(0))
        return values


def _type_of(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, without None; of any other type, itself."""
    union = get_origin(kind) in (Union, types.UnionType)
    return tuple(member for member in get_args(kind) if member is not type(None)) if union else (kind,)


def _items(kind: Any) -> Any:
    """The type of a list's items; None for what is no list.

    >>> _items(list[int] | None), _items(tuple[float, ...]), _items(str)
    (<class 'int'>, <class 'float'>, None)
    """
    for member in _members(kind):
        if get_origin(member) in (list, tuple, Sequence):
            return get_args(member)[0]
    return None


def _is_mapping(kind: Any) -> bool:
    return any(get_origin(member) in (dict, Mapping) for member in _members(kind))


def _fields(kind: Any) -> list[str]:
    """The names of a dataclass's fields; none of any other type."""
    dataclasses_of = [member for member in _members(kind) if dataclasses.is_dataclass(member)]
    return [field.name for member in dataclasses_of for field in dataclasses.fields(member)]


def _is_numeric(word: str) -> bool:
    """
    >>> _is_numeric("-1e-3"), _is_numeric("-1,0,1"), _is_numeric("[1]"), _is_numeric("out")
    (True, True, False, False)
    """
    try:
        return bool([float(part) for part in word.split(",")])
    except ValueError:
        return False


def _as_list(values: Sequence[str], kind: Any) -> str:
    """
    >>> _as_list(["-1,0"], list[int]), _as_list(["a,caa:b"], list[str]), _as_list(["[1, 2]"], list[int])
    ('[-1,0]', '["a","caa:b"]', '[1, 2]')
    """
    if len(values) == 1 and (values[0].startswith("[") or values[0] == "null"):
        return values[0]
    parts = [part.strip() for value in values for part in value.split(",")]
    shown = parts if _items(kind) in (int, float) else map(json.dumps, parts)
    return f"[{','.join(shown)}]"


def _choice_problems(name: str, text: str, kind: Any) -> Iterator[str]:
    """What is none of the choices of an option that has some."""
    members = _members(_items(kind) or kind)
    if not text or not all(get_origin(member) is Literal for member in members):
        return
    choices = [str(choice) for member in members for choice in get_args(member)]
    parts = [text] if _items(kind) is None else text.strip("[]").split(",")
    for part in (part.strip().strip("\"'") for part in parts):
        if part not in choices and not (part == "null" and type(None) in get_args(kind)):
            shown = ", ".join(choice or '""' for choice in choices)
            yield f"{name} is one of {shown}, not {part!r}{did_you_mean(part, choices)}"


def _readable(error: str) -> str:
    r"""The words of jsonargparse, with an option called as it is typed and its types by their plain names.

    >>> _readable('Parser key "n":  Expected a <class \'int\'>. Got value: x')
    "--n should be int, not 'x'"
    """
    head, quote, rest = error.partition('Parser key "')
    if not quote:
        return error
    key, _, reason = rest.partition('":')
    if "import path" in reason or "class_path" in reason:
        return f"{head}--{key}: settings are data, and no class or function is built from a name; write its fields"
    kinds = re.findall(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|(\S+))", reason)
    value = re.search(r"(?:Got|Given) value: (.*)", reason)
    if not kinds or not value:
        return f"{head}--{key}: {' '.join(reason.split())}"
    names = dict.fromkeys("null" if name == "NoneType" else name for pair in kinds for name in pair if name)
    return f"{head}--{key} should be {' or '.join(names)}, not {value.group(1).strip()!r}"
