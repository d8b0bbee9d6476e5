"""The study command: presets, parameters, and what it does with bad input."""

from pathlib import Path

import nbformat
import pytest
import yaml
from data_folders import plane_lines, write_folder, write_table

from fetal_utils import study
from fetal_utils.study import UsageError, check_type, main, parse_value, plan, read_parameters, read_preset

SMOKE = ["--preset", "smoke"]


def test_every_preset_can_be_planned():
    names = sorted(path.stem for path in study.PRESET_DIR.glob("*.yaml"))
    assert {"smoke", "demo", "laptop"} <= set(names)
    for name in names:
        executions = plan(read_preset(name), {})
        assert [execution.notebook for execution in executions] == sorted(e.notebook for e in executions)


def test_a_notebook_with_a_task_runs_once_for_each_task_of_the_grid():
    names = [execution.name for execution in plan(read_preset("smoke"), {}, only="03")]
    assert names == ["03_transfer_learning_baselines.planes", "03_transfer_learning_baselines.brain_planes"]


def test_a_given_task_replaces_the_grid():
    (execution,) = plan(read_preset("smoke"), {"task": "brain_planes"}, only="03")
    assert execution.parameters["task"] == "brain_planes"


def test_a_given_value_goes_before_the_presets_and_only_to_notebooks_that_have_it():
    executions = plan(read_preset("smoke"), {"n_steps": 7})
    assert {e.notebook[:2]: e.parameters.get("n_steps") for e in executions} == {"01": None, "02": None, "03": 7}


def test_values_for_one_notebook_reach_only_that_one():
    executions = plan({"notebooks": {"02": {"image_size": 48}}}, {})
    assert [e.parameters.get("image_size") for e in executions] == [None, 48, None]


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("0.5", 0.5), ("[0.1, 1.0]", [0.1, 1.0]), ("resnet18", "resnet18"), ("true", True)],
)
def test_values_from_the_command_line_are_read_as_yaml(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_a_whole_number_serves_as_a_float_also_in_a_list():
    assert check_type("lr", 1, 0.5) == 1.0
    assert [type(value) for value in check_type("label_fractions", [1, 0.5], [0.1])] == [float, float]


@pytest.mark.parametrize(("value", "default"), [("a", 1), (1.5, 1), (True, 1), (1, "a"), (0.5, [0.5]), (["a"], [1])])
def test_a_value_of_another_type_is_refused(value, default):
    with pytest.raises(UsageError, match="parameter x="):
        check_type("x", value, default)


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
    monkeypatch.setattr(study, "execute", lambda execution, results_dir: "")
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
    monkeypatch.setattr(study, "NOTEBOOK_DIR", notebooks)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"parameters": {"x": 5}}))
    status = main(["--preset", str(tmp_path / "mine.yaml"), "--results-dir", str(tmp_path / "results")])
    assert status == 1
    assert "01_fails" in capsys.readouterr().err
    failed = nbformat.read(tmp_path / "results" / "notebooks" / "01_fails.ipynb", as_version=4)
    assert any(output.get("ename") == "ValueError" for cell in failed.cells for output in cell.get("outputs", []))
    worked = nbformat.read(tmp_path / "results" / "notebooks" / "02_works.ipynb", as_version=4)
    assert "5" in worked.cells[-1].outputs[0].text


def test_defaults_are_read_from_the_parameters_cell():
    assert read_parameters("03_transfer_learning_baselines")["task"] == "planes"


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
