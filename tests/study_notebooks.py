"""Tiny notebooks for tests of the study's command, and the command on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat

# the command as typed, on the notebooks of another folder
COMMAND = """
import sys
from pathlib import Path
from fetal_utils import plans, study
plans.NOTEBOOK_DIR = Path(sys.argv[1])
sys.exit(study.main(sys.argv[2:]))
"""


def write_notebook(path: Path, *sources: str, parameters: str = "x: int = 1") -> Path:
    """A notebook with the parameters that every notebook has, further ones, and a cell ``cell-1``, ... per source."""
    first = nbformat.v4.new_code_cell(f'data_dir: str = ""\nresults_dir: str = ""\n{parameters}', id="parameters")
    first.metadata["tags"] = ["parameters"]
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{k}") for k, source in enumerate(sources, start=1)]
    notebook = nbformat.v4.new_notebook(cells=[first, *cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def start_command(notebooks: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen:
    """The command in a process of its own, its output as text."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(notebooks), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs_of(path: Path) -> str:
    """All text that the cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
