"""A hook of mkdocs: files that live elsewhere in the repository become pages of the site, and links reach them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "checkpoints/**/README.md",
    "recipes/embedded/README.md",
)
PICTURES = ("benchmarks/results/*.png",)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add what is named above, under the path that it has in the repository."""
    for pattern in (*ELSEWHERE, *PICTURES):
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links are written as they hold in the repository, where the site's own pages are a folder deeper."""
    source = page.file.src_uri
    here = posixpath.dirname(source if page.file.generated_by else f"docs/{source}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link.group()))
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(source) or ".")

    return _LINK.sub(moved, markdown)
