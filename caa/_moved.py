"""Names and modules of version 0.1 at their new places. They go in version 0.3."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = {
    "CAADataModule": "caa.lightning.data.CAADataModule",
    "CAAModule": "caa.lightning.module.CAAModule",
    "ExemplarJudge": "caa.judges.ExemplarJudge",
    "FinetuneConfig": "caa.training.config.FinetuneConfig",
    "JudgeConfig": "caa.judges.JudgeConfig",
    "Provenance": "caa.vectors.vector.Provenance",
    "Readings": "caa.vectors.activations.PairActivations",
    "SteeringCallback": "caa.training.callback.SteeringCallback",
    "download_caa": "caa.data.download.download_caa",
    "extract_from_texts": "caa.extraction.extract.extract_from_texts",
    "fitting": "caa.data.chat.fitting",
    "import_vector": "caa.formats.import_vector",
    "load_facts": "caa.data.sources.load_facts",
    "logistic_probe": "caa.methods.logistic_probe",
    "make_judge": "caa.judges.make_judge",
    "mean_difference": "caa.methods.mean_difference",
    "pairs_from_dataset": "caa.data.sources.pairs_from_dataset",
    "pca": "caa.methods.pca",
    "prompt_difference": "caa.extraction.actadd.prompt_difference",
    "random_like": "caa.vectors.vector.random_like",
    "read_pairs": "caa.extraction.extract.read_pairs",
    "read_texts": "caa.extraction.extract.read_texts",
    "record": "caa.steering.patching.record_activations",
    "set_mean_normalize": "caa.vectors.vector.set_mean_normalize",
    "spread": "caa.steering.intervention.spread_over_layers",
    "stream_norms": "caa.extraction.norms.stream_norms",
}
"""Name in `caa` -> where it is now."""
PACKAGES = {"caa.evals.judging", "caa.finetune"}
"""Packages that are no more; their modules are below."""
MODULES = {
    "caa.data.knowledge": "caa.data.benchmarks",
    "caa.data.rendering": "caa.data.chat",
    "caa.data.templates": "caa.data.claims",
    "caa.evals.answers": "caa.data.parsing",
    "caa.evals.harness": "caa.evals.lm_eval",
    "caa.evals.judges": "caa.judges.exemplar",
    "caa.evals.judging.asking": "caa.judges.clients.protocol",
    "caa.evals.judging.build": "caa.judges.build",
    "caa.evals.judging.cache": "caa.judges.clients.cache",
    "caa.evals.judging.config": "caa.judges.config",
    "caa.evals.judging.embedders": "caa.judges.clients.embeddings",
    "caa.evals.judging.embedding": "caa.judges.embedding",
    "caa.evals.judging.endpoint": "caa.judges.clients.endpoint",
    "caa.evals.judging.expected": "caa.judges.scales",
    "caa.evals.judging.local": "caa.judges.clients.local",
    "caa.evals.judging.pairwise": "caa.judges.pairwise",
    "caa.evals.judging.prompts": "caa.judges.prompts",
    "caa.evals.judging.rating": "caa.judges.rating",
    "caa.evals.judging.summary": "caa.judges.summary",
    "caa.evals.judging.transport": "caa.judges.clients.transport",
    "caa.evals.metrics": "caa.lightning.metrics",
    "caa.evals.published": "caa.runs.published",
    "caa.evals.record": "caa.runs.manifest",
    "caa.evals.rows": "caa.runs.rows",
    "caa.evals.session": "caa.evals.runner",
    "caa.evals.texts": "caa.data.text_quality",
    "caa.exports.exporting": "caa.exports.targets",
    "caa.exports.folders": "caa.exports.folder",
    "caa.exports.pushes": "caa.exports.interventions",
    "caa.exports.shells": "caa.models.copies",
    "caa.finetune.config": "caa.training.config",
    "caa.finetune.examples": "caa.training.examples",
    "caa.finetune.lora": "caa.training.sft",
    "caa.finetune.progress": "caa.training.progress",
    "caa.lightning.callback": "caa.training.callback",
    "caa.lightning.states": "caa.lightning.metrics",
    "caa.matching": "caa.inspection",
    "caa.playground.answers": "caa.playground.streaming",
    "caa.playground.launching": "caa.playground.server",
    "caa.playground.setting": "caa.playground.session",
    "caa.playground.words": "caa.playground.html",
    "caa.reports.appendix": "caa.reports.pages.appendix",
    "caa.reports.arranging": "caa.reports.tables.pivot",
    "caa.reports.categories": "caa.reports.tables.categories",
    "caa.reports.collapse": "caa.reports.diagnostics.collapse",
    "caa.reports.damage": "caa.reports.tables.text_damage",
    "caa.reports.effects": "caa.reports.tables.effects",
    "caa.reports.facts": "caa.reports.summaries",
    "caa.reports.figures.rows": "caa.reports.figures.curves",
    "caa.reports.formats": "caa.reports.tables.formats",
    "caa.reports.html": "caa.reports.pages.html",
    "caa.reports.layout": "caa.reports.tables.layout",
    "caa.reports.letters": "caa.reports.diagnostics.letters",
    "caa.reports.page_data": "caa.reports.pages.html_data",
    "caa.reports.runs": "caa.runs.folder",
    "caa.reports.stacks": "caa.reports.tables.combinations",
    "caa.reports.warnings": "caa.reports.diagnostics.warnings",
    "caa.steering.actadd": "caa.extraction.actadd",
    "caa.steering.activations": "caa.extraction.reader",
    "caa.steering.batching": "caa.models.batching",
    "caa.steering.blocks": "caa.models.blocks",
    "caa.steering.borrowing": "caa.models.restore",
    "caa.steering.branching": "caa.models.batching",
    "caa.steering.card": "caa.steering.checkpoint.card",
    "caa.steering.clock": "caa.models.positions",
    "caa.steering.doses": "caa.extraction.norms",
    "caa.steering.extraction": "caa.extraction.extract",
    "caa.steering.hooks": "caa.models.hooks",
    "caa.steering.hub": "caa.hub",
    "caa.steering.identity": "caa.models.fingerprint",
    "caa.steering.keeping": "caa.extraction.vector_file",
    "caa.steering.loading": "caa.models.loading",
    "caa.steering.lora": "caa.models.adapters",
    "caa.steering.readings": "caa.extraction.extract",
    "caa.steering.recording": "caa.steering.patching",
    "caa.steering.saving": "caa.steering.checkpoint.steered",
    "caa.steering.sealing": "caa.steering.checkpoint.manifest",
    "caa.steering.settings": "caa.steering.intervention",
    "caa.steering.similarity": "caa.extraction.projections",
    "caa.steering.sites": "caa.models.sites",
    "caa.steering.trials": "caa.models.capabilities",
    "caa.vectors.formats.importing": "caa.vectors.formats.detect",
    "caa.vectors.readings": "caa.vectors.activations",
}
RENAMED = {
    "caa.data.rendering": {
        "render": "caa._moved.render",
        "render_branches": "caa._moved.render_branches",
        "render_chat": "caa._moved.render_chat",
        "render_text": "caa._moved.render_text",
    },
    "caa.data.templates": {
        "CONFIDENCE": "caa.data.personas.CONFIDENCE",
        "CORRIGIBILITY": "caa.data.personas.CORRIGIBILITY",
        "HONESTY": "caa.data.personas.HONESTY",
        "PRESETS": "caa.data.personas.PRESETS",
        "Preset": "caa.data.personas.Preset",
        "SYCOPHANCY": "caa.data.personas.SYCOPHANCY",
        "dialogue": "caa.data.personas.dialogue",
        "dialogue_pairs": "caa.data.personas.dialogue_pairs",
        "dialogue_texts": "caa.data.personas.dialogue_texts",
    },
    "caa.reports.arranging": {
        "arranged": "caa.reports.tables.pivot.table_of_rows",
        "estimates": "caa.reports.statistics.means_by_cell",
        "in_order": "caa.reports.naming.usual_first",
        "merged_controls": "caa.reports.tables.pivot.merge_controls",
        "table_of": "caa.reports.tables.pivot.table_of_entries",
    },
    "caa.reports.collapse": {"TEXT": "caa.runs.rows.TEXT"},
    "caa.reports.effects": {"ALPHA": "caa.reports.tables.significance.ALPHA"},
    "caa.reports.facts": {
        "again": "caa.reports.summaries.rerun_program",
        "facts": "caa.reports.summaries.run_facts",
    },
    "caa.reports.figures.rows": {"pushes": "caa.reports.figures.curves.two_sided_effects"},
    "caa.reports.stacks": {"stack_tables": "caa.reports.tables.combinations.combination_tables"},
    "caa.reports.warnings": {"warnings": "caa.reports.diagnostics.warnings.run_warnings"},
}
"""Module of 0.1 -> names in it that are called otherwise now -> where they are."""


def moved_name(name: str) -> Any:
    """What `caa.NAME` was in version 0.1, with a FutureWarning that says where it is now."""
    warnings.warn(f"caa.{name} is now {NAMES[name]}; the old name goes in version 0.3", FutureWarning, stacklevel=3)
    owner: Any = sys.modules["caa"]
    *modules, new = NAMES[name].split(".")[1:]
    for part in modules:
        owner = getattr(owner, part, None) or import_module(f"{owner.__name__}.{part}")
    return getattr(owner, new)


def _format(tokenizer: Any, **options: Any) -> Any:
    return import_module("caa.data.chat").ChatFormat(tokenizer, **options)


def render(
    tokenizer: Any, question: str, answer: str | None = None, *, system: str | None = None, template: str | None = None
) -> list[int]:
    """`ChatFormat(tokenizer, system, template).encode(question, answer)`, as version 0.1 wrote it."""
    ids: list[int] = _format(tokenizer, system=system, template=template).encode(question, answer)
    return ids


def render_text(
    tokenizer: Any, question: str, answer: str | None = None, *, system: str | None = None, template: str | None = None
) -> str:
    """`ChatFormat(tokenizer, system, template).text(question, answer)`, as version 0.1 wrote it."""
    text: str = _format(tokenizer, system=system, template=template).text(question, answer)
    return text


def render_chat(tokenizer: Any, messages: Sequence[Any], *, template: str | None = None) -> list[int]:
    """`ChatFormat(tokenizer, template=template).encode_chat(messages)`, as version 0.1 wrote it."""
    ids: list[int] = _format(tokenizer, template=template).encode_chat(messages)
    return ids


def render_branches(tokenizer: Any, pair: Any, *, system: str | None = None, template: str | None = None) -> Any:
    """`ChatFormat(tokenizer, system, template).encode_pair(pair)`, as version 0.1 wrote it."""
    return _format(tokenizer, system=system, template=template).encode_pair(pair)


class _Finetune(ModuleType):
    """The package that `caa.finetune` was. It may be called, since the name is that of the function now."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("caa.training.sft").finetune(*args, **kwargs)


class MovedModules(MetaPathFinder, Loader):
    """Gives the module at the new place to whoever imports the old one, with a FutureWarning."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if fullname in PACKAGES or fullname in MODULES:
            return ModuleSpec(fullname, self, is_package=fullname in PACKAGES)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return _Finetune(spec.name) if spec.name == "caa.finetune" else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        if old in MODULES:
            message = f"{old} is now {MODULES[old]}; the old path goes in version 0.3"
            warnings.warn(message, FutureWarning, stacklevel=2)
            module = import_module(MODULES[old])
            for name, new in RENAMED.get(old, {}).items():
                home, _, attribute = new.rpartition(".")
                setattr(module, name, getattr(import_module(home), attribute))
            sys.modules[old] = module  # the import system hands out what stands there
