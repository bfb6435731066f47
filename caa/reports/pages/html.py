"""The folder of a run in, one page out that needs no network: what was run, warnings, curves, tables, texts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from caa.reports.naming import highest_score
from caa.reports.pages.captions import caption
from caa.reports.pages.html_data import (
    answers,
    curve_axes,
    curve_points,
    exact_numbers,
    pictures,
    read_tokens,
    score_entries,
    sentences,
    story,
    token_files,
    weighed,
)
from caa.reports.pages.template import template
from caa.reports.summaries import rerun_program, run_facts, warnings_of
from caa.reports.tables.layout import Entry, Table
from caa.reports.tables.report import write_tables
from caa.runs.folder import Run, read_run
from caa.untrusted import plain_values

PAGE = "report.html"
_SCRIPTS = ("report.js", "curves.js", "answers.js")


def write_html(run_folder: str | Path) -> Path:
    """Write report.html beside a run's rows.jsonl, whole or not at all, and the tables as `write_report` does.

    Returns its path. Pictures and colored tokens in the folder `figures` are put into it. FileNotFoundError without any
    row, ValueError for a broken row, a broken run.json, a broken CSV of tokens.
    """
    run = read_run(run_folder)
    return run.write(PAGE, to_html(run, write_tables(run)))


def to_html(run: Run, tables: Sequence[Table]) -> str:
    """The page. All texts are escaped, in the tables as in the data that the script reads; the script itself is named
    by its hash in the page's security policy, so a browser runs no other.
    """
    script = "\n".join(template(name).render() for name in _SCRIPTS)
    points, texts, tokens = score_entries(tables), answers(run.rows), token_files(run.figures)
    return template("report.html").render(
        title=run.folder.resolve().name,
        model=run.model,
        facts=run_facts(run),
        story=story(tables),
        caption=caption,
        weighed=weighed,
        warnings=warnings_of(run),
        tables=[part for table in tables for part in (table, *table.below)],
        point_numbers={entry: number for number, entry in enumerate(points)},
        color_share=color_share,
        exact_numbers=exact_numbers,
        tokens={name: read_tokens(path) for name, path in tokens.items()},
        pictures=pictures(run.figures, left_out=tokens),
        has_answers=bool(texts["cells"]),
        data=plain_values(
            {
                "scores": curve_points(points),
                "axes": curve_axes(points),
                "sentences": sentences(tables),
                "texts": texts,
            }
        ),
        program=rerun_program(run),
        record=json.dumps(run.record, indent=2, ensure_ascii=False),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def color_share(entry: Entry) -> str:
    """How deep a score's cell is colored, in percent; empty for differences and for what too few scores stand for."""
    if entry.quantity != "score" or entry.unread:
        return ""
    return f"{100 * min(max(entry.estimate.mean / highest_score(entry.cell.task), 0.0), 1.0):.0f}"
