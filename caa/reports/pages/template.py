"""Jinja2 templates of pages. All that is put into them is escaped: what a model wrote is data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> Template:
    """One of the templates in the folder beside this file; a name that a page does not know is an error, not a gap."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("caa.reports.pages", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(name)
