"""Notebooks executed cell by cell in the process of a test: no kernel to start, and no library to import again."""

from __future__ import annotations

import re
import textwrap

import matplotlib
import matplotlib.pyplot as plt
import nbformat

from fetal_utils.plans import Execution, notebook_path


def read_cells(name: str) -> list:
    """The cells of a notebook."""
    return nbformat.read(notebook_path(name), as_version=4).cells


def python_answers(name: str) -> list[str]:
    """The fenced Python of the folded answers to a notebook's exercises, in order."""
    (exercises,) = [cell.source for cell in read_cells(name) if cell.id == "exercises"]
    folded = re.findall(r"<details>(.*?)</details>", exercises, flags=re.DOTALL)
    return [
        textwrap.dedent(code)
        for answer in folded
        for code in re.findall(r"^ *```python\n(.*?)^ *```$", answer, re.DOTALL | re.MULTILINE)
    ]


def run_notebook(execution: Execution) -> dict[str, object]:
    """Execute all code cells with the execution's parameters; the names they leave."""
    matplotlib.use("Agg")
    names: dict[str, object] = {}
    for cell in read_cells(execution.notebook):
        if cell.cell_type == "code":
            run_code(cell.source, names, place=f"{execution.notebook}, cell {cell.id}")
        if "parameters" in cell.metadata.get("tags", []):
            names |= execution.parameters
    return names


def run_code(source: str, names: dict[str, object], *, place: str) -> None:
    """Execute one cell among these names; an error of it names the place."""
    exec(compile(source, place, "exec"), names)
    plt.close("all")
