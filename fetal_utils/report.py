"""The page of a study: what the executed notebook 06 shows, as one file that opens without a network."""

import re
from importlib import resources
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import nbformat
import nh3
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pandas.io.formats.style import Styler

from fetal_utils.environment import replace_file

NOTEBOOK_ONLY = "notebook-only"  # tag of cells that a reader of the page has no use for, such as exercises
ATTRIBUTES = nh3.ALLOWED_ATTRIBUTES | {"*": {"class", "id", "title"}}
NO_WORDS = ("", "No description has been provided for this image")  # the latter by nbconvert


def write_report(executed_notebook: str | Path, html: str | Path) -> Path:
    """Write the outputs and texts of an executed notebook as one page, whole or not at all; the file written.

    Code, printed lines and cells tagged `NOTEBOOK_ONLY` are left out. Names of data sets, tasks and strategies come
    from users' files, so the body passes a sanitiser: no script, form, event handler or frame is left, links lead to
    ``https:`` or a place on the page, and pictures are embedded.

    Raises
    ------
    ValueError
        If a cell failed, there is no title (say, as no cell was executed) or several, or a picture has no alternative
        text.
    """
    executed_notebook, html = Path(executed_notebook), Path(html)
    notebook = nbformat.read(executed_notebook, as_version=4)
    outputs = [(cell.id, output) for cell in notebook.cells for output in cell.get("outputs", [])]
    if failed := [cell_id for cell_id, output in outputs if output.output_type == "error"]:
        raise ValueError(f"{executed_notebook.name} failed in cell {failed[0]!r}; run it again")
    page = fill_page(sanitise(render_body(notebook)), name=executed_notebook.name)
    html.parent.mkdir(parents=True, exist_ok=True)
    replace_file(html, lambda beside: beside.write_text(page, encoding="utf-8"))
    return html


def show_figure(figure: Figure, words: str) -> None:
    """Display a figure with an alternative text, which the page needs, and close it."""
    display(figure, metadata={"image/png": {"alt": words}})
    plt.close(figure)


def show_table(table: pd.DataFrame, caption: str, *, precision: int = 3) -> Styler:
    """A table with a caption, its text escaped; a cell that begins with a verdict's name has that as its class.

    ``precision`` counts digits after the point; a missing number is shown as a dash.
    """
    classes = table.map(class_of)
    styler = table.style.format(precision=precision, escape="html", na_rep="\N{EN DASH}")
    return styler.format_index(escape="html").set_caption(caption).set_td_classes(classes)


def class_of(cell: object) -> str:
    """The class by which the page's style knows a cell."""
    if not isinstance(cell, str):
        return ""
    return cell.split(" ")[0] if cell.startswith(("advantage", "disadvantage")) else "text"


def render_body(notebook: NotebookNode) -> str:
    """Texts and outputs as HTML, without code and printed lines."""
    notebook.cells = [cell for cell in notebook.cells if NOTEBOOK_ONLY not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    hidden = {"exclude_input": True, "exclude_input_prompt": True, "exclude_output_prompt": True}
    # "basic" is a fragment: the other templates load scripts and fonts from elsewhere
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True, **hidden)
    return exporter.from_notebook_node(notebook)[0]


def sanitise(body: str) -> str:
    """HTML without anything that runs or that a browser would fetch."""

    def keep(tag: str, attribute: str, value: str) -> str | None:
        if attribute == "src":
            return value if value.startswith("data:image/") else None
        if attribute == "href":
            return value if value.startswith(("https:", "#")) else None
        return value

    kept = {"attributes": ATTRIBUTES, "attribute_filter": keep, "url_schemes": {"https", "data"}}
    return nh3.clean(body, clean_content_tags={"script", "style"}, **kept)


def fill_page(body: str, *, name: str) -> str:
    """The page around the body: title, style, list of contents; ValueError as of `write_report`."""
    titles = re.findall(r"<h1[^>]*>(.*?)</h1>", body)
    if len(titles) != 1:
        raise ValueError(f"{name} shows the titles {titles}: expected one; if there is none, was it executed?")
    words = {tag: "".join(re.findall(r'alt="([^"]*)"', tag)).strip() for tag in re.findall(r"<img[^>]*>", body)}
    wordless = [tag for tag, alt in words.items() if alt in NO_WORDS or 'src="' not in tag]
    if wordless:
        raise ValueError(
            f"{name}: pictures without alternative text, or not embedded: {len(wordless)}, the first "
            f"{wordless[0][:60]!r}; show figures by `report.show_figure`, which takes the words"
        )
    sections = re.findall(r"<h2[^>]*>(.*?)</h2>", body)
    for section in sections:
        body = re.sub(rf"<h2[^>]*>{re.escape(section)}</h2>", f'<h2 id="{anchor(section)}">{section}</h2>', body)
    files = resources.files("fetal_utils")
    return Template((files / "report.html").read_text(encoding="utf-8")).substitute(
        title=re.sub(r"<[^>]+>", "", titles[0]),
        style=(files / "report.css").read_text(encoding="utf-8"),
        contents="\n".join(f'<li><a href="#{anchor(section)}">{section}</a></li>' for section in sections),
        body=body,
    )


def anchor(heading: str) -> str:
    """A heading as the name of a place on the page."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"<[^>]+>", "", heading).lower()).strip("-")
