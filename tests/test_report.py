"""The page of a study: self-contained, in words too, whole or not at all; and how it looks to a browser."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from fetal_utils.report import NOTEBOOK_ONLY, show_table, write_report

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def shows(data, *, source="secret_name = 1", metadata=None, tags=()):
    output = new_output("display_data", data=data, metadata=metadata or {})
    cell = new_code_cell(source, outputs=[output], execution_count=1)
    cell.metadata["tags"] = list(tags)
    return cell


def html(text, **kwargs):
    return shows({"text/html": text, "text/plain": "an object"}, **kwargs)


def write(tmp_path, *cells, name="06.ipynb"):
    """A notebook with a title and these cells, written as the page; returns the page's path."""
    title = shows({"text/markdown": "# Is it *so*?", "text/plain": "-"})
    path = tmp_path / name
    nbformat.write(new_notebook(cells=[title, *cells]), path)
    return write_report(path, tmp_path / "results" / "report.html")


def text_of(path):
    return path.read_text(encoding="utf-8")


def test_the_page_holds_texts_and_outputs_and_neither_code_nor_printed_lines_nor_what_is_for_the_notebook(tmp_path):
    printing = new_code_cell("print(1)", execution_count=2)
    printing.outputs = [new_output("stream", name="stderr", text="a warning"), new_output("stream", text="a line")]
    exercises = new_markdown_cell("## Exercises")
    exercises.metadata["tags"] = [NOTEBOOK_ONLY]
    only = html("<p>for the notebook</p>", tags=[NOTEBOOK_ONLY])
    link = html('<p>seen <a href="https://doi.org/10.1016/j">paper</a></p>')
    page = text_of(write(tmp_path, new_markdown_cell("Some *words*."), link, printing, exercises, only))
    assert "Some <em>words</em>." in page
    assert '<p>seen <a href="https://doi.org/10.1016/j"' in page
    for absent in ("secret_name", "a warning", "a line", "Exercises", "for the notebook", "an object", "In&nbsp;["):
        assert absent not in page


def test_the_contents_lead_to_every_section_in_order(tmp_path):
    texts = map(new_markdown_cell, ["## The data\n\n### Not listed", "## What, *now*?"])
    page = text_of(write(tmp_path, *texts))
    listed = re.findall(r'<li><a href="#([^"]+)">(.*?)</a></li>', page)
    assert listed == [("the-data", "The data"), ("what-now", "What, <em>now</em>?")]
    assert all(f'id="{place}"' in page for place, _ in listed)
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')


def test_a_picture_with_words_is_embedded(tmp_path):
    alt = "a gray dot & nothing else"
    page = text_of(write(tmp_path, shows({"image/png": PIXEL}, metadata={"image/png": {"alt": alt}})))
    assert f'src="data:image/png;base64,{PIXEL}"' in page
    assert 'alt="a gray dot &amp; nothing else"' in page


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        (shows({"image/png": PIXEL}), "without alternative text, or not embedded: 1"),
        (html(f'<img src="data:image/png;base64,{PIXEL}" alt=" ">'), "without alternative text, or not embedded: 1"),
        (html('<img src="https://example.org/a.png" alt="a">'), "not embedded: 1"),
        (html('<img src="figures/04.png" alt="a">'), "not embedded: 1"),
        (html("<h1>A second title</h1>"), "A second title"),
    ],
)
def test_a_picture_without_words_or_from_elsewhere_and_a_second_title_are_refused(cell, named, tmp_path):
    with pytest.raises(ValueError, match=re.escape(named)):
        write(tmp_path, cell)
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<svg onload=alert(1)></svg>",
        "<p onmouseover='alert(1)'>a</p>",
        "<a href='javascript:alert(1)'>a</a>",
        "<a href='data:text/html,alert(1)'>a</a>",
        "<form action='https://alert.example'><input></form>",
        "<iframe srcdoc='alert(1)'></iframe>",
        "<link rel='stylesheet' href='https://alert.example/a.css'>",
        "<style>@import 'https://alert.example/a.css';</style>",
        "<p style=\"background: url('//alert.example/a.png')\">a</p>",
    ],
)
@pytest.mark.parametrize("kind", ["output", "markdown"])
def test_what_would_run_or_be_fetched_is_not_on_the_page(kind, text, tmp_path):
    cell = html(text) if kind == "output" else new_markdown_cell(text)
    assert "alert" not in text_of(write(tmp_path, cell))


def test_names_in_a_table_are_text_and_a_verdict_has_its_colour(tmp_path):
    table = pd.DataFrame({"name": ["<b>x</b>"], "verdict": ["advantage +0.05"], "f1": [0.51234]}, index=["<i>y</i>"])
    page = text_of(write(tmp_path, html(show_table(table, "A & B").to_html())))
    assert "&lt;b&gt;x" in page and "&lt;i&gt;y" in page and "0.512" in page
    assert re.search(r'<td[^>]*class="[^"]*\badvantage"', page)


def test_a_page_that_can_not_be_made_leaves_the_earlier_one(tmp_path):
    path = write(tmp_path, html("<p>first</p>"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="alternative text"):
        write(tmp_path, shows({"image/png": PIXEL}))
    assert path.read_bytes() == before
    write(tmp_path, html("<p>second</p>"))
    assert "second" in text_of(path)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_notebook_that_failed_or_was_not_run_is_refused(tmp_path):
    failed = new_code_cell("1 / 0", execution_count=1, id="division")
    failed.outputs = [new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])]
    with pytest.raises(ValueError, match="failed in cell 'division'"):
        write(tmp_path, failed)
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "raw.ipynb")
    with pytest.raises(ValueError, match="was it executed"):
        write_report(tmp_path / "raw.ipynb", tmp_path / "report.html")
    assert not list(tmp_path.rglob("*.html"))


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is absent (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def wide_page(tmp_path_factory):
    """A page with what is widest: a table of many columns, a long code, a pair of pictures, a loud notice."""
    wide = pd.DataFrame([["0.5 [0.10, 0.90]"] * 30], columns=[f"column {place}" for place in range(30)])
    image = f'<img src="data:image/png;base64,{PIXEL}" alt="a dot">'
    notice = new_markdown_cell("> **This is about a phantom.**")
    code = new_markdown_cell(f"## A section\n\n`{'x' * 200}`")
    table = html(show_table(wide, "wide").to_html())
    return write(tmp_path_factory.mktemp("page"), notice, code, table, html(image + image))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_finds_nothing_to_fetch_or_to_complain_of_and_no_sideways_scrolling(
    browser, wide_page, width, scheme
):
    requests, complaints = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(wide_page.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [wide_page.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert shown == [True, True]
    colours = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    paper, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) / (3 * 255) for colour in colours)
    assert (paper - ink if scheme == "light" else ink - paper) > 0.7
    page.close()
