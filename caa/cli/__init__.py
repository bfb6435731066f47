"""The `caa` command: each function here is a subcommand, its signature its options, its docstring its help."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from caa.cli.models import export, generate, play
from caa.cli.results import data, published, report
from caa.cli.runs import demo, finetune, grid
from caa.cli.vectors import extract_, import_, inspect

# No `if TYPE_CHECKING` imports in these files: jsonargparse carries them out to resolve types, and torch takes seconds.
# extract_: jsonargparse looks for a function's name in the packages above it, and `caa.extract` would import torch.
_ALL = (demo, extract_, finetune, grid, generate, play, report, published, data, export, import_, inspect)
COMMANDS: dict[str, Any] = {f.__name__.rstrip("_"): f for f in _ALL}


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Errors are one readable line; --debug shows where they came from. Returns the exit status."""
    from jsonargparse import auto_cli

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each training
    logging.basicConfig(format="%(message)s")
    logging.getLogger("caa").setLevel(logging.INFO)
    try:
        auto_cli(COMMANDS, args=[a for a in arguments if a != "--debug"], prog="caa", as_positional=True)
    except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
        if debug:
            raise
        said = error.args[0] if isinstance(error, KeyError) else error  # a KeyError's own text is a repr
        sys.stderr.write(f"caa: {' '.join(str(said).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("caa: stopped. Run the same command again to go on.\n")
        return 130
    return 0
