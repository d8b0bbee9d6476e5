"""The study command: presets, parameters, and what it does with bad input."""

from pathlib import Path

import nbformat
import pytest
import yaml
from data_folders import plane_lines, write_folder, write_table

from fetal_utils import plans, study
from fetal_utils.study import main

SMOKE = ["--preset", "smoke"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "nope"], "nope"),
        (["--preset", "missing.yaml"], "missing.yaml"),
        ([*SMOKE, "--only", "99"], "99"),
        ([*SMOKE, "-p", "imge_size", "32"], "imge_size"),
        ([*SMOKE, "-p", "image_size", "big"], "image_size='big'"),
        ([*SMOKE, "-p", "image_size", "4"], "image_size=4"),
        ([*SMOKE, "-p", "label_fractions", "[0.5, 2]"], "label_fractions=2"),
        ([*SMOKE, "-p", "label_fractions", "[]"], "label_fractions is empty"),
        ([*SMOKE, "-p", "phantom_patients", "3"], "phantom_patients=3"),
        ([*SMOKE, "-p", "backbone", "resnet19"], "backbone='resnet19'"),
        ([*SMOKE, "-p", "augmentation", "strong"], "strong"),
        ([*SMOKE, "-p", "device", "abacus"], "abacus"),
        ([*SMOKE, "--data-dir", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(arguments, named, tmp_path, capsys):
    assert main([*arguments, "--results-dir", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert "Traceback" not in error
    assert not (tmp_path / "results" / "notebooks").exists()


def test_a_broken_image_is_named_before_the_first_notebook(tiny_phantom, tmp_path, capsys):
    data_dir = copy_data(tiny_phantom, tmp_path / "data")
    broken = sorted((data_dir / "Images").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:60])
    assert main([*SMOKE, "--data-dir", str(data_dir), "--results-dir", str(tmp_path / "results")]) == 2
    assert broken.name in capsys.readouterr().err
    assert not (tmp_path / "results" / "notebooks").exists()


LINES = plane_lines(n_train=12, n_test=4)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([LINES[0].replace("Fetal femur", "Fetal foot"), *LINES[1:]], "Fetal foot"),
        ([*LINES, LINES[0]], "stands twice"),
        ([*LINES[:-1], LINES[-1].replace(";16;", ";1;")], "patients [1]"),
        ([LINES[0].replace("p1_femur", "../p1_femur"), *LINES[1:]], "../p1_femur"),
        ([line for line in LINES if "femur" in line], "at least two"),
        (
            [line for line in LINES if "femur" in line or line.endswith("0 ")],
            "no training patient has ['Fetal thorax']",
        ),
        ([line + ";7" for line in LINES], "FETAL_PLANES_DB_data.csv"),
    ],
    ids=["class", "duplicate", "both-splits", "climbs-out", "one-class", "untrained-class", "extra-column"],
)
def test_bad_data_ends_with_status_2_and_one_line(lines, named, tmp_path, capsys):
    data_dir = write_folder(tmp_path / "data", LINES)
    write_table(data_dir, lines)
    arguments = [
        *SMOKE,
        "-p",
        "task",
        "planes",
        "--data-dir",
        str(data_dir),
        "--results-dir",
        str(tmp_path / "results"),
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert not (tmp_path / "results" / "notebooks").exists()


def test_good_data_of_the_same_kind_is_accepted(tmp_path, monkeypatch):
    data_dir = write_folder(tmp_path / "data", LINES)
    monkeypatch.setattr(study, "execute", lambda execution: "")
    arguments = ["-p", "task", "planes", "--data-dir", str(data_dir), "--results-dir", str(tmp_path / "results")]
    assert main([*SMOKE, *arguments]) == 0


@pytest.mark.parametrize(
    ("text", "named"), [("parameters: [", "not YAML"), ("extra: 1", "extra"), ("parameters: {imge: 1}", "imge")]
)
def test_a_preset_of_ones_own_that_is_malformed_is_refused(text, named, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert main(["--preset", str(path), "--results-dir", str(tmp_path)]) == 2
    assert named in capsys.readouterr().err


def test_a_failing_notebook_is_kept_with_its_traceback_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    write_notebook(notebooks / "01_fails.ipynb", "raise ValueError('on purpose')")
    write_notebook(notebooks / "02_works.ipynb", "print(x)")
    monkeypatch.setattr(plans, "NOTEBOOK_DIR", notebooks)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"parameters": {"x": 5}}))
    status = main(["--preset", str(tmp_path / "mine.yaml"), "--results-dir", str(tmp_path / "results")])
    assert status == 1
    assert "01_fails" in capsys.readouterr().err
    failed = nbformat.read(tmp_path / "results" / "notebooks" / "01_fails.ipynb", as_version=4)
    assert any(output.get("ename") == "ValueError" for cell in failed.cells for output in cell.get("outputs", []))
    worked = nbformat.read(tmp_path / "results" / "notebooks" / "02_works.ipynb", as_version=4)
    assert "5" in worked.cells[-1].outputs[0].text


def copy_data(source: Path, target: Path) -> Path:
    """A copy of a data folder that a test may break."""
    (target / "Images").mkdir(parents=True)
    for path in [*source.glob("*.csv"), *(source / "Images").iterdir()]:
        (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def write_notebook(path: Path, source: str) -> None:
    """A notebook with the parameters every notebook has, one more, and one cell."""
    parameters = nbformat.v4.new_code_cell('data_dir: str = ""\nresults_dir: str = ""\nx: int = 1')
    parameters.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, path)
