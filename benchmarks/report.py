"""Timings in, claims and files out: what was to be shown, what was measured, as JSON and as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Timing


@dataclass(frozen=True)
class Claim:
    """Something that a benchmark is to show, and what it showed."""

    text: str
    value: float
    limit: float | None = None
    """None for what is reported without a promise."""
    at_least: bool = False
    """The value may not lie below the limit; else, not above it."""

    @property
    def met(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> str:
        sign = ">=" if self.at_least else "<="
        limit = "" if self.limit is None else f"{sign} {self.limit:g}"
        return f"| {self.text} | {self.value:.3g} | {limit} | {({True: 'yes', False: '**no**', None: ''})[self.met]} |"


@dataclass
class Report:
    """One benchmark of one model."""

    title: str
    subject: str
    timings: list[Timing] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def median(self, name: str) -> float | None:
        return next((timing.median for timing in self.timings if timing.name == name), None)

    def ratio(self, text: str, slow: str, fast: str, limit: float | None = None, at_least: bool = False) -> None:
        """Claim median(slow) / median(fast), where both were measured."""
        above, below = self.median(slow), self.median(fast)
        if above is not None and below is not None:
            self.claims.append(Claim(text, above / below, limit, at_least))

    def as_json(self) -> dict[str, Any]:
        claims = [asdict(claim) | {"met": claim.met} for claim in self.claims]
        timings = [asdict(timing) | {"median": timing.median} for timing in self.timings]
        return asdict(self) | {"claims": claims, "timings": timings}

    def markdown(self) -> str:
        lines = [f"## {self.title}: {self.subject}", ""]
        if self.timings:
            lines += [
                "| | median, s | quartiles, s | CPU, s | x the first | |",
                "| --- | ---: | ---: | ---: | ---: | --- |",
            ]
            lines += [self._line(timing) for timing in self.timings] + [""]
        if self.claims:
            lines += ["| | measured | to show | shown |", "| --- | ---: | ---: | --- |"]
            lines += [claim.row() for claim in self.claims] + [""]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes), ""])

    def _line(self, timing: Timing) -> str:
        low, high = timing.quartiles
        times = timing.median / self.timings[0].median
        cpu = f"{statistics.median(timing.cpu):.4g}" if timing.cpu else ""
        return (
            f"| {timing.name} | {timing.median:.4g} | {low:.4g} to {high:.4g} | {cpu} | {times:.3g} | {timing.note} |"
        )


def new_stem(folder: Path, machine: Mapping[str, Any]) -> Path:
    """A name of machine and date that no result has yet: nothing is ever overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "-".join([machine["slug"], machine["date"][:16].replace(":", "")])
    names = [stem, *(f"{stem}-{n}" for n in range(2, 100))]
    return next(folder / name for name in names if not (folder / f"{name}.json").exists())


def write(stem: Path, machine: Mapping[str, Any], reports: Sequence[Report]) -> None:
    """`<stem>.json` and `<stem>.md`, again after each benchmark: what was measured before a stop is kept."""
    record = {"machine": machine, "reports": [each.as_json() for each in reports]}
    Path(f"{stem}.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    told = [f"| {name} | {value} |" for name, value in machine.items() if name != "slug"]
    head = ["# Benchmarks", "", "| machine | |", "| --- | --- |", *told, ""]
    Path(f"{stem}.md").write_text("\n".join([*head, *(each.markdown() for each in reports)]), encoding="utf-8")
