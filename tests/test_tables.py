"""Tables: exact small outputs in every format, marks, gaps, hostile names, and a report written to a folder."""

from __future__ import annotations

import csv
import html
import io
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from caa.reports.figures.tables import heat_panels
from caa.reports.tables import (
    finetune_tables,
    summarize,
    sweep_table,
    to_csv,
    to_latex,
    to_markdown,
    to_terminal,
    write_report,
)
from caa.reports.tables.turned import printed_tables
from caa.runs.manifest import record_run
from caa.runs.rows import Cell, Row, VectorRef, append_rows

SEVEN = ["ai_coordination", "corrigibility", "hallucination", "myopic_reward"]
SEVEN += ["survival_instinct", "sycophancy", "refusal"]
GRID = [(f, m) for f in (None, "positive", "negative") for m in (-1.0, 0.0, 1.0)]


def rows_of(cell: Cell, *scores: float | None, **evidence) -> list[Row]:
    return [Row(cell, f"q{i}", score, evidence) for i, score in enumerate(scores)]


def ab(finetune: str | None, multiplier: float, *scores: float | None, behavior: str = "refusal", **cell) -> list[Row]:
    return rows_of(Cell(behavior, "ab", finetune, cell.pop("layer", 13), float(multiplier), **cell), *scores)


def shown(table, width: int = 110, color: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), color_system="standard" if color else None, force_terminal=color)
    console.print(to_terminal(table))
    return console.file.getvalue()


def alone(table):
    """Without the tables below it (test_effects.py) and its sentences (test_headlines.py)."""
    return replace(table, below=(), warnings=(), headlines=())


def means(table) -> list[list[str]]:
    return [[entry.text if entry else "-" for entry in line.entries] for line in table.lines]


def marks(table) -> list[list[str]]:
    return [[entry.mark if entry else "-" for entry in line.entries] for line in table.lines]


@pytest.fixture
def small():
    """One behavior, two finetunes; every score the same, so that the intervals can be said by heart."""
    rows = ab(None, -1, 0.2, 0.2) + ab(None, 0, 0.5, 0.5) + ab("positive", -1, 0.4, None) + ab("positive", 0, 0.9, 0.9)
    [table] = finetune_tables(rows, model="tiny-chat")
    return alone(table)


@pytest.fixture(scope="module")
def seven():
    """All seven behaviors, 3 finetunes x 3 multipliers, open-ended with unjudged answers, and two random controls."""
    rows = []
    for place, behavior in enumerate(SEVEN):
        for column, (finetune, multiplier) in enumerate(GRID):
            scores = [10 * ((7 * q + 5 * column + place) % 11) / 10 for q in range(20)]
            rows += rows_of(Cell(behavior, "open", finetune, 13, multiplier), *scores[:-2], 10.0, None)
        for seed in (0, 1):
            rows += rows_of(
                Cell(behavior, "open", None, 13, 1.0, vector=VectorRef("random", str(seed))), 4.0 + seed, 4.0 + seed
            )
    [table] = finetune_tables(rows, model="tiny-chat", judge_accuracy=dict.fromkeys(SEVEN, 0.93))
    return alone(table)


def test_markdown_to_the_letter(small):
    assert to_markdown(small) == (
        "### A/B questions: mean probability of the matching answer, p(match) / (p(A) + p(B)); layer 13\n"
        "\n"
        "| behavior | none -1 | none 0 | positive -1 | positive 0 |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| refusal | _0.20_ ±.00 | 0.50 ±.00 | 0.40 (50%?) | **0.90** ±.00 |\n"
        "\n"
        "- **bold**: highest, _italic_: lowest of each behavior.\n"
        "- 2 questions per cell. ± is half the width of the 95 % interval (bootstrap over questions); "
        "both ends are in the CSV.\n"
        "- 12%?: share of answers that the judge could not tell; they are left out of the mean.\n"
        "- Model: tiny-chat. Layer 13 is the output of block 13, counted from 0.\n"
    )


def test_csv_holds_the_data_and_not_the_layout(small):
    lines = list(csv.DictReader(io.StringIO(to_csv(small))))
    assert len(lines) == 4
    cell = "behavior=refusal task=ab finetune=none layer=13 multiplier=-1.0 system_prompt= vector=caa setting="
    numbers = "mean=0.2 low=0.2 high=0.2 n=2 unjudged=0 quantity=score p= coverage=1.0 balanced=False note="
    assert [f"{name}={value}" for name, value in lines[0].items()] == f"{cell} {numbers}".split()
    assert (lines[2]["mean"], lines[2]["low"], lines[2]["n"], lines[2]["unjudged"]) == ("0.4", "", "1", "1")


