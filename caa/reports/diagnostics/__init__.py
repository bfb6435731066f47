"""Diagnostics: rows in, reasons to distrust a score out."""
