"""Pages: a run in; one HTML page, or one Markdown appendix, out."""
