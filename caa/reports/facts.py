"""A run in, what was run and how to run it again out, as every report says it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from caa.reports.arranging import in_order
from caa.reports.letters import letter_facts
from caa.reports.naming import cell_fields, signed
from caa.runs.folder import Run
from caa.runs.rows import OWN, Row, VectorRef


def facts(run: Run) -> dict[str, str]:
    """What was run, in a few lines: name -> value."""
    rows, settings, notes = run.rows, run.record.get("settings", {}), run.record.get("notes", {})
    model = settings.get("model", {})
    found = {
        "model": f"{run.model}, fingerprint {model.get('fingerprint', 'unknown')}",
        "dtype": str(model.get("dtype", "unknown")),
        "rows": f"{len(rows):,} in {len({row.cell for row in rows}):,} cells",
        "behaviors": ", ".join(_values(rows, "behavior")),
        "finetunes": ", ".join(_values(rows, "finetune")),
        "layers": ", ".join(_values(rows, "layer")) + " (outputs of blocks, counted from 0)",
        "multipliers": ", ".join(signed(float(m)) for m in _values(rows, "multiplier")),
        "system prompt": repr(settings.get("system")) if settings.get("system") else "none",
        "letters": letter_facts(rows) or "the rows do not say which letter matches",
        "versions": ", ".join(f"{name} {version}" for name, version in notes.get("versions", {}).items()) or "unknown",
        "seeds": f"bootstrap 0; random directions {', '.join(_seeds(rows)) or 'none'}; texts are greedy",
    }
    ways = [f"{how} ({', '.join(names)})" for how, names in _vectors(notes).items()]
    return found | ({"vectors": "; ".join(ways)} if ways else {})


def _vectors(notes: Mapping[str, Any]) -> dict[str, list[str]]:
    """How vectors were found -> the behaviors whose were found so."""
    found: dict[str, list[str]] = {}
    for name, source in notes.get("vectors", {}).items():
        how = f"{source.get('method') or 'unknown method'} of {source.get('n_pairs', 0)} pairs"
        found.setdefault(how, []).append(name)
    return found


def _values(rows: Iterable[Row], field: str) -> list[str]:
    cells = {row.cell: None for row in rows}
    values = {cell_fields(cell)[field]: None for cell in cells}
    ordered = values if field in ("behavior", "finetune") else sorted(values)
    return [str(value) for value in ordered]


def _seeds(rows: Iterable[Row]) -> list[str]:
    return sorted({row.cell.vector.name for row in rows if row.cell.vector.kind == "random"})


def again(run: Run) -> str:
    """The program that runs the experiment again in a new folder, as far as rows and record know it."""
    rows, settings = run.rows, run.record.get("settings", {}).get("behaviors", {})
    cells = {replace(row.cell, vector=OWN) for row in rows}
    layers, tasks = sorted({cell.layer for cell in cells}), in_order((row.cell.task for row in rows), ("ab", "open"))
    lengths = {each["open"]["max_new_tokens"] for each in settings.values() if "max_new_tokens" in each.get("open", {})}
    arguments: dict[str, Any] = {
        "behaviors": _values(rows, "behavior"),
        "model": run.model,
        "layer": layers[0],
        "multipliers": sorted({cell.multiplier for cell in cells}),
        "finetunes": _values(rows, "finetune"),
        "tasks": tasks,
        "random_controls": len(_seeds(rows)),
    }
    vectors, prompts = {row.cell.vector for row in rows}, sorted({row.cell.system_prompt for row in rows})
    arguments |= {"facts": "facts"} if "facts" in tasks else {}
    arguments |= {"system_prompts": prompts} if any(prompts) else {}
    arguments |= (
        {"others": True} if {ref.name for ref in vectors if ref.kind == "other"} & set(arguments["behaviors"]) else {}
    )
    arguments |= {"reread": True} if VectorRef("reread") in vectors else {}
    arguments |= {"max_new_tokens": lengths.pop()} if lengths else {}
    lines = [f"    {name}={value!r}," for name, value in arguments.items()]
    others = f"  # and at layers {layers[1:]}, by `caa grid`" if len(layers) > 1 else ""
    return "\n".join(["from caa import Experiment", "", "Experiment(", '    "runs/again",', *lines, f").run(){others}"])
