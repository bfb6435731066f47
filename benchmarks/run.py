"""python -m benchmarks.run: every benchmark in turn, into `benchmarks/results/<machine>-<date>.json` and `.md`.

--short does the same with very little, to see that all of it runs: its times mean nothing. --only names some of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks import figure
from benchmarks.extraction import extraction
from benchmarks.generating import compiled, overhead, table
from benchmarks.machine import ROOT, machine
from benchmarks.memory import memory
from benchmarks.report import Report, new_stem, write
from benchmarks.scaling import scaling
from benchmarks.subjects import FULL, SHORT, Size, subjects
from benchmarks.sweep import sweep
from benchmarks.training import training

USUAL = {"sweep": sweep, "extraction": extraction, "overhead": overhead, "table": table, "training": training}
OF_A_MODEL = USUAL | {"compiled": compiled}
"""Compiling for a CPU takes minutes and gains little, so that it is measured where it is asked for."""
ALL = (*OF_A_MODEL, "memory", "scaling")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Returns the path of the results without its ending."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument(
        "--only", nargs="+", choices=ALL, default=(*USUAL, "memory", "scaling"), metavar="NAME", help=", ".join(ALL)
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results, or runs/benchmarks for --short")
    asked = parser.parse_args(arguments)
    out = asked.out or ROOT / ("runs/benchmarks" if asked.short else "benchmarks/results")
    logging.set_verbosity_error()
    record = machine() | {"short": asked.short}
    stem, reports = new_stem(out, record), []
    for report in _reports(SHORT if asked.short else FULL, asked.only, stem):
        print(report.markdown(), flush=True)
        reports.append(report)
        write(stem, record, reports)
    print(f"{stem}.md")
    return stem


def _reports(size: Size, only: Sequence[str], stem: Path) -> Iterator[Report]:
    chosen = [OF_A_MODEL[name] for name in only if name in OF_A_MODEL]
    for subject in subjects(size) if chosen else ():
        for measure in chosen:
            yield measure(subject, size)
    if "memory" in only:
        yield memory(size)
    if "scaling" in only:
        gpu = torch.cuda.is_available()
        dtype, device = (torch.bfloat16, "cuda") if gpu else (torch.float32, "cpu")
        report, points = scaling(size, dtype, torch.device(device))
        figure.save(stem, points)
        yield report


if __name__ == "__main__":
    main()
