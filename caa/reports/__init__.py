"""Tables: rows in; terminal, Markdown, CSV and LaTeX out. No torch anywhere below."""
