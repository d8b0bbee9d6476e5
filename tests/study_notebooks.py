"""Tiny notebooks under the names of the study's, for tests of its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat

TESTS = Path(__file__).parent
PARAMETERS = """
data_dir: str = ""
results_dir: str = "results/toy"
scheduler: str = ""
backbone: str = "small"  # a network
task: str = "planes"
terms: list[int] = [1, 2]  # of the sums
lr: float = 0.1
blank: bool = False
image_width: int = 2 * 8
"""
IMPORTS = "from toy_runs import Sum, toy_store"
SETUP = """
if lr <= 0:
    raise ValueError(f"lr={lr}: expected more than 0")
store = toy_store(results_dir)
"""
WANTED = "wanted = [Sum(term=term) for term in terms]"
GET = "print([run.record['facts']['total'] for run in store.get(wanted)])"
# the command as typed, on the notebooks of another folder
COMMAND = """
import sys
from pathlib import Path
from fetal_utils import study
status = study.main(sys.argv[2:], notebook_dir=Path(sys.argv[1]))
print("loaded:", *sorted({name.split(".")[0] for name in sys.modules} & set(
    "papermill nbconvert nbformat IPython ipywidgets ipykernel distributed dask".split())))
sys.exit(status)
"""


def write_notebook(path: Path, *sources: str, tagged: bool = True, parameters: str = PARAMETERS) -> Path:
    """A notebook with parameters; ``tagged``: with the cells that lead to wanted runs; then a cell for each source."""
    named = {"parameters": parameters}
    if tagged:
        named |= {"imports": IMPORTS, "setup": SETUP, "wanted": WANTED}
    cells = [nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}) for tag, source in named.items() if source]
    notebook = nbformat.v4.new_notebook(cells=[*cells, *map(nbformat.v4.new_code_cell, sources)])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def start_command(notebooks: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """The command in a process of its own, its output as text."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(notebooks), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs_of(path: Path) -> str:
    """All text that the cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
