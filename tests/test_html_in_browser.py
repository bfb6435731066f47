"""The report in a real browser: every control, by mouse and by keys, on all kinds of screens, with hostile texts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from browser import Window, needs_browser, window

from caa.reports.pages.html import write_html
from caa.runs.rows import OWN, Cell, Row, VectorRef, append_rows

pytestmark = [needs_browser, pytest.mark.slow]

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
LONG = "token " * 10_000
UNBROKEN = "A" * 10_000
PHONE = {"width": 390, "height": 844}


def said(cell: Cell, n: int) -> str:
    if (cell.finetune, cell.multiplier) == ("positive", 1.0) and n < 2:
        return (LONG, UNBROKEN)[n]
    vector = "-".join(filter(None, (cell.vector.kind, cell.vector.name)))
    return f"{HOSTILE} {cell.finetune or 'base'} {cell.layer} {cell.multiplier} {vector} {n}"


def open_rows(name: str, layer: int) -> Iterator[Row]:
    for place, finetune in enumerate((None, "positive", HOSTILE)):
        for m, vector in (*((m, OWN) for m in (-1.0, 0.0, 1.0)), *((m, VectorRef("random", "0")) for m in (-1.0, 1.0))):
            cell = Cell(name, "open", finetune, layer, m, vector=vector)
            for n in range(3):
                evidence = {"asked": f"Why {n}? {HOSTILE}", "text": said(cell, n)}
                yield Row(cell, f"q{n}", 4 + place + m * (2 if vector == OWN else -1) + n / 2, evidence)


def ab_rows(name: str) -> Iterator[Row]:
    for layer in (1, 2, 3):
        for m in (-1.0, 0.0, 1.0):
            for n in range(30):
                score = 0.5 + m * layer / 10 + n / 300
                yield Row(Cell(name, "ab", layer=layer, multiplier=m), f"ab{n}", score, {"matching": "AB"[n % 2]})


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Of the page of a run with two tasks, three layers, a control, and markup wherever a text can stand."""
    folder = tmp_path_factory.mktemp("pages") / "embedded"
    append_rows(folder / "rows.jsonl", [*ab_rows("refusal"), *open_rows("refusal", 2), *open_rows(HOSTILE, 2)])
    judged = {"refusal": {}, HOSTILE: {"open": {"judge": {"name": HOSTILE, "accuracy": 0.1}}}}
    notes = {"model": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    record = {"settings": {"system": HOSTILE, "behaviors": judged}, "notes": notes}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "figures").mkdir()
    tokens = [f"{n},token {n},{n / 5000 - 1}" for n in range(1, 10_000)]
    lines = ["place,token,cosine", f"0,{HOSTILE},-1", *tokens]
    (folder / "figures" / "tokens-refusal.csv").write_text("\n".join(lines))
    return write_html(folder).as_uri()


def opened(w: Window, address: str) -> Window:
    w.page.goto(address)
    w.page.wait_for_selector("#by-multiplier svg")
    return w


@pytest.fixture
def w(address: str) -> Iterator[Window]:
    with window() as found:
        yield opened(found, address)


def tip(w: Window) -> str:
    return w.page.locator("#tip").inner_text() if w.page.locator("#tip").is_visible() else ""


def pick(w: Window, name: str, value: str) -> None:
    w.page.locator(f"#{name}").select_option(value)


def answers(w: Window) -> list[str]:
    return w.page.locator("#answers .said").all_inner_texts()


def focused(w: Window, what: str) -> str:
    return w.page.evaluate(f"document.activeElement.{what}")


def fits(w: Window) -> bool:
    return w.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


