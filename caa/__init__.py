"""Steer a language model, finetune it, and know what each does to the other. Names are imported when first used."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Behavior": "data.behaviors",
    "ContrastPair": "data.behaviors",
    "CAADataModule": "lightning.data",
    "CAAModule": "lightning.module",
    "EvalGrid": "evals.grid",
    "ExemplarJudge": "judges.exemplar",
    "Experiment": "experiment",
    "FinetuneConfig": "training.config",
    "Question": "data.behaviors",
    "JudgeConfig": "judges.config",
    "make_judge": "judges.build",
    "Provenance": "vectors.vector",
    "SteeringVector": "vectors.vector",
    "random_like": "vectors.vector",
    "import_vector": "vectors.formats.detect",
    "set_mean_normalize": "vectors.vector",
    "Intervention": "steering.intervention",
    "SteeringCallback": "training.callback",
    "SteeringWrapper": "steering.wrapper",
    "record_activations": "steering.patching",
    "spread_over_layers": "steering.intervention",
    "stream_norms": "extraction.norms",
    "extract": "extraction.extract",
    "extract_from_texts": "extraction.extract",
    "logistic_probe": "vectors.methods",
    "mean_difference": "vectors.methods",
    "pca": "vectors.methods",
    "prompt_difference": "extraction.actadd",
    "read_pairs": "extraction.pairs",
    "read_texts": "extraction.pairs",
    "Readings": "vectors.activations",
    "download_caa": "data.download",
    "fitting": "data.chat",
    "load_behavior": "data.sources",
    "load_facts": "data.sources",
    "pairs_from_dataset": "data.sources",
    "load_model": "models.loading",
}
__all__ = sorted(_HOME)
_RENAMED = {"record": "record_activations", "spread": "spread_over_layers"}
"""Names of version 0.1, for one more version."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"caa.{name} is caa.{_RENAMED[name]} now", FutureWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _HOME:
        raise AttributeError(f"caa has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"caa.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
