"""The appendix: what a paper needs of a run, in Markdown that no text can break out of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from caa.cli import main
from caa.reports.pages.appendix import LONGEST, SHOWN, fenced, write_appendix
from caa.runs.rows import Cell, Row, append_rows
from caa.untrusted import plain

HOSTILE = "```\n# broken out\n</pre><script>alert(1)</script> | [link](http://x) ``` \ud800 " + "`" * 7


@pytest.fixture
def run(tmp_path: Path) -> Path:
    cells = [Cell("b", "open", finetune, 3, m) for finetune in (None, "positive") for m in (-1.0, 0.0, 0.5, 1.0)]
    for cell in cells:
        said = f"{HOSTILE} {cell.finetune or 'none'} {cell.multiplier}"
        rows = [Row(cell, f"q{n}", 5.0, {"asked": f"Why | {n}?", "text": said}) for n in range(5)]
        append_rows(tmp_path / "rows.jsonl", rows)
    record = {
        "settings": {"model": {"fingerprint": "0123"}, "behaviors": {}},
        "notes": {"model": "a|b", "versions": {"caa": "9.8.7"}},
    }
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return tmp_path


def blocks(text: str) -> tuple[str, list[str]]:
    """What stands outside of code blocks, and each block, by the rule of CommonMark: a fence as long ends it."""
    outside, inside, fence = [], [], ""
    for line in text.split("\n"):
        found = re.fullmatch(r"(`{3,})(\w*)", line)
        if fence and found and not found[2] and len(found[1]) >= len(fence):
            fence = ""
        elif fence:
            inside[-1] += line + "\n"
        elif found:
            fence = found[1]
            inside.append("")
        else:
            outside.append(line)
    assert not fence, "every block ends"
    return "\n".join(outside), inside


def test_no_text_breaks_out(run):
    outside, inside = blocks(write_appendix(run).read_text(encoding="utf-8"))
    assert "<script>" not in outside
    assert "\n# broken out" not in outside
    assert len(inside) == 3 * SHOWN + 1
    assert all(block.startswith(plain(HOSTILE)) for block in inside[:-1])
    assert inside[-1].startswith("from caa import Experiment")
    assert "Why \\| 0?" in outside


def test_the_first_questions_at_zero_and_at_both_ends_without_a_finetune(run):
    _, inside = blocks(write_appendix(run).read_text(encoding="utf-8"))
    assert [block.split("` ")[-1].strip() for block in inside[:3]] == ["none 0.0", "none 1.0", "none -1.0"]


def test_it_says_what_was_run_and_holds_tables_and_figures(run):
    (run / "figures").mkdir()
    (run / "figures" / "a picture).png").write_bytes(b"")
    outside, _ = blocks(write_appendix(run).read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.*)", outside, re.MULTILINE)
    assert headings == ["What happened", "Warnings", "Tables", "Figures", "Answers", "What was run", "Run it again"]
    assert "caa 9.8.7" in outside
    assert "8 of 8 cells hold fewer than 30" in outside
    assert "#### Interaction" in outside
    assert "(figures/a%20picture%29.png)" in outside
    assert "a\\|b" in outside
    assert {path.name for path in run.glob("tables.*")} == {"tables.md", "tables.csv", "tables.tex"}


def test_what_is_not_there_has_no_section(tmp_path):
    append_rows(tmp_path / "rows.jsonl", [Row(Cell("b", "ab"), f"q{n}", 0.5, {}) for n in range(30)])
    text = write_appendix(tmp_path).read_text(encoding="utf-8")
    assert "## Figures" not in text
    assert "## Answers" not in text
    assert "## Warnings\n\nNone." in text


def test_a_long_answer_is_cut_and_says_so(tmp_path):
    append_rows(tmp_path / "rows.jsonl", [Row(Cell("b", "open"), "q", 1.0, {"text": "long " * 10_000})])
    outside, [text, _] = blocks(write_appendix(tmp_path).read_text(encoding="utf-8"))
    assert len(text) == LONGEST + 1
    assert "the first 1,200 of 50,000 characters" in outside


@pytest.mark.parametrize("text", ["plain", "`", "```", "a\n````\nb", "`" * 20, ""])
def test_a_fence_is_longer_than_any_in_its_text(text):
    assert blocks(fenced(text)) == ("", [text + "\n"])


def test_the_command_writes_it(run, capsys):
    assert main(["report", str(run), "--format", "md"]) == 0
    assert "report.md" in capsys.readouterr().out
    assert (run / "report.md").exists()
    assert not (run / "report.html").exists()
