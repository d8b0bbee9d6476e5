"""The page of a study: what the executed notebook 06 shows, as one file that opens without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from string import Template

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from fetal_utils.files import replace_file

NOTEBOOK_ONLY = "notebook-only"  # tag of cells that a reader of the page has no use for, such as exercises
FORBIDDEN = frozenset({"script", "link", "iframe", "object", "embed", "base"})
ADDRESSES = frozenset({"src", "srcset", "poster", "data", "background"})  # attributes that a browser fetches
NO_WORDS = ("", "No description has been provided for this image")  # the latter by nbconvert
FETCHED_BY_STYLE = re.compile(r"@import[^;]*|url\((?!\s*['\"]?\s*(?:data:|#))[^)]*\)", re.IGNORECASE)


def write_report(executed_notebook: str | Path, html: str | Path) -> Path:
    """Write the outputs and texts of an executed notebook as one page, whole or not at all.

    Parameters
    ----------
    executed_notebook : path
        Executed to its end. Code, printed lines and cells tagged `NOTEBOOK_ONLY` are left out.
    html : path
        The file to make or replace.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook.
    ValueError
        If it has not been executed or a cell failed, it has no title, a picture has no alternative text, or the page
        would fetch anything or run a script.
    """
    executed_notebook, html = Path(executed_notebook), Path(html)
    if not executed_notebook.exists():
        raise FileNotFoundError(f"{executed_notebook} is missing: execute notebook 06_study_report first")
    notebook = nbformat.read(executed_notebook, as_version=4)
    check_executed(notebook, executed_notebook.name)
    page = fill_page(render_body(notebook), name=executed_notebook.name)
    html.parent.mkdir(parents=True, exist_ok=True)
    replace_file(html, lambda beside: beside.write_text(page, encoding="utf-8"))
    return html


def check_executed(notebook: NotebookNode, name: str) -> None:
    """Raise a ValueError for a notebook of which a cell failed or none has run."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                raise ValueError(
                    f"{name} failed in cell {cell.id!r} with {output.ename}: {output.evalue}; run it again"
                )
    if all(cell.execution_count is None for cell in cells):
        raise ValueError(f"{name} has not been executed: run `python -m fetal_utils.study --only 06`")


def render_body(notebook: NotebookNode) -> str:
    """Texts and outputs as HTML, without code."""
    kept = nbformat.from_dict(notebook)
    kept.cells = [cell for cell in kept.cells if NOTEBOOK_ONLY not in cell.metadata.get("tags", [])]
    for cell in kept.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    exporter = HTMLExporter(
        template_name="basic",  # a fragment: the others load scripts and fonts from elsewhere
        exclude_input=True,
        exclude_output_prompt=True,
        exclude_input_prompt=True,
        exclude_anchor_links=True,
    )
    body, _ = exporter.from_notebook_node(kept)
    return body


def fill_page(body: str, *, name: str) -> str:
    """The page around the body: title, style, list of contents; checked."""
    titles = re.findall(r"<h1>(.*?)</h1>", body)
    if len(titles) != 1:
        raise ValueError(f"{name} shows the titles {titles}: expected one heading of the first level")
    sections = re.findall(r"<h2>(.*?)</h2>", body)
    for section in sections:
        body = body.replace(f"<h2>{section}</h2>", f'<h2 id="{anchor(section)}">{section}</h2>')
    contents = "\n".join(f'<li><a href="#{anchor(section)}">{section}</a></li>' for section in sections)
    templates = resources.files("fetal_utils") / "templates"
    page = Template((templates / "report.html").read_text(encoding="utf-8")).substitute(
        title=titles[0],
        style=(templates / "report.css").read_text(encoding="utf-8"),
        contents=contents,
        body=body,
    )
    check_page(page, name=name)
    return page


def anchor(heading: str) -> str:
    """A heading as the name of a place on the page."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def check_page(page: str, *, name: str) -> None:
    """Raise a ValueError for a page that fetches something, runs something, or has a picture without words."""
    read = PageReader.of(page)
    if read.wordless:
        raise ValueError(
            f"{name}: pictures without alternative text: {len(read.wordless)}, the first {read.wordless[0][:60]!r}; "
            "give each an `alt`"
        )
    if read.forbidden or read.fetched:
        found = [*(f"<{tag}>" for tag in read.forbidden), *read.fetched]
        raise ValueError(
            f"{name}: the page is not self-contained, it holds {found[:5]}; embed them as data or leave them out"
        )


class PageReader(HTMLParser):
    """What a page holds that matters here.

    Attributes
    ----------
    wordless : list of str
        Sources of pictures without alternative text.
    fetched : list of str
        What a browser would fetch from elsewhere.
    forbidden : list of str
        Tags of `FORBIDDEN`.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.wordless: list[str] = []
        self.fetched: list[str] = []
        self.forbidden: list[str] = []
        self.in_style = False

    @classmethod
    def of(cls, page: str) -> PageReader:
        """A page that was read to its end."""
        reader = cls()
        reader.feed(page)
        reader.close()
        return reader

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at a tag and what it would fetch."""
        values = {name: value or "" for name, value in attrs}
        if tag in FORBIDDEN:
            self.forbidden.append(tag)
        if tag == "img" and values.get("alt", "").strip() in NO_WORDS:
            self.wordless.append(values.get("src", ""))
        addresses = [values[name] for name in ADDRESSES & set(values)]
        self.fetched += [address[:80] for address in addresses if not address.startswith("data:")]
        self.fetched += FETCHED_BY_STYLE.findall(values.get("style", ""))
        self.in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        """Look at what a style would fetch."""
        if self.in_style:
            self.fetched += FETCHED_BY_STYLE.findall(data)
