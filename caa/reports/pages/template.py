"""Jinja2 templates of pages. All that is put into them is plain text, escaped: what a model wrote is data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caa.untrusted import plain

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> Template:
    """One of the templates in the folder beside this file; a name that a page does not know is an error, not a gap."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("caa.reports.pages", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_plain)
    return environment.get_template(name)


def _plain(value: Any) -> Any:
    """Text as text; what a template made itself, such as the output of a macro, is of another type, and stays."""
    return plain(value) if type(value) is str else value
