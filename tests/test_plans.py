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
    found = {execution.notebook[:2]: execution.parameters.get("n_steps") for execution in executions}
    assert found == {"01": None, "02": None, "03": 7, "04": 7, "05": 7}


def test_values_for_one_notebook_reach_only_that_one():
    executions = plan({"notebooks": {"02": {"image_size": 48}}}, {})
    assert [e.parameters.get("image_size") for e in executions] == [None, 48, None, None, None]


def test_defaults_are_read_from_the_parameters_cell():
    assert read_parameters("03_transfer_learning_baselines")["task"] == "planes"


def test_a_notebooks_own_value_goes_before_the_grid_and_a_given_value_before_both():
    preset = {"grid": {"task": ["planes", "brain_planes"]}, "notebooks": {"02": {"task": "brain_planes"}}}
    assert [e.parameters["task"] for e in plan(preset, {}, only="02")] == ["brain_planes"]
    assert [e.parameters["task"] for e in plan(preset, {"task": "planes"}, only="02")] == ["planes"]
    assert [e.parameters["task"] for e in plan(preset, {}, only="03")] == ["planes", "brain_planes"]


def test_the_performance_notebook_runs_only_when_named():
    names = [execution.notebook for execution in plan(read_preset("smoke"), {})]
    assert names
    assert not any(name.startswith("9") for name in names)
    (alone,) = plan(read_preset("smoke"), {}, only="90")
    assert alone.notebook == "90_performance"


def test_every_backbone_of_a_grid_has_its_own_results_folder():
    preset = {"grid": {"backbone": ["resnet18", "resnet50"]}}
    executions = plan(preset, {"results_dir": "/results/paper"}, only="03")
    assert [(e.parameters["backbone"], e.parameters["results_dir"]) for e in executions] == [
        ("resnet18", "/results/paper/resnet18"),
        ("resnet50", "/results/paper/resnet50"),
    ]
    (alone,) = plan({}, {"results_dir": "/results/mine", "backbone": "resnet18"}, only="03")
    assert alone.parameters["results_dir"] == "/results/mine"
