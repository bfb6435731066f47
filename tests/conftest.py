"""Tests need no network: a name that is no folder and no embedded model is unknown at once, not after six tries."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

collect_ignore = ["consumers", "mutants.py"]  # scripts for the Pythons of other tools, and one that needs a tool
