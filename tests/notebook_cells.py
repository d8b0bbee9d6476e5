"""Notebooks executed cell by cell in the process of a test: no kernel to start, and no library to import again."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat


def read_cells(path: Path) -> list:
    """The cells of a notebook."""
    return nbformat.read(path, as_version=4).cells


def markdown(path: Path) -> str:
    """All text of a notebook."""
    return "\n".join(cell.source for cell in read_cells(path) if cell.cell_type == "markdown")


def python_answers(path: Path) -> list[str]:
    """The fenced Python of the folded answers to a notebook's exercises, in order."""
    folded = re.findall(r"<details>(.*?)</details>", markdown(path).split("## Exercises")[1], flags=re.DOTALL)
    fences = r"^ *```python\n(.*?)^ *```$"
    return [textwrap.dedent(code) for answer in folded for code in re.findall(fences, answer, re.DOTALL | re.MULTILINE)]


def run_notebook(path: Path, parameters: dict) -> dict[str, object]:
    """Execute all code cells with these parameters; the names they leave."""
    matplotlib.use("Agg")
    names: dict[str, object] = {}
    for cell in read_cells(path):
        if cell.cell_type == "code":
            run_code(cell.source, names, place=f"{path.stem}, cell {cell.id}")
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters
    return names


def run_code(source: str, names: dict[str, object], *, place: str) -> None:
    """Execute one cell among these names; an error of it names the place."""
    exec(compile(source, place, "exec"), names)
    plt.close("all")
