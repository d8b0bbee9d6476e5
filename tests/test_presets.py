"""What presets and command lines make of the study's notebooks."""

import pytest
from study_notebooks import write_notebook

from fetal_utils.presets import (
    BESIDE,
    STUDY,
    UsageError,
    check_type,
    plan,
    preset_names,
    read_preset,
    wanted_runs,
)

EMPTY = {"description": "", "parameters": {}, "grid": {}, "notebooks": {}}
ONE, TWO, THREE = STUDY[:3]


@pytest.fixture
def folder(tmp_path):
    """Three notebooks of the study, one beside it, and others that are not its own."""
    for name in (ONE, TWO, THREE, *BESIDE):
        write_notebook(tmp_path / f"{name}.ipynb")
    write_notebook(tmp_path / "01_data_preparation-Copy1.ipynb", parameters="own: int = 1")
    (tmp_path / "05_mine.ipynb").write_text("no notebook")
    return tmp_path


def names(executions):
    return [execution.name for execution in executions]


def test_the_study_has_its_presets_and_each_says_what_it_is_for():
    assert preset_names() == ["demo", "gpu", "laptop", "paper", "smoke"]
    assert all(read_preset(name)["description"] for name in preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_the_notebooks_and_no_copy_overwrites_another(name):
    executions = plan(read_preset(name), {"results_dir": "/r"})
    assert {execution.path.stem for execution in executions} == set(STUDY)
    assert len({(execution.results_dir, execution.name) for execution in executions}) == len(executions)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("parameters: [", "not YAML"),
        ("- smoke", "expected a mapping"),
        ("extra: 1", "expected a mapping with some of description"),
        ("parameters: 5", "parameters=5 is of type int; expected dict"),
        ("\udcff\udcfe", "mine.yaml"),
    ],
)
def test_a_preset_of_another_form_is_refused_with_what_was_expected(tmp_path, text, named):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as error:
        read_preset(str(path))
    assert named in str(error.value) and "mine.yaml" in str(error.value)


def test_only_the_studys_own_notebooks_are_taken_by_name(folder):
    assert names(plan(EMPTY, {}, folder=folder)) == [ONE, TWO, THREE]
    assert names(plan(EMPTY, {}, only="90", folder=folder)) == [*BESIDE]
    assert names(plan(EMPTY, {}, start="02", folder=folder)) == [TWO, THREE]
    for wrong in ({"only": "05"}, {"start": "90"}, {"start": "04"}, {"only": "1"}):
        with pytest.raises(UsageError, match=f"no such notebook of the study; there are {ONE}, {TWO}"):
            plan(EMPTY, {}, **wrong, folder=folder)


def test_a_given_value_goes_before_the_notebooks_and_that_before_the_presets(folder):
    preset = EMPTY | {"parameters": {"lr": 1.0, "image_width": 3}, "notebooks": {"02": {"lr": 2.0}}}
    values = {e.path.stem: e.parameters for e in plan(preset, {"image_width": 4}, folder=folder)}
    assert [values[name]["lr"] for name in (ONE, TWO, THREE)] == [1.0, 2.0, 1.0]
    assert {value["image_width"] for value in values.values()} == {4}
    assert [e.parameters["lr"] for e in plan(preset, {"lr": 3}, folder=folder)] == [3.0] * 3


def test_a_task_of_the_grid_makes_an_execution_for_each_value(folder):
    write_notebook(folder / f"{THREE}.ipynb", parameters='results_dir: str = "r"\nx: int = 1')
    preset = EMPTY | {"grid": {"task": ["planes", "brain"]}, "notebooks": {"02": {"task": "brain"}}}
    assert names(plan(preset, {}, folder=folder)) == [f"{ONE}.planes", f"{ONE}.brain", f"{TWO}.brain", THREE]
    assert names(plan(preset, {"task": "planes"}, folder=folder)) == [f"{ONE}.planes", f"{TWO}.planes", THREE]


