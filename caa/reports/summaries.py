"""A run in; out come what was run, in a few lines, and the program that runs it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from caa.reports.diagnostics.letters import letter_facts
from caa.reports.diagnostics.warnings import run_warnings
from caa.reports.naming import cell_fields, signed, usual_first
from caa.runs.folder import Run
from caa.runs.rows import TEXT, Row, VectorRef


def run_facts(run: Run) -> dict[str, str]:
    """What was run, in a few lines: name -> value."""
    rows, settings, notes = run.rows, run.record.get("settings", {}), run.record.get("notes", {})
    model, versions = settings.get("model", {}), notes.get("versions", {})
    one_vector, named = [row for row in rows if row.cell.layer is not None], [row for row in rows if row.cell.setting]
    facts = {
        "model": f"{run.model}, fingerprint {model.get('fingerprint', 'unknown')}",
        "dtype": str(model.get("dtype", "unknown")),
        "rows": f"{len(rows):,} in {len({row.cell for row in rows}):,} cells",
        "behaviors": ", ".join(_values(rows, "behavior")),
        "finetunes": ", ".join(_values(rows, "finetune")),
        "layers": ", ".join(_values(one_vector, "layer")) + " (outputs of blocks, counted from 0)",
        "multipliers": ", ".join(signed(float(multiplier)) for multiplier in _values(one_vector, "multiplier")),
        "system prompt": repr(settings.get("system")) if settings.get("system") else "none",
        "letters": letter_facts(rows) or "the rows do not say which letter matches",
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()) or "unknown",
        "seeds": f"bootstrap 0; random directions {', '.join(_seeds(rows)) or 'none'}",
    }
    if named:
        facts["settings"] = ", ".join(_values(named, "setting"))
    if not one_vector:
        del facts["layers"], facts["multipliers"]
    if any(TEXT in row.evidence for row in rows):
        facts["texts"] = texts_facts(run)
    if sources := _vector_sources(notes.get("vectors", {})):
        facts["vectors"] = "; ".join(f"{source} ({', '.join(names)})" for source, names in sources.items())
    return facts


def texts_facts(run: Run) -> str:
    """What greedy texts depend on besides their prompts: in another dtype, or in other batches, many differ."""
    dtype = run.record.get("settings", {}).get("model", {}).get("dtype", "an unknown dtype")
    batch_size = run.record.get("notes", {}).get("batch_size", "unknown")
    return f"greedy, in {dtype}, batch size {batch_size}"


def warnings_of(run: Run) -> list[str]:
    """What a reader has to know before believing any number of this run."""
    captions = run.captions
    return run_warnings(run.rows, captions.get("judge_accuracy", {}), captions.get("off_topic", {}))


def _vector_sources(vectors: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Method and number of pairs -> the behaviors whose vectors were extracted so."""
    sources: dict[str, list[str]] = {}
    for name, provenance in vectors.items():
        source = f"{provenance.get('method') or 'unknown method'} of {provenance.get('n_pairs', 0)} pairs"
        sources.setdefault(source, []).append(name)
    return sources


def _values(rows: Iterable[Row], field: str) -> list[str]:
    """The values of a cell's field: names in order of appearance, numbers ascending."""
    cells = dict.fromkeys(row.cell for row in rows)
    values = dict.fromkeys(cell_fields(cell)[field] for cell in cells)
    return [str(value) for value in (values if field in ("behavior", "finetune", "setting") else sorted(values))]


def _seeds(rows: Iterable[Row]) -> list[str]:
    return sorted({row.cell.vector.name for row in rows if row.cell.vector.kind == "random"})


def rerun_program(run: Run) -> str:
    """The program that runs the experiment again in a new folder, as far as rows and record know it."""
    layers = sorted({row.cell.layer for row in run.rows if row.cell.layer is not None})
    arguments = {**_grid_arguments(run), **_optional_arguments(run)}
    lines = [f"    {name}={value!r}," for name, value in arguments.items()]
    more_layers = f"  # and at layers {layers[1:]}, by `caa grid`" if len(layers) > 1 else ""
    more_layers += "  # and under settings, by `caa grid`" if any(row.cell.setting for row in run.rows) else ""
    head = ["from caa import Experiment", "", "Experiment(", '    "runs/again",']
    return "\n".join([*head, *lines, f").run(){more_layers}"])


def _grid_arguments(run: Run) -> dict[str, Any]:
    cells = {row.cell for row in run.rows if row.cell.layer is not None}
    return {
        "behaviors": _values(run.rows, "behavior"),
        "model": run.model,
        "layer": min((cell.layer for cell in cells if cell.layer is not None), default=None),
        "doses" if _in_doses(run) else "multipliers": sorted({cell.multiplier for cell in cells}),
        "finetunes": _values(run.rows, "finetune"),
        "tasks": usual_first((row.cell.task for row in run.rows), ("ab", "open")),
        "random_controls": len(_seeds(run.rows)),
    }


def _in_doses(run: Run) -> bool:
    """Whether the vectors were taken at the length of the stream (`caa.extraction.norms.in_doses`)."""
    sources = run.record.get("notes", {}).get("vectors", {}).values()
    return any(check.endswith("multiplier of dose 1") for source in sources for check in source.get("checks", {}))


def _optional_arguments(run: Run) -> dict[str, Any]:
    """What is said only where it is not the default."""
    cells = {row.cell for row in run.rows}
    vectors, prompts = {cell.vector for cell in cells}, sorted({cell.system_prompt for cell in cells})
    other_behaviors = {vector.name for vector in vectors if vector.kind == "other"} & {cell.behavior for cell in cells}
    lengths = _answer_lengths(run)
    arguments = {
        "facts": "facts" if any(cell.task == "facts" for cell in cells) else None,
        "system_prompts": prompts if any(prompts) else None,
        "others": True if other_behaviors else None,
        "reread": True if VectorRef("reread") in vectors else None,
        "max_new_tokens": lengths.pop() if lengths else None,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _answer_lengths(run: Run) -> set[int]:
    """How many new tokens the answers to open questions were given, of each behavior that says so."""
    settings = run.record.get("settings", {}).get("behaviors", {}).values()
    open_settings = [tasks["open"] for tasks in settings if "open" in tasks]
    return {options["max_new_tokens"] for options in open_settings if "max_new_tokens" in options}
