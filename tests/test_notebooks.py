"""The notebooks: their form, their exercises, and that they run, on the phantom and on the real images."""

import ast
import os
import re
import sys

import pandas as pd
import pytest
from notebook_cells import markdown, python_answers, read_cells, run_code, run_notebook

from fetal_utils.presets import BESIDE, NOTEBOOK_DIR, STUDY, plan, read_parameters, read_preset
from fetal_utils.strategies import STRATEGIES
from fetal_utils.study import main

NOTEBOOKS = [NOTEBOOK_DIR / f"{name}.ipynb" for name in (*STUDY, *BESIDE)]
LESSONS = NOTEBOOKS[:5]  # 06 reports what these have made, 90 stands beside the study
SHARED = {"data_dir": "", "results_dir": "results/demo", "phantom_patients": 120}
LIGHT = {"torch", "timm", "kornia", "numpy", "pandas", "sklearn", "fetal_utils", *sys.stdlib_module_names}
PHANTOM = "about a **phantom**"


def code(path, *tags):
    """Sources of a notebook's code cells, of all or of those with one of these tags."""
    cells = [cell for cell in read_cells(path) if cell.cell_type == "code"]
    return [c.source for c in cells if not tags or {*tags} & {*c.metadata.get("tags", [])}]


def imported(source):
    """Modules that a source imports; of `fetal_utils` the module's own name."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "fetal_utils":
            yield from (f"fetal_utils.{name.name}" for name in node.names)
        else:
            yield from [node.module] if isinstance(node, ast.ImportFrom) else (name.name for name in node.names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_the_title_has_the_number_of_the_file(self, path):
        assert read_cells(path)[0].source.startswith(f"# {path.stem[:2]} · ")

    def test_the_first_cell_that_runs_is_the_only_parameters_cell_and_holds_typed_literals_with_a_comment(self, path):
        (cell,) = code(path, "parameters")
        assert code(path)[0] == cell
        for line in cell.splitlines():
            assert re.fullmatch(r"[a-z_]+: [\w\[\], ]+ = [^#]+  # [^=|]+", line), line
            ast.literal_eval(line.split(" = ")[1].split("  #")[0])

    def test_shared_parameters_have_the_same_default_everywhere(self, path):
        names = ["results_dir"] if path.stem.startswith("06") else SHARED  # the report reads tables only
        assert {name: read_parameters(path)[0][name] for name in names} == {name: SHARED[name] for name in names}

    def test_every_parameter_is_read(self, path):
        rest = "\n".join(source for source in code(path) if source not in code(path, "parameters"))
        assert [name for name in read_parameters(path)[0] if not re.search(rf"\b{name}\b", rest)] == []

    def test_it_says_what_was_seen_and_has_exercises_with_folded_answers(self, path):
        assert "## What we saw" in markdown(path)
        exercises = markdown(path).split("## Exercises")[1]
        assert 3 <= len(re.findall(r"(?m)^\d\. ", exercises)) == exercises.count("<details>") <= 6

    def test_it_carries_no_outputs_and_ids_are_names(self, path):
        cells = read_cells(path)
        assert all(not c.outputs and c.execution_count is None for c in cells if c.cell_type == "code")
        assert all(re.fullmatch(r"[a-z][a-z0-9-]*", cell.id) for cell in cells)
        assert len({cell.id for cell in cells}) == len(cells)

    def test_code_cells_are_short(self, path):
        lengths = sorted(len(source.splitlines()) for source in code(path))
        assert lengths[len(lengths) // 2] <= 15
        assert sum(length > 20 for length in lengths) <= (
            4 if len(code(path, "parameters")[0].splitlines()) > 20 else 3
        )

    def test_it_imports_from_at_most_twelve_modules_of_the_helper(self, path):
        modules = {name for source in code(path) for name in imported(source) if name.startswith("fetal_utils.")}
        assert 1 <= len(modules) <= 12

    def test_what_leads_to_the_runs_needs_no_more_than_the_runs_themselves(self, path):
        sources = code(path, "imports", "setup", "wanted")
        assert {name.split(".")[0] for source in sources for name in imported(source)} <= LIGHT


def test_the_lesson_stands_on_the_page():
    shown = {path.stem[:2]: "\n".join(code(path)) for path in NOTEBOOKS}
    assert "split_by_patient" in shown["01"] and "draw_labelled_subset" in shown["01"]
    for lesson in ("02", "03"):
        assert ".backward()" in shown[lesson] and "optimizer.step()" in shown[lesson]
    assert "LogisticRegression(" in shown["02"]
    for call in ("GradCAM(", "TSNE(", "UMAP("):
        assert call in shown["05"]


def test_the_code_of_the_study_s_notebooks_does_not_grow():
    assert sum(len(source.splitlines()) for path in NOTEBOOKS[:6] for source in code(path)) <= 1510


# --- exercises ---


@pytest.fixture(scope="session")
def exercise_dir(tmp_path_factory):
    """One results folder for all workers of a test run: what one of them has computed, the others find."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exercises"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_answers_in_code_run_after_the_notebook(path, exercise_dir):
    answers = python_answers(path)
    assert len(answers) >= 2
    execution = plan(read_preset("smoke"), {"results_dir": str(exercise_dir)}, only=path.stem)[-1]
    names = run_notebook(path, execution.parameters)
    for number, answer in enumerate(answers, 1):
        run_code(answer, names, place=f"{path.stem}, answer {number} in code")


