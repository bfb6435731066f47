"""The `caa` command: each function here is a subcommand, its signature its options, its docstring its help."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import caa
from caa.cli.chosen import FROM, TAKE_FROM, with_search
from caa.cli.console import as_json, log_plainly, plain_line, plain_warnings
from caa.cli.measures import compare, damage, lm_eval_
from caa.cli.models import export, generate, play, serve
from caa.cli.parsing import Command, UsageError, parse, parser_of
from caa.cli.results import data, figures, published, report, runs_
from caa.cli.runs import config_path, demo, finetune, grid, run, shipped_configs
from caa.cli.studies import redteam, robustness, search
from caa.cli.vectors import extract_, import_, inspect, push
from caa.judges.clients.transport import JudgeError
from caa.suggestions import did_you_mean


def completion(shell: str) -> None:
    """Print a script that completes commands and options in a shell: `caa completion bash`.

    Needs the extra: pip install 'caa[completion]'. Save what it prints where the shell looks for completions.

    Args:
        shell: bash, zsh, fish, ...
    """
    import argparse

    try:
        import shtab
    except ImportError as error:
        raise ImportError("completions need shtab: pip install 'caa[completion]'") from error

    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"there are completions for {', '.join(shtab.SUPPORTED_SHELLS)}, not for {shell!r}")
    root = argparse.ArgumentParser(prog="caa")
    commands = root.add_subparsers()
    for name, command in COMMANDS.items():
        plain = commands.add_parser(name, help=(command.__doc__ or "").splitlines()[0])
        for action in command_parser(name)._actions:
            options = [option for option in action.option_strings if option.startswith("--") and option[-1] != "+"]
            if options and options != ["--help"] and action.dest != "print_config":
                plain.add_argument(*(option.replace("_", "-") for option in options), dest=action.dest)
    sys.stdout.write(shtab.complete(root, shell))


# `if TYPE_CHECKING` in these files imports nothing that needs torch: jsonargparse carries it out to resolve types.
# extract_: jsonargparse looks for a function's name in the packages above it, and `caa.extract` would import torch.
_ALL: tuple[Command, ...] = (
    demo,
    run,
    extract_,
    search,
    robustness,
    redteam,
    finetune,
    grid,
    generate,
    play,
    serve,
    report,
    figures,
    runs_,
    compare,
    damage,
    lm_eval_,
    published,
    data,
    export,
    import_,
    push,
    inspect,
    completion,
)
COMMANDS: dict[str, Command] = {function.__name__.rstrip("_").replace("_", "-"): function for function in _ALL}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 for an error, 2 for a command line that is none, 130 for Ctrl+C.

    An error is one readable line; --debug shows where it came from.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, wants_json = "--debug" in words, "--json" in words
    words = [word for word in words if word not in ("--debug", "--json")]
    wants_json = wants_json and bool(words) and words[0] in COMMANDS
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each training
    log_plainly()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "60")  # bars that are drawn into a log file, once a minute
    try:
        with plain_warnings(), as_json() if wants_json else nullcontext():
            return _run(words)
    except UsageError as error:
        return _complain(error, 2)
    except SystemExit as end:  # of argparse, after it has shown its help; of a library, with its last words
        return _complain(end, 1) if isinstance(end.code, str) else end.code or 0
    except KeyboardInterrupt:
        sys.stderr.write("caa: stopped. Run the same command again to go on.\n")
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return 0
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of libraries in Rust; no Exception
        if debug or not (isinstance(error, Exception) or panic):
            raise
        return _complain(error, 1)


def _run(words: list[str]) -> int:
    """Find the command, read its words, carry it out."""
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0 if words else 2
    name, *rest = words
    if name == "--version":
        sys.stdout.write(f"caa {caa.__version__}\n")
        return 0
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}{did_you_mean(name, list(COMMANDS))}; `caa --help` names them")
    if name == "run":
        if "--list" in rest:
            sys.stdout.write(shipped_configs())
            return 0
        if rest and not rest[0].startswith("-"):
            rest = ["--config", str(config_path(rest[0])), *rest[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in `command_parser`
        arguments = parse(command_parser(name), with_search(name, rest))
    if arguments.pop("from", None):
        raise UsageError("--from stands on the command line; in a file, say what it stands for")
    COMMANDS[name](**arguments)
    return 0


def command_parser(name: str) -> Any:
    """The parser of one of `COMMANDS`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # jsonargparse tries names of types, those of version 0.1 too
        if name == "run":
            from caa.experiment import Experiment

            parser = parser_of(name, run, Experiment)
            parser.usage = "caa run CONFIG [options]"
        else:
            parser = parser_of(name, COMMANDS[name])
        if name in TAKE_FROM:
            parser.add_argument("--from", help=FROM)
        return parser


def _help() -> str:
    lines = [f"  {name:<11}{(function.__doc__ or '').splitlines()[0]}" for name, function in COMMANDS.items()]
    return "\n".join(
        [
            "usage: caa COMMAND [options]\n",
            "Steer a language model, finetune it, and know what each does to the other.\n",
            *lines,
            "\n`caa COMMAND --help` says more; every command takes --config FILE, --debug and, for tables as json on",
            "standard output, --json; `caa --version`.",
            "Settings are data: no file and no option can name a class or a function to be run.",
            "",
        ]
    )


def _complain(error: BaseException, status: int) -> int:
    """One line for an error, one each for several problems that were found together; --debug shows the rest."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # a KeyError's own text is a repr
    lines = getattr(error, "problems", None) or [str(text)]
    kind = "" if isinstance(error, _IN_WORDS) and lines[0].strip() else f"{type(error).__name__}: "
    memory = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    cure = _LESS_AT_ONCE if memory else _UNFORESEEN if kind else ""
    for line in lines:
        sys.stderr.write(f"caa: {plain_line(kind + line)}{cure}\n")
    return status


_IN_WORDS = (UsageError, ValueError, TypeError, LookupError, OSError, ImportError, SystemExit, JudgeError)
"""Errors whose text says what to do, for this project words it."""
_LESS_AT_ONCE = " (memory ran out: give a smaller --batch-size or --limit, or --dtype bfloat16)"
_UNFORESEEN = " (this was not foreseen; the same command with --debug shows where it happened)"
