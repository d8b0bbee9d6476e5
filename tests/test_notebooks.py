"""The notebooks: their form, and that they run, on the phantom and on the real images."""

import ast
import re

import nbformat
import pandas as pd
import pytest

from fetal_utils.benchmarks import PERFORMANCE_COLUMNS
from fetal_utils.dataset import PHANTOM_PATIENTS
from fetal_utils.plans import NOTEBOOK_DIR
from fetal_utils.report import write_report
from fetal_utils.scaling import SCALING_COLUMNS
from fetal_utils.strategies import STRATEGIES
from fetal_utils.study import main
from fetal_utils.tables import COMPARISONS_COLUMNS, METRICS_COLUMNS

NOTEBOOKS = sorted(NOTEBOOK_DIR.glob("*.ipynb"))
# names that mean the same in every notebook (01 shows images only, so it needs no network input's device)
SHARED = {"data_dir": "", "results_dir": "results/demo", "phantom_patients": PHANTOM_PATIENTS}


PHANTOM_NOTICE = "All of this is about a **phantom**"


def read(path):
    return nbformat.read(path, as_version=4)


def parameters_cell(path):
    (cell,) = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_the_title_has_the_number_of_the_file(self, path):
        number = path.stem[:2]
        assert read(path).cells[0].source.startswith(f"# {number} · ")

    def test_the_first_cell_that_runs_is_the_only_parameters_cell(self, path):
        first = next(cell for cell in read(path).cells if cell.cell_type == "code")
        assert first == parameters_cell(path)

    def test_parameters_are_typed_literals_with_a_comment_that_papermill_shows(self, path):
        for line in parameters_cell(path).source.splitlines():
            assert re.fullmatch(r"[a-z_]+: [\w\[\]]+ = [^#]+  # [^=|]+", line), line
            ast.literal_eval(line.split(" = ")[1].split("  #")[0])

    def test_shared_parameters_have_the_same_default_everywhere(self, path):
        values = {
            statement.target.id: ast.literal_eval(statement.value)
            for statement in ast.parse(parameters_cell(path).source).body
        }
        names = ["results_dir"] if path.stem == "06_study_report" else SHARED  # the report reads tables only
        assert {name: values[name] for name in names} == {name: SHARED[name] for name in names}

    def test_every_parameter_is_read(self, path):
        names = re.findall(r"(?m)^([a-z_]+): ", parameters_cell(path).source)
        cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
        rest = "\n".join(cell.source for cell in cells if "parameters" not in cell.metadata.get("tags", []))
        assert [name for name in names if not re.search(rf"\b{name}\b", rest)] == []

    def test_imports_stand_in_one_cell(self, path):
        cells = [c.source for c in read(path).cells if c.cell_type == "code"]
        assert sum(bool(re.search(r"(?m)^(import|from) ", source)) for source in cells) == 1

    def test_it_says_what_was_seen_and_has_exercises_with_folded_answers(self, path):
        text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
        assert "## What we saw" in text
        exercises = text.split("## Exercises")[1]
        assert 3 <= len(re.findall(r"(?m)^\d\. ", exercises)) == exercises.count("<details>") <= 5

    def test_it_carries_no_outputs(self, path):
        cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in cells)

    def test_code_cells_are_short_and_ids_are_names(self, path):
        cells = read(path).cells
        lengths = sorted(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code")
        assert lengths[len(lengths) // 2] <= 15
        assert all(re.fullmatch(r"[a-z][a-z0-9-]*", cell.id) for cell in cells)
        assert len({cell.id for cell in cells}) == len(cells)


def run_smoke(results_dir, *arguments):
    """The smoke preset; what the notebooks put out as one text, metrics and comparisons."""
    status = main(["--preset", "smoke", "--results-dir", str(results_dir), *arguments])
    cells = [cell for path in sorted((results_dir / "notebooks").glob("*.ipynb")) for cell in read(path).cells]
    text = "\n".join(str(output) for cell in cells for output in cell.get("outputs", []))
    assert status == 0, text[-3000:]
    return text, pd.read_csv(results_dir / "metrics.csv"), pd.read_csv(results_dir / "comparisons.csv")


def page_of(results_dir):
    """The report that the executed notebook 06 becomes."""
    executed = results_dir / "notebooks" / "06_study_report.ipynb"
    return write_report(executed, results_dir / "page.html").read_text(encoding="utf-8")


def count_by_dry_run(results_dir, capsys):
    """What ``--dry-run`` says of the smoke preset: how many runs there are, and how many are finished."""
    assert main(["--preset", "smoke", "--results-dir", str(results_dir), "--dry-run"]) == 0
    return tuple(map(int, re.search(r"(\d+) runs, (\d+) of them finished", capsys.readouterr().out).groups()))


def test_the_study_runs_on_the_phantom_and_a_second_call_computes_nothing(tmp_path, capsys):
    n_runs, n_done = count_by_dry_run(tmp_path, capsys)
    assert (n_done, (tmp_path / "runs").exists()) == (0, False)
    text, metrics, comparisons = run_smoke(tmp_path)
    assert PHANTOM_NOTICE in text
    assert tuple(metrics.columns) == METRICS_COLUMNS
    assert tuple(comparisons.columns) == COMPARISONS_COLUMNS
    assert set(metrics["task"]) == {"planes", "brain_planes"}
    assert set(metrics["strategy"]) == set(STRATEGIES)
    assert set(metrics["protocol"]) == {"linear_probe", "fine_tune"}
    page = page_of(tmp_path)
    assert "This is about a phantom" in page
    assert "Phantom images" in page  # the panels of 05
    assert "Missing: CAM scores of planes." in page  # 05 looks into one task here
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    assert len(records) == n_runs
    assert count_by_dry_run(tmp_path, capsys) == (n_runs, n_runs)
    _, again, _ = run_smoke(tmp_path, "--from", "04")  # 01 to 03 would read the same runs once more
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")} == records
    pd.testing.assert_frame_equal(metrics, again)


def test_the_study_runs_on_real_images_and_names_the_classes_they_lack(tmp_path, real_data):
    text, metrics, _ = run_smoke(tmp_path, "--data-dir", str(real_data / "fetal_planes_subset"))
    assert "Maternal cervix, Other absent from this data set" in text
    assert PHANTOM_NOTICE not in text
    page = page_of(tmp_path)
    assert "Not a medical device" in page
    assert "phantom</p>" not in page
    assert "Phantom images" not in page
    planes = set(metrics.loc[metrics["task"] == "planes", "plane"])
    assert planes == {"macro", "Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax"}
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert not drawn & {"01_planes", "01_brain_planes", "01_masks", "02_views"}


def test_the_study_runs_on_the_tiny_real_sample_and_counts_what_it_leaves_out(tmp_path, real_data):
    text, metrics, _ = run_smoke(tmp_path, "--data-dir", str(real_data / "fetal_planes_sample"))
    assert "41 'Not A Brain'" in text
    assert set(metrics["task"]) == {"planes", "brain_planes"}


def test_the_performance_notebook_runs_when_named_and_leaves_its_table_and_figure_but_no_run(tmp_path):
    assert main(["--preset", "smoke", "--only", "90", "--results-dir", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "tables" / "performance.csv")
    assert tuple(table.columns) == PERFORMANCE_COLUMNS
    assert set(table["section"]) == {"reading", "views", "step", "CPU", "probes", "intervals", "processes"}
    assert (table["value"] > 0).all()
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == [f"90_{name}.{ending}" for name in ("performance", "scaling") for ending in ("png", "svg")]
    scaling = pd.read_csv(tmp_path / "tables" / "scaling.csv")
    assert tuple(scaling.columns) == SCALING_COLUMNS
    assert list(scaling["n_workers"]) == [1, 2, 1, 2]
    assert not (tmp_path / "runs").exists()
