"""Presets, and what they make of the notebooks."""

from fetal_utils.plans import PRESET_DIR, plan, read_parameters, read_preset


def test_every_preset_can_be_planned():
    names = sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))
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


def test_defaults_are_read_from_the_parameters_cell():
    assert read_parameters("03_transfer_learning_baselines")["task"] == "planes"


def test_a_notebooks_own_value_goes_before_the_grid_and_a_given_value_before_both():
    preset = {"grid": {"task": ["planes", "brain_planes"]}, "notebooks": {"02": {"task": "brain_planes"}}}
    assert [e.parameters["task"] for e in plan(preset, {}, only="02")] == ["brain_planes"]
    assert [e.parameters["task"] for e in plan(preset, {"task": "planes"}, only="02")] == ["planes"]
    assert [e.parameters["task"] for e in plan(preset, {}, only="03")] == ["planes", "brain_planes"]
