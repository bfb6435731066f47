"""The built-in data with fewer pairs and questions, finetunes with fewer steps: all that commands do, in less time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from caa.data import sources
from caa.data.sources import BUILTIN
from caa.training import config

KEPT = {"pairs": 64, "validation_questions": 12, "ab_questions": 12, "open_questions": 12}
"""How many of each kind; questions as many as the pages that say `--limit 12` ask anyway."""


@contextmanager
def small_world(folder: Path) -> Iterator[None]:
    """The built-in behaviors with few pairs and questions, in `folder`; embedded models are finetuned in few steps."""
    folder.mkdir()
    for path in Path(sources._BUILTIN_FOLDER).glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.stem in BUILTIN:
            content |= {part: content[part][:most] for part, most in KEPT.items()}
        (folder / path.name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BUILTIN_FOLDER", folder)
        patch.setattr(config, "EMBEDDED", replace(config.EMBEDDED, max_steps=8))
        yield
