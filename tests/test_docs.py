"""The documentation is true: the site builds without a warning, links lead somewhere, and what it says to type runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from browser import needs_browser, window
from pages import PAGES, ROOT, SHELL, Step, steps
from small import small_world

import caa
from caa.reports.pages.html import write_html

NOT_RUN = {
    "make demo": "the fixture `demo` runs what it runs",
    "make test": "is this",
    "pip install": "needs a network",
    "caa data download": "needs a network; test_sources.py has a server of its own",
    "hf auth login": "needs an account",
    "push_to_hub": "needs an account; test_saving.py has a Hub of its own",
    "caa push": "needs an account; test_hub.py has a Hub of its own",
    "you/myopic@main": "takes what was pushed",
    "caa published CAA/results": "needs a clone of nrimsky/CAA; test_published.py has one",
    "caa lm-eval arc_easy": "needs a network; test_cli.py runs a task of its own",
    "caa damage myopic_reward": "takes a vector that another page extracts; test_cli.py runs it",
    "caa search myopic_reward runs/found": "half a minute; docs/searching.md has one of fewer questions",
    "caa run embedded": "9 minutes; test_recipes.py runs it with less to do",
    "caa run smollm2": "needs the package of the model; test_recipes.py reads it",
    "caa finetune refusal": "minutes each; test_preferences.py does the same to smaller models",
    "caa finetune mine.jsonl": "needs data of the reader's own; test_own_data.py has some",
    "caa grid refusal runs/refusal": "takes what the same page trains; test_columns.py has its own",
    "python recipes/any_finetune.py": "ten minutes; test_recipes.py runs it with less to do",
    "python recipes/trained_while_steered.py": "five minutes; test_recipes.py runs it with less to do",
    "caa run finetunes": "ten minutes; test_recipes.py reads it and runs the recipe with less to do",
    "caa run prompts": "10 minutes; test_recipes.py reads it",
    "python recipes/compare_methods.py": "hundreds of grids; test_recipes.py runs it with less to do",
    "python recipes/embedded/": "hours, and writes into the package; test_embedded.py",
    "caa run llama-2-7b-chat": "needs weights that are not to be had offline",
    "--model meta-llama/": "needs weights that are not to be had offline",
    "llama-server": "needs llama.cpp",
    "openai-community/gpt2-xl": "needs weights that are not to be had offline",
    'JudgeConfig(\n    "endpoint"': "needs a judge's server; test_endpoint.py has one of its own",
    "against_unsteered(": "needs a judge's server; test_judging.py has one of its own",
    "num_nodes=2": "needs sixteen GPUs; test_lightning.py runs two processes",
    "torchrun": "needs sixteen GPUs; test_lightning.py runs two processes",
    "trainer.predict(": "goes on where the one for sixteen GPUs ends; test_lightning.py",
    "SFTTrainer(": "the trainer is the reader's own; test_lightning.py",
    "transformers serve": "a server; test_serving.py",
    "caa play": "a server; test_playground.py starts it",
    "caa serve": "a server; test_serve.py starts it",
    "OpenAI(base_url": "asks that server; test_serve.py",
    "curl http": "asks that server; test_serving.py",
    "vllm serve": "vLLM needs a GPU",
    "caa export runs/steered --to merged": "takes a steered adapter of another page; test_exports.py has its own",
    "vllm/bin": "needs a Python of vLLM's own; test_vllm.py runs it where there is one",
    "--to vllm-lens --scope": "takes a steered adapter of another page; test_vllm.py has its own",
    "lm_eval --model": "needs a Python of lm-eval's own; tests/consumers run where there is one",
    "--model smollm2": "needs the package that the model comes with; tests/test_gguf.py loads it where it is",
    "ControlVector.import_gguf": "needs a Python of repeng's own; tests/consumers run where there is one",
}
"""What is in a command or block of Python -> why it is not run here."""
SOURCES = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("*/README.md"),
    *ROOT.glob("*/*/README.md"),
]
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
_OUTSIDE = re.compile(
    r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*\b(?:src|href|data)=\W?(?:https?:)?//[^>]*>"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def why_not(step: Step) -> str | None:
    return next((why for part, why in NOT_RUN.items() if part in step.text), None)


# What is to be typed.


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """`runs` with the demo's run, which the pages take for granted."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, small_world(folder / "small-data"):
        patch.chdir(folder)
        Step("shell", "caa demo").run({})
    return folder / "runs"