def test_every_backbone_of_a_grid_has_a_results_folder_in_which_all_notebooks_run(folder):
    write_notebook(folder / f"{ONE}.ipynb", parameters='results_dir: str = "r"')
    preset = EMPTY | {"grid": {"backbone": ["r18", "hf-hub:x/y"]}}
    executions = plan(preset, {"results_dir": "/out"}, folder=folder)
    assert [str(execution.results_dir) for execution in executions] == ["/out/r18", "/out/hf-hub_x_y"] * 3
    assert [execution.parameters.get("backbone") for execution in executions] == [None] * 2 + ["r18", "hf-hub:x/y"] * 2
    assert all(execution.parameters["results_dir"] == str(execution.results_dir) for execution in executions)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"imge_width": 32}, "imge_width: no such parameter in any notebook (did you mean image_width?)"),
        ({"lr": "fast"}, "lr='fast' is of type str; expected a finite number"),
        ({"lr": float("inf")}, "lr=inf is of type float; expected a finite number"),
        ({"blank": "false"}, "blank='false' is of type str; expected bool"),
        ({"blank": 1}, "blank=1 is of type int; expected bool"),
        ({"image_width": 2.0}, "image_width=2.0 is of type float; expected int"),
        ({"terms": 1}, "terms=1 is of type int; expected list[int]"),
        ({"terms": ["1"]}, "a value of terms='1' is of type str; expected int"),
        ({"terms": [3, 3]}, "terms=[3, 3] holds a value twice"),
        ({"data_dir": None}, "data_dir=None is of type NoneType; expected str"),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_what_was_expected(given, named, folder):
    with pytest.raises(UsageError) as error:
        plan(EMPTY, given, folder=folder)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("preset", "named"),
    [
        ({"grid": {"tasks": ["a"]}}, "tasks: no such parameter"),
        ({"grid": {"task": "planes"}}, "task='planes' is of type str; expected list"),
        ({"grid": {"task": []}}, "the grid's task is empty"),
        ({"grid": {"task": [1]}}, "task=1 is of type int; expected str"),
        ({"notebooks": {"02": {"tasks": 1}}}, f"tasks: no such parameter in {TWO} (did you mean task?)"),
        ({"notebooks": {2: {}}}, "2: no such notebook for a preset, which names them in quotes (did you mean 02?)"),
        ({"notebooks": {"02": 5}}, "02=5 is of type int; expected dict"),
    ],
)
def test_a_preset_with_a_wrong_name_or_value_is_refused(preset, named, folder):
    with pytest.raises(UsageError) as error:
        plan(EMPTY | preset, {}, folder=folder)
    assert named in str(error.value)


def test_a_parameter_that_no_chosen_notebook_reads_is_refused_but_the_commands_options_are_not(folder):
    write_notebook(folder / f"{ONE}.ipynb", parameters='results_dir: str = "r"')
    with pytest.raises(UsageError, match="lr: no such parameter of those chosen"):
        plan(EMPTY, {"lr": 1.0}, only="01", folder=folder)
    (execution,) = plan(EMPTY, {"scheduler": "local:2", "results_dir": "/r"}, only="01", folder=folder)
    assert execution.parameters == {"results_dir": "/r"}


def test_a_whole_number_and_an_exponent_are_numbers_also_in_a_list():
    assert repr(check_type("x", [1, 0.5, "1e-3"], list[float])) == "[1.0, 0.5, 0.001]"


def test_wanted_runs_are_those_of_the_tagged_cells_with_the_given_values(folder, tmp_path):
    write_notebook(folder / f"{ONE}.ipynb", "raise RuntimeError('not executed')")
    given = {"terms": [5, 6], "results_dir": str(tmp_path / "results")}
    (execution,) = plan(EMPTY, given, only="01", folder=folder)
    found = wanted_runs(execution)
    assert [settings.term for settings in found.runs] == [settings.term for settings in found.missing()] == [5, 6]
    assert (found.store.results_dir, found.weights, found.image_size) == (tmp_path / "results", False, 0)
    assert not (tmp_path / "results").exists()


def test_an_empty_list_is_named_also_where_a_cell_stumbles_over_it(folder):
    write_notebook(folder / f"{TWO}.ipynb")
    notebook = folder / f"{TWO}.ipynb"
    notebook.write_text(notebook.read_text().replace("for term in terms]", "for term in terms]\\nwanted[0]"))
    (execution,) = plan(EMPTY, {"terms": []}, only="02", folder=folder)
    with pytest.raises(UsageError, match=f"{TWO} wants no run: a list among its parameters is empty"):
        wanted_runs(execution)