LOOKS = {
    "report": {},
    "report-dark": {"color_scheme": "dark"},
    "report-phone": {**PHONE, "has_touch": True, "is_mobile": True},
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_page_opens_from_disk_without_a_network_and_fits(address, name):
    with window(**LOOKS[name]) as w:
        opened(w, address)
        w.page.locator("details summary").click()
        assert w.page.locator("details pre").is_visible()
        assert fits(w)
        ground = w.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (name != "report-dark")
        w.page.locator("details summary").click()
        w.screenshot(name, whole=False)
        w.page.locator("#curves").scroll_into_view_if_needed()
        w.screenshot(f"{name}-curves", whole=False)
        assert not w.troubles


def test_no_text_became_markup(w):
    assert not w.page.locator("img").count()
    assert w.page.locator("script").count() == 2
    text = w.page.locator("main").inner_text()
    assert text.count("alert(1)") > 50, "names, warnings, tables, legends, answers"
    pick(w, "behavior", HOSTILE)
    pick(w, "b-finetune", HOSTILE)
    assert HOSTILE in answers(w)[1]
    pick(w, "curve-task", "open")
    pick(w, "curve-behavior", HOSTILE)
    assert HOSTILE in w.page.locator("#by-multiplier .legend").inner_text()
    w.page.locator(".colored span").first.hover()
    assert tip(w) == "-1.000"
    assert not w.troubles


def test_another_script_would_not_run(w):
    """The policy is what stops a text that got through after all."""
    refused = """() => new Promise(done => {
        document.addEventListener("securitypolicyviolation", event => done(event.violatedDirective));
        const script = document.createElement("script");
        script.textContent = "alert(1)";
        document.body.append(script);
    })"""
    assert w.page.evaluate(refused) == "script-src-elem"
    assert not [each for each in w.troubles if each.startswith("dialog")]


def test_curves_show_what_is_picked(w):
    svg = w.page.locator("#by-multiplier > svg")
    points = svg.locator("g[data-tip]")
    assert points.count() == 3
    pick(w, "curve-layer", "3")
    points.nth(2).hover()
    assert tip(w).startswith("none, layer 3, multiplier +1: 0.848, 95 % interval 0.8")
    assert "30 questions" in tip(w)
    first = points.nth(0).bounding_box()
    assert first["y"] > points.nth(2).bounding_box()["y"], "a higher score stands higher"
    pick(w, "curve-task", "open")
    assert points.count() == 3 * 5
    assert svg.locator(".other g[data-tip]").count() == 3 * 2, "controls are dimmed"
    assert "mean score, 0 to 10" in svg.text_content()
    markers = svg.locator(".own .mark").evaluate_all("all => all.map(each => each.getAttribute('d'))")
    assert len(set(markers)) == 3, "finetunes differ in their markers too"
    assert w.page.locator("#by-layer").is_hidden(), "open questions were asked at one layer"
    assert not w.troubles


def test_curves_by_layer_have_a_line_for_each_multiplier(w):
    points = w.page.locator("#by-layer g[data-tip]")
    assert points.count() == 9
    assert w.page.locator("#by-layer .legend").inner_text().split("\n")[1:] == ["x -1", "x 0", "x +1"]
    assert w.page.locator("#curve-finetune").is_disabled(), "one finetune is no choice"
    points.nth(8).hover()
    assert tip(w).startswith("x +1, layer 3, multiplier +1: 0.848")


def test_a_point_and_a_cell_lead_to_their_answers_beside_the_unsteered_ones(w):
    assert w.page.locator("#by-multiplier .answered").count() == 0, "layer 1 was asked no open questions"
    pick(w, "curve-task", "open")
    w.page.locator('#by-multiplier [data-tip^="positive, layer 2, multiplier -1"]').click()
    assert focused(w, "innerText") == "Answers of any two settings"
    assert [text.split("> ")[-1] for text in answers(w)[:2]] == ["positive 2 0.0 own 0", "positive 2 -1.0 own 0"]
    w.page.locator("tr:has(th.control) [data-place]").first.click()
    assert [text.split("> ")[-1] for text in answers(w)[:2]] == ["base 2 0.0 own 0", "base 2 -1.0 random-0 0"]
    pick(w, "behavior", HOSTILE)
    w.page.go_back()
    w.page.wait_for_url(lambda url: "#" not in url)
    assert not w.troubles


def test_answers_of_any_two_settings(w):
    assert [text.split("> ")[-1] for text in answers(w)[:2]] == ["base 2 0.0 own 0", "base 2 1.0 own 0"]
    pick(w, "b-finetune", "positive")
    pick(w, "b-multiplier", "-1")
    assert answers(w)[1].endswith("positive 2 -1.0 own 0")
    pick(w, "b-vector", "random-0")
    assert answers(w)[1].endswith("positive 2 -1.0 random-0 0")
    pick(w, "a-multiplier", "+1")
    assert answers(w)[0].endswith("base 2 1.0 own 0")
    assert w.page.locator("#a-layer").is_disabled(), "one layer is no choice"
    assert w.page.locator("#count").inner_text() == "3 questions: none x +1 beside positive x -1, random-0"
    pick(w, "behavior", HOSTILE)
    assert answers(w)[0].endswith("base 2 0.0 own 0")
    assert not w.troubles


def test_keys_alone_reach_everything(w):
    press = w.page.keyboard.press
    press("Tab")
    assert focused(w, "innerText") == "Skip to the tables"
    press("Enter")
    assert w.page.url.endswith("#tables")
    press("Tab")
    assert focused(w, "tagName") == "TD"
    first = tip(w)
    press("ArrowRight")
    assert tip(w) not in ("", first), "the next number is told"
    press("ArrowDown")
    press("ArrowLeft")
    press("ArrowUp")
    assert tip(w) == first
    press("ArrowUp")
    assert tip(w) == first, "there is nothing above the first line"
    press("Tab")
    assert focused(w, "tagName") == "TD"
    assert w.page.evaluate("document.activeElement.closest('table') === document.querySelectorAll('table')[1]")
    press("Escape")
    assert tip(w) == ""
    pick(w, "curve-task", "open")
    w.page.locator("#curve-task").focus()
    for _ in range(9):
        press("Tab")
        if focused(w, "tagName") == "g":
            break
    assert tip(w).startswith("none, layer 2, multiplier -1: 2.500")
    press("ArrowDown")
    press("ArrowRight")
    press("ArrowRight")
    assert tip(w).startswith("positive, layer 2, multiplier +1: 7.5")
    press("Enter")
    assert answers(w)[1] == LONG
    press("Tab")
    assert focused(w, "id") == "behavior"
    press("ArrowDown")
    assert answers(w)[0].endswith("base 2 0.0 own 0"), "the behavior changed"
    assert not w.troubles


def test_each_picture_is_one_stop_and_tokens_tell_their_numbers(w):
    stops = w.page.evaluate("""() => [".colored", "table", "svg[role=group]"].map(kind =>
        [...document.querySelectorAll(kind)].map(each => each.querySelectorAll("[tabindex='0']").length))""")
    assert all(each == 1 for kind in stops for each in kind)
    w.page.locator('.colored [tabindex="0"]').focus()
    w.page.keyboard.press("ArrowRight")
    assert tip(w) == "-1.000"
    w.page.keyboard.press("ArrowRight")
    assert focused(w, "innerText") == "token 2"
    colors = w.page.locator(".colored span").evaluate_all(
        "all => [0, -1].map(n => getComputedStyle(all.at(n)).backgroundColor)"
    )
    red, blue = ([float(part) for part in color[color.index(" ") + 1 : -1].split()[:3]] for color in colors)
    assert red[0] > red[2]
    assert blue[0] < blue[2]


def test_a_very_long_answer_leaves_a_phone_usable(address):
    with window(**PHONE) as w:
        opened(w, address)
        pick(w, "b-finetune", "positive")
        assert [answers(w)[n] for n in (1, 3)] == [LONG, UNBROKEN]
        assert w.page.locator("#answers .said").nth(3).evaluate("text => text.scrollWidth <= text.clientWidth")
        assert fits(w)
        assert w.page.locator("#answers .said").nth(1).bounding_box()["height"] < 300, "it scrolls in a box of its own"
        w.page.evaluate("""() => {
            const select = document.getElementById("b-multiplier");
            for (const value of ["-1", "+1"]) {
                select.value = value;
                select.dispatchEvent(new Event("change"));
                document.body.offsetHeight;
            }
        }""")
        w.page.locator("#said").scroll_into_view_if_needed()
        w.screenshot("report-phone-answers", whole=False)
        assert not w.troubles


def test_on_paper_it_is_light_and_nothing_is_cut_off(address):
    with window(718, 1000, color_scheme="dark") as w:  # A4 with Chromium's margins, at 96 dots per inch
        opened(w, address)
        w.page.emulate_media(media="print")
        assert w.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert w.page.locator("nav").is_hidden()
        assert fits(w)
        boxes = w.page.locator(".wide, .said").evaluate_all("all => all.map(each => getComputedStyle(each).overflow)")
        assert set(boxes) == {"visible"}
        w.screenshot("report-print", whole=False)
        assert w.page.pdf(format="A4").startswith(b"%PDF")
        assert not w.troubles


def test_without_scripts_the_numbers_are_there(address):
    with window(java_script_enabled=False) as w:
        w.page.goto(address)
        assert w.page.locator("td[title]").count() > 50
        assert "Curves need JavaScript" in w.page.locator("noscript").first.inner_text()
        assert not w.troubles