@pytest.fixture
def clone(demo, tmp_path, monkeypatch) -> Path:
    """What a reader has: the repository, the demo's run, and two files of other tools.

    The README teaches the demo's two adapters once more; they are there already, and are found finished.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("recipes", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    shutil.copytree(demo, tmp_path / "runs")
    for side in ("positive", "negative"):
        shutil.copytree(demo / "demo" / "adapters" / f"myopic_reward-{side}", tmp_path / "runs" / side)
    torch.save(torch.ones(192), tmp_path / "vec_layer_13_Llama-2-7b-chat-hf.pt")
    from caa.vectors.formats.gguf import write_gguf

    write_gguf(caa.SteeringVector({2: torch.ones(192)}), tmp_path / "theirs.gguf", "llama")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(not why_not(step) for step in steps(page))], ids=name)
def test_what_a_page_says_to_type_runs(page, clone):
    names = {"__name__": "page"}
    with small_world(clone / "small-data"):
        for step in steps(page):
            if not why_not(step):
                step.run(names)
    if page.name == "figures.md":
        check_figures(Path("runs/demo"))


def check_figures(run: Path) -> None:
    """The figures of a run with finetunes are there in all formats, and on the page; which: test_recipes.py."""
    pictures = sorted((run / "figures").glob("*.png"))
    assert len(pictures) > 12
    for suffix in ("svg", "csv"):
        assert sorted(path.with_suffix(f".{suffix}") for path in pictures) == sorted(run.glob(f"figures/*.{suffix}"))
    assert (run / "figures" / "tokens-myopic_reward.html").stat().st_size > 1000
    assert write_html(run).read_text(encoding="utf-8").count("<figure>") == len(pictures)


def test_what_is_not_run_is_there_and_was_not_forgotten():
    written = [step.text for page in PAGES for step in steps(page)]
    assert not [part for part in NOT_RUN if not any(part in text for text in written)], "no page says this any more"
    assert re.search(r"^demo:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).endswith("/caa demo")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_run_or_saved(page):
    fences = re.findall(r"^```(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {fence.split()[0] for fence in fences} <= {*SHELL, "python", "json"}
    assert len(list(steps(page))) >= len(fences)


# Where links lead.


def anchors(path: Path) -> set[str]:
    from markdown.extensions.toc import slugify

    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {slugify(heading, "-") for heading in headings}


@pytest.mark.parametrize("page", SOURCES, ids=name)
def test_every_link_within_the_repository_leads_somewhere(page):
    for target, anchor in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(path), f"{target} has no heading #{anchor}"


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\[`(\w+)`\]\[caa\.([\w.]+)\.\1\]", page)) == set(caa._NAMES.items())
    assert set(re.findall(r"\[`caa\.(\w+)`\]", page)) == set(caa._NAMESPACES)


def test_the_newest_benchmarks_of_each_machine_are_shown():
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    newest = {re.sub(r"-\d{4}-\d\d-\d\dT\d+$", "", path.stem): path.name for path in results}
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert not {machine: name for machine, name in newest.items() if name not in page}


# The site.


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not built.returncode, built.stderr
    return folder


@pytest.fixture
def address(site) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_no_page_asks_the_outside_for_anything(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert _OUTSIDE.search('<script async src="//cdn.example/x.js">'), "the pattern finds nothing"
    assert not {page: found for page in pages if (found := _OUTSIDE.findall(page.read_text(encoding="utf-8")))}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:], ids=name)
def test_no_other_page_stands_in_its_place(page, site):
    heading = re.search(r"^# (.*)", page.read_text(encoding="utf-8"), re.MULTILINE).group(1)
    built = site / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")
    assert f"{heading}<a" in built.read_text(encoding="utf-8")


@pytest.mark.slow
def test_examples_in_docstrings_are_code_on_the_page(site):
    pages = [page.read_text(encoding="utf-8") for page in (site / "reference").rglob("*.html")]
    assert sum(page.count('<span class="gp">&gt;&gt;&gt; </span>') for page in pages) > 50
    assert not any("<blockquote>" in page for page in pages)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_site_in_a_browser(address, scheme, width):
    with window(width, color_scheme=scheme) as opened:
        for title, path in {"home": "", "idea": "idea/", "reference": "reference/steering/"}.items():
            opened.page.goto(f"{address}/{path}", wait_until="networkidle")
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, "wider than the screen"
            broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
            assert opened.page.evaluate(broken) == []
            palette = opened.page.evaluate("document.body.dataset.mdColorScheme")
            assert palette == {"light": "default", "dark": "slate"}[scheme]
            opened.screenshot(f"site-{title}-{scheme}-{width}", whole=False)
            assert not opened.troubles


@needs_browser
@pytest.mark.slow
def test_the_search_finds_what_is_written(address):
    with window() as opened:
        opened.page.goto(address, wait_until="networkidle")
        opened.page.keyboard.press("f")
        opened.page.get_by_role("textbox", name="Search").press_sequentially("interaction")
        opened.page.get_by_text("matching documents").wait_for()
        assert opened.page.locator(".md-search-result__link").count() > 3
        assert not opened.troubles
