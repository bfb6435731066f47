"""The report page: whole, escaped, self-contained, quick, and made without torch."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from caa.cli import main
from caa.reports.pages.html import to_html, write_html
from caa.reports.pages.html_data import answers, curve_points, read_tokens
from caa.reports.summaries import rerun_program, run_facts
from caa.reports.tables import finetune_tables
from caa.runs.folder import Run
from caa.runs.rows import Cell, Row, VectorRef, append_rows
from caa.untrusted import plain

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} & \u2028 'q' \"d\""
RECORD = {
    "settings": {
        "model": {"fingerprint": "0123456789abcdef", "dtype": "float32"},
        "system": None,
        "behaviors": {"b": {"open": {"max_new_tokens": 32, "judge": {"name": "J", "accuracy": 0.625}}}},
    },
    "notes": {
        "model": "tiny-chat",
        "vectors": {"b": {"method": "mean difference", "n_pairs": 300}},
        "versions": {"caa": "9.8.7"},
    },
}


def rows_of(name: str = "b", said: str = "well", per_cell: int = 3) -> list[Row]:
    return [
        Row(
            Cell(name, "open", finetune, 3, m),
            f"q{n}",
            5 + m,
            {"asked": f"Why {n}?", "text": f"{said} {finetune or 'none'} {m} {n}"},
        )
        for finetune in (None, "positive")
        for m in (-1.0, 0.0, 1.0)
        for n in range(per_cell)
    ]


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, scripts with their content, the shown text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text, self._open = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    append_rows(tmp_path / "rows.jsonl", rows_of())
    (tmp_path / "run.json").write_text(json.dumps(RECORD), encoding="utf-8")
    return tmp_path


def test_the_page_says_what_was_run(run):
    page = Page(write_html(run).read_text(encoding="utf-8"))
    for said in (
        "tiny-chat",
        "0123456789abcdef",
        "caa 9.8.7",
        "mean difference of 300 pairs",
        "bootstrap 0",
        "18 in 6 cells",
    ):
        assert said in page.text
    assert page.text.count("What steering does") == 1
    assert page.text.count("Interaction") == 1
    assert "The judge of b is right in 62%" in page.text
    assert [cell["title"] for cell in page.all("td") if cell["class"] == "highest"] == [
        "6.000, 95 % interval 6.000 to 6.000, 3 questions"
    ] * 2, "ties are marked both"


def test_a_page_needs_nothing_from_outside_and_runs_no_script_but_its_own(run):
    (run / "figures").mkdir()
    (run / "figures" / "fig.png").write_bytes(b"\x89PNG fake")
    page = Page(write_html(run).read_text(encoding="utf-8"))
    addresses = [v for _, each in page.elements for k, v in each.items() if k in ("src", "href") and v]
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert base64.b64encode(b"\x89PNG fake").decode() in str(page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    [policy] = [each["content"] for each in page.all("meta") if each.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    ids = {each["id"] for _, each in page.elements if "id" in each}
    assert {address[1:] for address in addresses if address.startswith("#")} <= ids
    assert not [k for _, each in page.elements for k in each if k.startswith("on")]


def page_of(rows: list[Row], record: dict, folder: Path = Path("run")) -> Page:
    run = Run(folder, rows, record)
    return Page(to_html(run, finetune_tables(rows, **run.captions)))


def test_what_a_model_wrote_does_no_harm(tmp_path):
    rows = [*rows_of(HOSTILE, HOSTILE), Row(Cell(HOSTILE, "ab", HOSTILE, 3, 0.0), "q", 0.5, {})]
    judged = {HOSTILE: {"open": {"judge": {"name": HOSTILE, "accuracy": 0.1}}}}
    record = {
        "notes": {"model": HOSTILE, "versions": {HOSTILE: HOSTILE}},
        "settings": {"system": HOSTILE, "behaviors": judged},
    }
    page = page_of(rows, record)
    assert len(page.scripts) == 2
    assert not page.all("img")
    assert not [k for _, each in page.elements for k in each if k.startswith("on")]
    assert page.text.count("alert(1)") > 5
    assert "49" not in page.text.replace("7*7", ""), "no text is a template"
    found = json.loads(page.scripts[0])
    cell = found["texts"]["cells"][0]
    assert cell["behavior"] == plain(HOSTILE)
    assert cell["answers"]["q0"] == [f"{plain(HOSTILE)} none -1.0 0", 4.0]
    assert "<" not in page.scripts[0]


def test_every_select_has_a_label_and_every_table_headers(run):
    source = write_html(run).read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.all("select")) == 16
    assert len(page.all("label")) == 16
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(each.get("tabindex") == "0" for each in page.all("div") if each.get("class") == "wide")


def test_the_curves_show_the_numbers_of_the_tables(run):
    page = Page(write_html(run).read_text(encoding="utf-8"))
    points = json.loads(page.scripts[0])["scores"]
    placed = [cell for cell in page.all("td") if "data-place" in cell]
    assert len(points) == len(placed) == 6
    for cell in placed:
        point = points[int(cell["data-place"])]
        assert point["says"] == cell["title"]
        assert point["mean"] == 5 + float(point["multiplier"])
        assert point["low"] == point["high"] == point["mean"], "all three questions have one score"


def test_a_point_without_an_interval_or_a_score_is_no_nan():
    rows = [Row(Cell("b", "ab"), "q", 0.5, {}), Row(Cell("c", "ab"), "q", None, {})]
    page = page_of(rows, {})
    assert "NaN" not in page.scripts[0]
    points = json.loads(page.scripts[0])["scores"]
    assert [(each["mean"], each["low"]) for each in points] == [(0.5, None), (None, None)]


def test_tokens_take_the_place_of_their_picture(run):
    figures = run / "figures"
    figures.mkdir()
    for name in ("tokens-b", "other"):
        (figures / f"{name}.png").write_bytes(b"\x89PNG fake")
    (figures / "tokens-b.csv").write_text('place,token,cosine\n0,NA,-0.5\n1,"a ""b""\n<i>",0.25\n', encoding="utf-8")
    page = Page(write_html(run).read_text(encoding="utf-8"))
    assert [image["alt"] for image in page.all("img")] == ["other"]
    spans = [(each["class"], each["style"], each["title"]) for each in page.all("span")]
    assert spans == [("below", "--share:100", "-0.500"), ("above", "--share:50", "+0.250")]
    assert 'NAa "b"\n<i>' in page.text
    assert not page.all("i")


@pytest.mark.parametrize("content", ["", "place\n", "place,token,cosine\n0,a\n", "place,token,cosine\n0,a,nan\n"])
def test_a_broken_csv_of_tokens_says_so(tmp_path, content):
    (tmp_path / "tokens-b.csv").write_text(content)
    with pytest.raises(ValueError, match=r"tokens-b\.csv does not hold place, token and number"):
        read_tokens(tmp_path / "tokens-b.csv")


def test_texts_by_cell():
    found = answers(rows_of())
    assert found["questions"] == {"q0": "Why 0?", "q1": "Why 1?", "q2": "Why 2?"}
    assert len(found["cells"]) == 6
    first = found["cells"][0]
    assert (first["finetune"], first["layer"], first["multiplier"], first["vector"]) == ("none", "3", "-1", "caa")
    assert first["answers"]["q1"] == ["well none -1.0 1", 4.0]


def test_without_texts_there_is_nothing_to_read_and_without_a_record_the_page_says_less(tmp_path):
    append_rows(tmp_path / "rows.jsonl", [Row(Cell("b", "ab"), "q", 0.5, {})])
    page = Page(write_html(tmp_path).read_text(encoding="utf-8"))
    assert not [each for each in page.all("section") if each["id"] == "said"]
    assert "unknown model" in page.text
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        write_html(tmp_path / "nowhere")


def test_the_facts_say_how_letters_lie():
    rows = [Row(Cell("b", "ab"), f"q{n}", 0.5, {"matching": "AAB"[n % 3]}) for n in range(30)]
    said = run_facts(Run(Path("run"), rows))["letters"]
    assert said == "(A) is the matching answer of 67% of a behavior's questions; the plain model's mean P(A) is 0.50"
    assert "do not say" in run_facts(Run(Path("run"), rows_of()))["letters"]


def test_the_program_to_run_it_again_says_what_the_rows_say(tmp_path):
    rows = [*rows_of(), Row(Cell("b", "open", multiplier=1.0, layer=3, vector=VectorRef("random", "0")), "q0", 1.0, {})]
    seen = {}
    program = rerun_program(Run(tmp_path, rows, RECORD)).replace("from caa import Experiment", "")
    exec(
        program, {"Experiment": lambda *a, **k: seen.update(k, out=a) or type("Done", (), {"run": lambda self: None})()}
    )
    assert seen == {
        "out": ("runs/again",),
        "behaviors": ["b"],
        "model": "tiny-chat",
        "layer": 3,
        "multipliers": [-1.0, 0.0, 1.0],
        "finetunes": ["none", "positive"],
        "tasks": ["open"],
        "random_controls": 1,
        "max_new_tokens": 32,
    }


def test_the_program_names_no_model_that_the_run_does_not_name(tmp_path):
    assert "model='unknown model'" in rerun_program(Run(tmp_path, rows_of()))


def test_the_command_writes_the_page_and_the_tables(run, capsys):
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert (run / "report.html").stat().st_size > 5000
    assert {path.name for path in run.glob("tables.*")} == {"tables.md", "tables.csv", "tables.tex"}


def test_ten_thousand_rows_need_no_torch(tmp_path):
    many = [
        Row(Cell(f"b{k}", "open", f, 3, m), f"q{n}", 5 + m, {"asked": f"Why {n}?", "text": f"word {n} " * 30})
        for k in range(7)
        for f in (None, "positive", "negative")
        for m in (-1.0, 0.0, 1.0)
        for n in range(160)
    ]
    assert len(many) >= 10_000
    append_rows(tmp_path / "rows.jsonl", many)
    figures = tmp_path / "figures"
    figures.mkdir()
    tokens = "".join(f"{n},word {n},{n / 10_000 - 0.5}\n" for n in range(10_000))
    (figures / "tokens-b.csv").write_text("place,token,cosine\n" + tokens)
    write = f"from caa.reports.pages.html import write_html; write_html({str(tmp_path)!r})"
    script = f"import sys; {write}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_point_of_a_curve_has_its_interval_and_what_is_picked():
    cell = Cell("b", "ab", layer=3, multiplier=1.0)
    [table] = finetune_tables([Row(cell, f"q{n}", n / 10) for n in range(9)])
    [point] = curve_points(table.entries)
    estimate = table.entries[0].estimate
    assert [point[end] for end in ("low", "mean", "high")] == pytest.approx(
        [estimate.low, 0.4, estimate.high], abs=1e-4
    )
    assert estimate.low < 0.4 < estimate.high
    picked = {name: point[name] for name in ("behavior", "finetune", "layer", "multiplier", "vector", "system")}
    assert list(picked.values()) == ["b", "none", "3", "+1", "caa", "none"]
