"""No setting of any command can name code: nothing is imported and nothing is built, whatever a value says."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import pytest
import yaml

from caa.cli import COMMANDS, command_parser, main
from caa.cli.parsing import UsageError, _leaves, _type_of, parse

PLAIN = {str, int, float, bool, type(None), Path, Any, ...}
MARKER = "marker_of_a_stranger"
NAMED = {"class_path": f"{MARKER}.Marker", "init_args": {}}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A module that says, by being in `sys.modules`, that a setting had it imported."""
    (tmp_path / f"{MARKER}.py").write_text("class Marker:\n    pass\ndef marker(): return Marker()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: MARKER in sys.modules
    sys.modules.pop(MARKER, None)


def kinds(hint):
    """All types that a setting's type is made of, the fields of dataclasses too."""
    for leaf in _leaves(hint):
        yield leaf
        if dataclasses.is_dataclass(leaf):
            for field in dataclasses.fields(leaf):
                yield from kinds(get_type_hints(leaf)[field.name])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_every_command_is_made_of_plain_data(command):
    actions = [action for action in command_parser(command)._actions if _type_of(action) is not None]
    assert actions or command == "report"
    for action in actions:
        for kind in kinds(_type_of(action)):
            plain = get_origin(kind) is Literal or kind in PLAIN or dataclasses.is_dataclass(kind)
            assert plain, f"caa {command} --{action.dest} takes a {kind}, which a config could name code for"


def open_settings(command):
    """The settings of a command where any value may stand, or that a dataclass is made of."""
    dests = {action.dest for action in command_parser(command)._actions}
    for group in sorted(dests & {dest.partition(".")[0] for dest in dests if "." in dest}):
        yield group, NAMED
        yield group, f"{MARKER}.marker"
    for action in command_parser(command)._actions:
        for leaf in set(kinds(_type_of(action))) if _type_of(action) is not None else ():
            if leaf is Any:
                yield action.dest, {"x": NAMED, "y": [NAMED], "z": f"{MARKER}.marker"}
            elif dataclasses.is_dataclass(leaf):
                yield action.dest, NAMED
                yield action.dest, {"x": NAMED}
                yield action.dest, f"{MARKER}.marker"


CASES = [(command, *case) for command in COMMANDS for case in open_settings(command)]


def test_the_walk_meets_what_is_open():
    assert {("demo", "template_arguments"), ("grid", "judge"), ("run", "training")} <= {case[:2] for case in CASES}


@pytest.mark.parametrize("command", sorted({case[0] for case in CASES}))
def test_what_a_setting_names_is_neither_imported_nor_built(command, marker, tmp_path):
    parser = command_parser(command)
    words = [_word(action, command) for action in parser._actions if not action.option_strings]
    words += [] if command != "run" else ["--out", "out"]
    config = tmp_path / "config.yaml"
    for _, name, value in [case for case in CASES if case[0] == command]:
        config.write_text(yaml.safe_dump({name: value}))
        for given in ([f"--{name}={json.dumps(value)}"], ["--config", str(config)]):
            with suppress(UsageError):
                assert "Marker object" not in repr(parse(parser, [*words, *given])), (name, value)
            assert not marker(), (name, value)


def _word(action, command):
    return {"direction": "data", "layers": "[1]", "layer": "1", "what": "list", "action": "list"}.get(action.dest, "x")


def test_a_class_in_place_of_settings_is_refused_in_words(marker, capsys):
    assert main(["grid", "b", "v", "[1]", "out", "--judge", f"{MARKER}.Marker"]) == 2
    assert "settings are data, and no class or function is built from a name" in capsys.readouterr().err
    assert not marker()


def test_a_nested_file_of_settings_is_data_too(marker, tmp_path):
    inner, outer = tmp_path / "judge.yaml", tmp_path / "grid.yaml"
    inner.write_text(yaml.safe_dump({"kind": "phrases", "request": {"x": NAMED}}))
    outer.write_text(yaml.safe_dump({"judge": str(inner)}))
    arguments = parse(command_parser("grid"), ["b", "v", "[1]", "out", "--config", str(outer)])
    assert arguments["judge"].request == {"x": NAMED}
    assert not marker()


@pytest.mark.parametrize("words", [["--help"], ["grid", "--help"]])
def test_the_help_says_that_settings_are_data(words, capsys):
    main(words)
    text = " ".join(capsys.readouterr().out.split())
    assert "Settings are data" in text or "it can name no code to run" in text
