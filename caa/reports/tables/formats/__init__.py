"""A table in, text out: terminal, Markdown, CSV, LaTeX. Names of models and behaviors are data, never markup."""

from caa.reports.tables.formats.csv import to_csv
from caa.reports.tables.formats.latex import to_latex
from caa.reports.tables.formats.markdown import in_markdown, to_markdown
from caa.reports.tables.formats.terminal import TerminalTable, to_terminal

__all__ = ["TerminalTable", "in_markdown", "to_csv", "to_latex", "to_markdown", "to_terminal"]
