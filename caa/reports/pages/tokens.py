"""Tokens with numbers in; the same tokens on red and blue out, as a page without scripts."""

from __future__ import annotations

from collections.abc import Sequence

from caa.reports.pages.template import template


def token_html(tokens: Sequence[str], values: Sequence[float], title: str, unit: str = "cosine") -> str:
    """One page without scripts: each token on red where its value is negative, on blue where positive (Figure 6)."""
    full = f"{largest_size(values):.3g}"
    return template("tokens.html").render(title=title, unit=unit, most=full, tokens=shaded(tokens, values))


def shaded(tokens: Sequence[str], values: Sequence[float]) -> list[tuple[str, str, str, int]]:
    """What the template `colored.html` draws: each token, its number, its side of 0, its share of the deepest color.

    >>> shaded(["good", " bad"], [0.5, -0.25])
    [('good', '+0.500', 'above', 100), (' bad', '-0.250', 'below', 50)]
    """
    full = largest_size(values)
    return [
        (token, f"{value:+.3f}", "below" if value < 0 else "above", round(100 * abs(value) / full))
        for token, value in zip(tokens, values, strict=True)
    ]


def largest_size(values: Sequence[float]) -> float:
    """What is colored most deeply; 1 where all are 0.

    >>> largest_size([0.5, -2.0]), largest_size([])
    (2.0, 1.0)
    """
    return max(map(abs, values), default=0.0) or 1.0