# --- the study ---


def run_smoke(results_dir, *arguments):
    """The smoke preset; what the notebooks put out as one text, and a reader of its tables."""
    status = main(["--preset", "smoke", "--results-dir", str(results_dir), *arguments])
    executed = sorted((results_dir / "notebooks").glob("*.ipynb"))
    text = "\n".join(
        str(output) for path in executed for cell in read_cells(path) for output in cell.get("outputs", [])
    )
    assert status == 0, text[-3000:]
    return text, lambda name: pd.read_csv(results_dir / f"{name}.csv")


def records(results_dir):
    """When each run was finished."""
    return {path: path.stat().st_mtime_ns for path in (results_dir / "runs").rglob("record.json")}


def test_the_study_runs_on_the_phantom_and_a_second_call_computes_nothing(tmp_path):
    text, table = run_smoke(tmp_path)
    assert PHANTOM in text
    metrics = table("metrics")
    assert set(metrics["task"]) == {"planes", "brain_planes"}
    assert set(metrics["strategy"]) == set(STRATEGIES)
    assert set(metrics["protocol"]) == {"linear_probe", "fine_tune"}
    for name in ("comparisons", "claim", "label_efficiency", "equivalence", "cam_scores", "embedding_scores", "runs"):
        assert set(table(name)["data_key"]) == set(metrics["data_key"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "about a <strong>phantom</strong>" in page
    made = records(tmp_path)
    run_smoke(tmp_path, "--only", "04")
    assert records(tmp_path) == made
    pd.testing.assert_frame_equal(metrics, table("metrics"))


def test_the_study_runs_on_the_few_real_images_of_all_classes(tmp_path, real_data):
    text, table = run_smoke(tmp_path, "--data-dir", str(real_data / "fetal_planes_sample"))
    assert set(table("metrics")["task"]) == {"planes", "brain_planes"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert PHANTOM not in text and "<strong>phantom" not in page
    assert "Not a medical device" in page


def test_claim_and_curves_stand_on_more_real_images_which_lack_two_classes(tmp_path, real_data):
    text, table = run_smoke(tmp_path, "--data-dir", str(real_data / "fetal_planes_native"), "--only", "04")
    assert "Maternal cervix" in text
    planes = set(table("metrics").query("task == 'planes'")["plane"])
    assert planes == {"macro", "Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax"}
    assert set(table("claim")["strategy"]) == {"simclr_imagenet", "dual_imagenet"}


def test_the_performance_notebook_runs_when_named_and_leaves_its_table_but_no_run(tmp_path):
    assert main(["--preset", "smoke", "--only", "90", "--results-dir", str(tmp_path)]) == 0
    assert (tmp_path / "performance.csv").exists()
    assert not (tmp_path / "runs").exists()


# --- lesson plans ---

PLANS, GLOSSARY = ((NOTEBOOK_DIR / name).read_text(encoding="utf-8") for name in ("README.md", "glossary.md"))


@pytest.mark.parametrize(("title", "minutes"), [("Two hours", 120), ("Half a day", 240)])
def test_the_minutes_of_a_lesson_add_up_and_its_sections_are_in_the_notebooks(title, minutes):
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PLANS, re.DOTALL | re.MULTILINE)
    rows = [line.strip("|").split("|") for line in section.splitlines() if re.match(r"\| \d", line)]
    assert sum(int(row[0]) for row in rows) == minutes
    for _, link, sections, *_ in rows:
        for notebook in re.findall(r"\((\w+)\.ipynb\)", link):
            headings = re.findall(r"(?m)^#+ (.+)$", markdown(NOTEBOOK_DIR / f"{notebook}.ipynb"))
            assert [name for name in re.findall(r"\*([^*]+)\*", sections) if name not in headings] == []


@pytest.mark.parametrize("text", [PLANS, GLOSSARY], ids=["plans", "glossary"])
def test_links_lead_somewhere(text):
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (NOTEBOOK_DIR / link).exists()] == []
