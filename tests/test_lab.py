"""The notebooks in JupyterLab, as a reader meets them: run from the menu, sections listed, sliders moved."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from lab import CHROMIUM, NotebookPage, open_browser, press_for_another_picture, serve_lab, write_with_parameters
from playwright.sync_api import Browser

from fetal_utils.presets import NOTEBOOK_DIR, STUDY, plan, read_preset

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]
TIMEOUT_S = 900  # of one notebook; minutes less where nothing else runs
REPORT = "06_study_report"  # reads what the others write
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


class Lab(NamedTuple):
    """A browser, the address of a JupyterLab, its folder of notebooks with small values, and that of their results."""

    browser: Browser
    address: str
    root: Path
    results: Path


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    base = tmp_path_factory.getbasetemp()
    results = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "lab_results"  # shared by workers
    root, home = (tmp_path_factory.mktemp(name) for name in ("notebooks", "jupyter"))
    write_notebooks(root, results_dir=results)
    with serve_lab(root, home) as address, open_browser() as browser:
        yield Lab(browser, address, root, results)


def write_notebooks(root: Path, *, results_dir: Path) -> None:
    """The study's notebooks with the values of the smoke preset and one task, so that they share their runs."""
    given = {"results_dir": str(results_dir), "task": "brain_planes"}
    for execution in plan(read_preset("smoke"), given):
        write_with_parameters(execution.path, root, execution.parameters)


def sections(name: str) -> list[str]:
    """Headings in the Markdown of a notebook."""
    cells = nbformat.read(NOTEBOOK_DIR / f"{name}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"(?m)^#+ (.+)$", text)


def run_in(lab: Lab, name: str) -> NotebookPage:
    """Open a notebook and run it to its end, or to its first error."""
    page = NotebookPage(lab.browser, lab.address, f"{name}.ipynb")
    page.run_all(timeout_s=TIMEOUT_S)
    return page


@pytest.fixture
def opened(lab, request) -> Iterator[NotebookPage]:
    """The notebook named by the test's parameter, run."""
    if request.param == REPORT and not any(lab.results.glob("tables/metrics.*")):  # this test runs before the others
        run_in(lab, "04_label_efficiency").close()
    page = run_in(lab, request.param)
    yield page
    page.close()


def test_a_cell_that_fails_is_found(lab):
    cells = [nbformat.v4.new_code_cell(source) for source in ("1 / 1", "1 / 0", "2 / 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), lab.root / "failing.ipynb")
    page = run_in(lab, "failing")
    assert page.errors() == ["ZeroDivisionError: division by zero"]
    page.close()


def test_every_notebook_that_has_something_to_move_is_moved():
    assert set(MOVES) == {
        name for name in STUDY if "fetal_utils.explore" in (NOTEBOOK_DIR / f"{name}.ipynb").read_text()
    }


@pytest.mark.parametrize("opened", STUDY, indirect=True)
def test_a_notebook_runs_from_the_menu_and_its_pictures_follow_what_is_moved(opened, request):
    name = request.node.callspec.params["opened"]
    assert opened.errors() == []
    headings = iter(opened.headings())  # outputs may have headings of their own
    assert [one for one in sections(name) if one not in headings] == []  # all, in their order
    if name in MOVES:
        cell, moves = MOVES[name]
        for move in moves:
            press_for_another_picture(opened.cell(cell), move)


def slide(description: str):
    """A press on the middle of a slider's track."""
    return lambda cell: cell.locator(".widget-slider", has_text=description).locator(".noUi-target").click()


def choose(description: str, option: str):
    """A choice in a drop-down list."""
    return lambda cell: cell.get_by_label(description, exact=True).select_option(option)


def push(name: str):
    """A push of a button."""
    return lambda cell: cell.get_by_role("button", name=name, exact=True).click()


MOVES = {
    "01_data_preparation": ("explorer", [push("next"), slide("row"), choose("machine", "Voluson E6")]),
    "02_simclr_pretraining": ("lab", [slide("image"), slide("strength x"), slide("draw"), choose("preset", "simclr")]),
    "04_label_efficiency": ("explorer", [push("next"), slide("row"), choose("strategy", "dual_imagenet")]),
    "05_cam_and_embeddings": ("explorer", [push("next"), slide("row"), push("previous")]),
}
