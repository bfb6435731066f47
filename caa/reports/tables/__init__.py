"""Tables: rows in; finetune x multiplier tables and what belongs below them out, in every format."""

from caa.reports.layer_choice import best_layer
from caa.reports.tables.effects import effect_matrix
from caa.reports.tables.finetune import finetune_tables, summarize, sweep_table
from caa.reports.tables.formats import to_csv, to_latex, to_markdown, to_terminal
from caa.reports.tables.layout import Table
from caa.reports.tables.report import FORMATS, write_report, write_tables

__all__ = [
    "FORMATS",
    "Table",
    "best_layer",
    "effect_matrix",
    "finetune_tables",
    "summarize",
    "sweep_table",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_terminal",
    "write_report",
    "write_tables",
]
