"""The exercises of the notebooks: answers in code do what they say."""

import os

import pytest
from notebook_cells import python_answers, run_code, run_notebook

from fetal_utils.plans import list_notebooks, plan, read_preset

# 90 stands beside the study, and 06 and later ones report what these have made
NOTEBOOKS = [name for name in list_notebooks() if name[:2] in ("01", "02", "03", "04", "05")]


@pytest.fixture(scope="session")
def results_dir(tmp_path_factory):
    """One results folder for all workers of a test run: what one of them has computed, the others find."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exercises"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_answers_in_code_run_after_the_notebook(name, results_dir):
    answers = python_answers(name)
    assert len(answers) >= 3
    execution = plan(read_preset("smoke"), {"results_dir": str(results_dir)}, only=name)[-1]
    names = run_notebook(execution)
    for number, answer in enumerate(answers, 1):
        run_code(answer, names, place=f"{name}, answer {number} in code")
