"""A run with a damage.csv shows it: a table for each measure in every format, beside the scores of the same cells."""

from __future__ import annotations

import csv
import json

import pytest

from caa.reports.naming import cell_fields
from caa.reports.pages.appendix import write_appendix
from caa.reports.pages.html import write_html
from caa.reports.tables import write_report
from caa.reports.tables.damage import damage_tables
from caa.runs.folder import read_run
from caa.runs.rows import Cell, Row, VectorRef, append_rows

BASE = Cell("joy", "open", None, 2, 0.0)
UP = Cell("joy", "open", None, 2, 0.5)
CHANCE = [Cell("joy", "open", None, 2, 0.5, vector=VectorRef("random", str(seed))) for seed in range(2)]
TAUGHT = Cell("joy", "open", "positive", 2, 0.5)
STALE = Cell("joy", "open", "gone", 2, 0.5)
# perplexity, loops, divergence: the vector surprises 1.6 times, moves words more than chance, loops no more.
DAMAGE = {
    BASE: (2.0, 0.25, 0.0),
    UP: (3.2, 0.25, 0.3),
    CHANCE[0]: (2.5, 0.5, 0.1),
    CHANCE[1]: (2.7, 0.0, 0.2),
    TAUGHT: (9.0, 1.0, ""),
    STALE: (7.77, 1.0, 0.1),
}


@pytest.fixture
def folder(tmp_path):
    asked = [
        Row(cell, f"q{n}", 5.0, {"text": "So.", "asked": "?"}) for cell in DAMAGE for n in range(4) if cell != STALE
    ]
    append_rows(tmp_path / "rows.jsonl", asked)
    write_damage(tmp_path, DAMAGE)
    return tmp_path


def write_damage(folder, damage):
    lines = [
        {**cell_fields(cell), "answers": 4, "prompts": 8, "perplexity": ppl, "loops": loops, "divergence": kl}
        for cell, (ppl, loops, kl) in damage.items()
    ]
    with (folder / "damage.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def test_each_measure_has_its_table_and_marks_what_stands_out(folder):
    tables = damage_tables(read_run(folder))
    assert [table.title.split(" of ")[0] for table in tables] == [
        "Damage: perplexity",
        "Damage: share",
        "Damage: KL",
    ]
    perplexity, loops, moved = (
        {(e.cell.finetune, e.cell.vector.kind, e.cell.multiplier): e for e in t.entries} for t in tables
    )
    assert {place: (entry.text, entry.mark) for place, entry in perplexity.items()} == {
        (None, "own", 0.0): ("2.00", ""),
        (None, "own", 0.5): ("3.20", "sure"),
        (None, "random", 0.5): ("2.60", ""),
        ("positive", "own", 0.5): ("9.00", ""),  # its own multiplier 0 was not asked: nothing to compare with
    }
    assert (loops[None, "own", 0.5].text, loops[None, "own", 0.5].mark) == ("25%", "")
    assert (moved[None, "own", 0.5].text, moved[None, "own", 0.5].mark) == ("0.30", "sure")
    assert moved[None, "random", 0.5].spread == "±.05"
    assert ("positive", "own", 0.5) not in moved


def test_as_much_as_chance_is_not_marked(folder):
    write_damage(folder, DAMAGE | {UP: (3.0, 0.25, 0.2)})
    assert not [entry for table in damage_tables(read_run(folder)) for entry in table.entries if entry.mark]


def test_all_formats_show_it(folder):
    write_report(folder)
    page, appendix = write_html(folder).read_text(), write_appendix(folder).read_text()
    for text in (page, appendix, *((folder / f"tables.{suffix}").read_text() for suffix in ("md", "tex"))):
        assert "Damage: perplexity" in text
        assert "3.20" in text
        assert "7.77" not in text, "a line of a cell that the rows do not have"
    lines = list(csv.DictReader((folder / "tables.csv").open()))
    kept = [line for line in lines if line["quantity"] == "divergence" and line["vector"] == "caa"]
    assert [(float(line["multiplier"]), float(line["mean"]), line["n"]) for line in kept] == [
        (0, 0, "8"),
        (0.5, 0.3, "8"),
    ]
    points = page.split('id="data">')[1].split("</script>")[0]
    assert len(json.loads(points)["scores"]) == 4, "damage is no point of a curve of scores"


def test_a_run_without_it_has_no_such_table(folder):
    (folder / "damage.csv").unlink()
    assert damage_tables(read_run(folder)) == []


def test_a_file_without_cells_is_refused(folder):
    (folder / "damage.csv").write_text("perplexity\n3\n")
    with pytest.raises(ValueError, match=r"damage\.csv does not name its cells"):
        write_report(folder)