def test_latex_to_the_letter(small):
    lines = to_latex(small).splitlines()
    assert lines[2:12] == [
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r" & \multicolumn{2}{c}{none} & \multicolumn{2}{c}{positive} \\",
        r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}",
        r"behavior & $-1$ & $0$ & $-1$ & $0$ \\",
        r"\midrule",
        r"refusal & \underline{0.20} & 0.50 & 0.40 & \textbf{0.90} \\",
        r" & {\scriptsize $\pm$.00} & {\scriptsize $\pm$.00} & {\scriptsize 50\%?} & {\scriptsize $\pm$.00} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_terminal_to_the_letter(small):
    lines = [line.rstrip() for line in shown(small).splitlines()]
    assert lines[3:8] == [
        "           none       positive",
        " behavior    -1     0       -1     0",
        " ───────────────────────────────────",
        " refusal  0.20▼  0.50     0.40 0.90▲",
        "           ±.00  ±.00     50%?  ±.00",
    ]


def test_the_terminal_shows_the_highest_in_blue_and_the_lowest_in_red(small):
    text = shown(small, color=True)
    assert re.search(r"\x1b\[1;34m0\.90▲", text)
    assert re.search(r"\x1b\[31m0\.20▼", text)


@pytest.mark.parametrize("width", [80, 100, 110])
def test_seven_behaviors_and_nine_columns_fit(seven, width):
    text = shown(seven, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("\n ai_coordination ") == 1, "in one piece"
    assert "survival_instinct" in text
    assert "…" not in text


def test_a_table_too_wide_comes_in_pieces_with_all_its_numbers():
    rows = [
        row
        for finetune in (None, "a-finetune-with-a-long-name", "positive")
        for m in (-2, -1, -0.5, 0, 0.5, 1, 2)
        for row in ab(finetune, m, 0.5 + m / 10 + len(finetune or "none") / 1000)
    ]
    [table] = map(alone, finetune_tables(rows))
    text = shown(table, 80)
    assert text.count("refusal ") == 3
    assert sorted(re.findall(r"\d\.\d\d", text.split("▲ highest")[0])) == sorted(means(table)[0])
    assert text.count("0.73▲") == 1, "marks compare the whole line"
    only = table.only("none")
    narrow = re.findall(r"\d\.\d\d", shown(only, 45).split("▲ highest")[0])
    assert narrow == means(only)[0], "names give way, numbers do not"


def test_columns_are_the_usual_finetunes_first_and_multipliers_ascending():
    rows = [
        row for f in ("zeta", "negative", "positive", None) for m in (1.0, -1, 0.5, 0) for row in ab(f, m, 0.5, 0.7)
    ]
    [table] = finetune_tables(rows)
    assert table.groups == [(f, ["-1", "0", "+0.5", "+1"]) for f in ("none", "positive", "negative", "zeta")]


def test_highest_and_lowest_of_each_line_and_ties(small):
    assert marks(small) == [["lowest", "", "", "highest"]]
    rows = []
    for behavior, values in {
        "low twice": (0.0, 0.0, 1.0),
        "all equal": (0.5, 0.5, 0.5),
        "as printed": (0.2, 0.901, 0.899),
    }.items():
        rows += [
            row for m, value in zip((-1, 0, 1), values, strict=True) for row in ab(None, m, value, behavior=behavior)
        ]
    [table] = finetune_tables(rows)
    assert marks(table) == [["lowest", "lowest", "highest"], ["", "", ""], ["lowest", "highest", "highest"]]


def test_what_lies_within_noise_is_not_marked():
    noisy = [rows_of(Cell("b", "ab", multiplier=m), *(m / 50 + n / 20 for n in range(20))) for m in (0.0, 1.0)]
    clear = [rows_of(Cell("c", "ab", multiplier=m), *(m / 2 + n / 200 for n in range(20))) for m in (0.0, 1.0)]
    assert marks(finetune_tables([row for rows in (*noisy, *clear) for row in rows])[0]) == [
        ["", ""],
        ["lowest", "highest"],
    ]


def test_marks_compare_numbers_and_not_their_digits():
    rows = [row for m, s in ((-1, 9.5), (0, 10.0), (1, 2.0)) for row in rows_of(Cell("b", "open", multiplier=m), s)]
    assert marks(finetune_tables(rows)[0]) == [["", "highest", "lowest"]]


def test_missing_cells_are_dashes_and_unjudged_cells_question_marks():
    rows = ab(None, -1, 0.2) + ab(None, 1, 0.8) + ab(None, -1, 0.3, behavior="sycophancy")
    rows += ab(None, 1, None, None, behavior="sycophancy")
    [table] = finetune_tables(rows + ab("positive", 0, 0.4))
    assert means(table) == [["0.20", "0.80", "0.40"], ["0.30", "?", "-"]]
    assert marks(table)[1] == ["", "", "-"], "one number is neither highest nor lowest"
    assert "| sycophancy | 0.30 | ? (100%?) | - |" in to_markdown(table)
    assert to_csv(alone(table)).splitlines()[-1] == (
        "sycophancy,ab,none,13,1.0,,caa,,,,,0,2,score,,0.0,False,0 of 2 answers have a score"
    )


@pytest.mark.parametrize(("scores", "spread"), [((0.0, 1.0), "±.50"), ((0.0, 1.99), "±1.0"), ((0.0, 10.0), "±5.0")])
def test_a_spread_has_two_digits(scores, spread):
    [table] = finetune_tables(rows_of(Cell("b", "open"), *scores))
    assert table.entries[0].spread == spread


def test_one_unjudged_answer_of_many_is_not_rounded_away():
    [table] = finetune_tables(ab(None, 0, *[0.5] * 999, None))
    assert table.entries[0].unjudged == "1%?"


def test_one_table_for_each_task_layer_and_system_prompt():
    places = [("facts", 3, ""), ("open", 3, ""), ("ab", 10, ""), ("ab", 3, "positive"), ("ab", 3, "")]
    rows = [row for task, layer, p in places for row in rows_of(Cell("b", task, layer=layer, system_prompt=p), 0.5)]
    titles = [table.title for table in finetune_tables(rows)]
    assert [title.split(":")[0] for title in titles] == ["A/B questions"] * 3 + ["Open-ended questions", "Facts"]
    assert [title.split("; ")[1] for title in titles[:3]] == [
        "layer 3",
        "layer 3, system prompt 'positive'",
        "layer 10",
    ]


def test_random_controls_are_one_line_below_their_behavior():
    rows = ab(None, 0, 0.5) + ab(None, 1, 0.9) + ab(None, 1, 0.1, behavior="sycophancy")
    for seed, score in enumerate((0.4, 0.5, 0.9)):
        rows += ab(None, 1, score, score, vector=VectorRef("random", str(seed))) + ab(
            None, 0, 0.5, vector=VectorRef("random", str(seed))
        )
    [table] = finetune_tables(rows)
    assert [(line.name, line.control) for line in table.lines] == [
        ("refusal", False),
        ("random x3", True),
        ("sycophancy", False),
    ]
    control = table.lines[1].entries[1]
    assert control.estimate.mean == pytest.approx(0.6)
    assert (control.estimate.low, control.estimate.high, control.estimate.n) == (0.4, 0.9, 6)
    assert control.spread == "±.25"
    assert marks(table)[:2] == [["lowest", "highest"], ["", ""]], "a control competes with nobody"
    assert any(note.startswith("random x3: 3 random directions of the same norm") for note in table.notes)
    assert table.notes[0].startswith("1 questions per cell"), "the controls' questions are not counted"


def test_a_single_control_keeps_the_interval_over_questions():
    [table] = finetune_tables(ab(None, 1, 0.9) + ab(None, 1, 0.2, 0.4, vector=VectorRef("random", "0")))
    assert table.lines[1].name == "random x1"
    assert (table.lines[1].entries[0].estimate.low, table.lines[1].entries[0].estimate.high) == (0.2, 0.4)


def test_the_caption_says_what_was_measured(seven):
    notes = "\n".join(seven.notes)
    assert "20 questions per cell" in notes
    assert "Model: tiny-chat. Layer 13 is the output of block 13, counted from 0." in notes
    assert (
        "Accuracy of the judge, on answers that it was not fitted on: ai_coordination 0.93, corrigibility 0.93" in notes
    )
    assert "95 % interval (bootstrap over questions)" in notes


def test_the_caption_says_how_much_probability_the_two_answers_had():
    rows = rows_of(Cell("b", "ab", multiplier=0.0), 0.5, p_matching=0.4, p_opposite=0.5)
    rows += rows_of(Cell("b", "ab", multiplier=1.0), 0.5, p_matching=0.2, p_opposite=0.1)
    notes = "\n".join(finetune_tables(rows)[0].notes)
    assert (
        "probability of 0.60 on average; the least is 0.30, in b (ab), finetune none, layer 0, multiplier +1." in notes
    )


def test_collapsed_and_frayed_cells_stand_below_their_table():
    rows = rows_of(Cell("b", "open", "negative"), *[0.0] * 9, text="BBBBB")
    rows += [Row(Cell("b", "open"), f"q{i}", 5.0, {"text": f"We see {i}. BABABABBBA"}) for i in range(9)]
    warnings = "\n".join(finetune_tables(rows)[0].warnings)
    assert "b (open), finetune negative, layer 0, multiplier 0 has collapsed" in warnings
    assert "b (open), finetune none, layer 0, multiplier 0 frays" in warnings


HOSTILE = r"a|b [red]c[/red] 50%_x_ & #1 $2 {y} \z ~^ <i> *d* `e`"


@pytest.fixture
def hostile():
    rows = ab(HOSTILE, 0, 0.5, behavior=HOSTILE) + ab(HOSTILE, 1, 0.6, behavior=HOSTILE)
    [table] = finetune_tables(rows, model=HOSTILE)
    return table


def test_names_are_not_markup_in_the_terminal(hostile):
    text = shown(hostile, 200)
    assert text.count(HOSTILE) == 7, "behavior, finetune and model; behavior and finetune below and in the warning"


def test_names_are_not_markup_in_markdown(hostile):
    text = to_markdown(hostile)
    above, below = [line for line in text.splitlines() if line.startswith("| a")]
    assert len(re.findall(r"(?<!\\)\|", above)) == 4, "three cells"
    assert len(re.findall(r"(?<!\\)\|", below)) == 5, "four cells"
    escaped = r"a\|b \[red\]c\[/red\] 50%\_x\_ \& \#1 \$2 {y} \\z \~^ \<i\> \*d\* \`e\`"
    assert text.count(escaped) == 10, "behavior, model, finetune over each of two columns; below, of three; warning"
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    assert html.unescape(re.sub(r"</?(t[dhr]|p|li)[^>]*>", "", page)).count(HOSTILE) == 10, (
        "a reader sees the names as they are"
    )


def test_names_are_not_markup_in_latex(hostile):
    escaped = (
        r"a\textbar{}b {[}red]c{[}/red] 50\%\_x\_ \& \#1 \$2 \{y\} \textbackslash{}z "
        r"\textasciitilde{}\textasciicircum{} \textless{}i\textgreater{} {*}d{*} `e`"
    )
    assert to_latex(hostile).count(escaped) == 7


def test_every_latex_line_has_as_many_cells_as_columns(seven):
    body = to_latex(seven).split(r"\midrule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line]
    assert len(lines) == 2 * (7 + 7), "numbers and spreads, of behaviors and controls"
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {9}


def test_the_summary_is_one_line_per_cell():
    frame = summarize(ab(None, 0, 0.25, 0.75, None) + ab(None, 1, 1.0))
    assert frame[["multiplier", "mean", "n", "unjudged"]].to_numpy().tolist() == [[0, 0.5, 2, 1], [1, 1.0, 1, 0]]


def sweep(behavior: str, effects: dict[int, float]) -> list[Row]:
    """Layer -> how much the score at +1 is above that at -1."""
    cells = [(layer, m) for layer in effects for m in (-1, 0, 1)]
    return [row for i, m in cells for row in ab(None, m, 0.5 + m * effects[i] / 2, behavior=behavior, layer=i)]


def test_a_sweep_has_layers_down_in_order_of_depth():
    table = sweep_table(sweep("b", {12: 0.2, 2: 0.1, 13: 0.4}))
    assert [line.name for line in table.lines] == ["2", "12", "13"]
    assert means(table)[2] == ["0.30", "0.50", "0.70"]
    assert table.stub == "layer"
    assert "lowest of each layer" in to_markdown(table)


def test_a_sweep_is_of_one_behavior():
    with pytest.raises(ValueError, match=r"rows of one behavior, these are of 'a', 'b'"):
        sweep_table([*sweep("a", {1: 0.2}), *sweep("b", {1: 0.1})])


@pytest.fixture
def run(tmp_path):
    cell = Cell("refusal", "open", None, 13, 1.0)
    append_rows(tmp_path / "rows.jsonl", rows_of(cell, 2.0, 4.0) + ab(None, 1, 0.5, 0.6))
    judge = {"open": {"judge": {"name": "ExemplarJudge", "accuracy": 0.875}}, "ab": {"questions": "0f"}}
    record_run(tmp_path / "run.json", {"behaviors": {"refusal": judge}}, {"model": "tiny-chat"}, ())
    return tmp_path


def test_a_report_writes_three_files_and_returns_the_tables(run):
    tables = write_report(run)
    assert sorted(path.name for path in run.iterdir()) == [
        "rows.jsonl",
        "run.json",
        "tables.csv",
        "tables.md",
        "tables.tex",
    ]
    markdown = (run / "tables.md").read_text(encoding="utf-8")
    assert markdown == "\n".join(map(to_markdown, tables))
    assert "Model: tiny-chat" in markdown
    assert "Accuracy of the judge, on answers that it was not fitted on: refusal 0.88." in markdown
    assert (run / "tables.csv").read_text(encoding="utf-8").count("behavior,task") == 1, "one header for all tables"
    assert (run / "tables.tex").read_text(encoding="utf-8").count(r"\begin{tabular}") == 2


def test_a_report_without_a_record_or_in_one_format(run):
    (run / "run.json").unlink()
    write_report(run, ["csv"])
    assert not (run / "tables.md").exists()


def test_a_report_replaces_the_old_one_or_leaves_it_whole(run, monkeypatch):
    write_report(run)
    before = (run / "tables.md").read_text(encoding="utf-8")
    append_rows(run / "rows.jsonl", ab(None, 2, 0.7))
    monkeypatch.setattr("caa.reports.tables.report.to_markdown", lambda table: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run)
    assert (run / "tables.md").read_text(encoding="utf-8") == before
    assert not [path for path in run.iterdir() if path.name.startswith(".")], "no scratch left behind"


def test_what_is_no_run_is_told_so(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown format pdf; a report is written as md, csv, tex"):
        write_report(run, ["pdf"])
    (run / "run.json").write_text('{"model": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run"):
        write_report(run)


def test_no_rows_are_no_table():
    with pytest.raises(ValueError, match="no rows"):
        finetune_tables([])


def test_reports_are_made_without_torch():
    script = (
        "import sys; from caa.reports.tables import *; from caa.runs.rows import Cell, Row\n"
        "t = finetune_tables([Row(Cell('b', 'ab'), q, s) for q, s in (('1', .1), ('2', .9))])\n"
        "to_csv(*t), to_latex(t[0]), to_markdown(t[0])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_dose_of_the_layer_stands_under_its_table():
    doses = {"refusal": {"3": 0.7, "13": 0.25}, "other": {"4": 0.1}}
    (table,) = finetune_tables(ab(None, 0.0, 0.5), doses=doses)
    (note,) = [note for note in table.notes if "dose" in note]
    assert note.endswith("last prompt token): refusal 0.25.")
    assert not any("dose" in note for note in finetune_tables(ab(None, 0.0, 0.5))[0].notes)


def test_many_finetunes_stand_below_each_other_in_a_table_for_each_behavior():
    names = (None, "positive", "dpo-for", "full", "theirs")
    rows = []
    for place, (behavior, finetune, multiplier) in enumerate(product(("refusal", "joy"), names, (0.0, 1.0))):
        rows += ab(finetune, multiplier, place / 100, place / 50, behavior=behavior)
    rows += ab(None, 1.0, 0.9, 0.9, behavior="joy", vector=VectorRef("random", "0"))
    (table,) = finetune_tables(rows)
    refusal, joy, *below = printed_tables(table)
    assert [line.name for line in joy.lines] == ["none", "random x1", "positive", "dpo-for", "full", "theirs"]
    assert joy.groups == [("joy", ["0", "+1"])]
    by_cell = {entry.cell: entry for entry in table.entries}
    for part, behavior in ((refusal, "refusal"), (joy, "joy")):
        assert part.title.startswith(f"{behavior}. A/B questions")
        for entry in part.entries:
            assert by_cell[entry.cell] is entry
            assert entry.cell.behavior == behavior
    assert len(refusal.entries) + len(joy.entries) == len(table.entries)
    assert len(below) == 2 * len(table.below) > 0
    markdown = to_markdown(table)
    assert "| finetune | joy 0 | joy +1 |" in markdown
    assert "_italic_: lowest of each table" in markdown
    assert markdown.count("questions per cell") == 1, "what is said of all stands once"
    assert r"\quad random x1 & - & 0.90" in to_latex(table)
    assert all(text in shown(table, 80) for text in ("dpo-for", "Interaction", "random x1"))
    with pytest.raises(ValueError, match="shows scores"):
        heat_panels(table.below[0], "effects")
    picture = heat_panels(table, "all").picture
    assert [axes.get_title() for axes in picture.axes[:2]] == ["refusal", "joy"]
    assert [label.get_text() for label in picture.axes[1].get_xticklabels()] == ["0", "+1"]
    (few,) = finetune_tables([row for row in rows if row.cell.finetune != "theirs"])
    assert printed_tables(few)[0].columns == few.columns
