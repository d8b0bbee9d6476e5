"""What presets and command lines make of the notebooks."""

import pytest

from fetal_utils.command_line import UsageError
from fetal_utils.plans import list_notebooks, plan, read_parameters
from fetal_utils.presets import list_presets, read_preset

GRID = {"grid": {"task": ["planes", "brain_planes"]}}


def numbers(executions):
    return [execution.notebook[:2] for execution in executions]


def test_every_preset_can_be_planned_and_no_copy_overwrites_another():
    for name in list_presets():
        executions = plan(name, {"results_dir": "/r"})
        assert set(list_notebooks()) == {execution.notebook for execution in executions}
        assert numbers(executions) == sorted(numbers(executions))
        assert len({execution.copy() for execution in executions}) == len(executions)


def test_a_preset_may_be_given_by_name_or_as_read():
    assert plan("smoke", {}) == plan(read_preset("smoke"), {})


def test_a_notebook_with_a_task_runs_once_for_each_task_of_the_grid():
    names = [execution.name for execution in plan("smoke", {}, only="03")]
    assert names == ["03_transfer_learning_baselines.planes", "03_transfer_learning_baselines.brain_planes"]


def test_a_notebook_without_a_task_runs_once():
    assert [execution.name for execution in plan("smoke", {}, only="01")] == ["01_data_preparation"]


def test_a_given_task_replaces_the_grid_and_has_the_same_copy():
    (execution,) = plan("smoke", {"task": "brain_planes"}, only="03")
    assert execution == plan("smoke", {}, only="03")[1]


@pytest.mark.parametrize("preset", [{}, GRID])
def test_a_given_list_of_tasks_is_a_grid_with_any_preset(preset):
    executions = plan(preset, {"task": ["brain_planes", "planes"]}, only="03")
    assert [e.parameters["task"] for e in executions] == ["brain_planes", "planes"]
    assert [e.name.split(".")[1] for e in executions] == ["brain_planes", "planes"]


def test_a_given_value_goes_before_the_presets_and_only_to_notebooks_that_have_it():
    found = {e.notebook[:2]: e.parameters.get("n_steps") for e in plan("smoke", {"n_steps": 7})}
    expected = {n[:2]: 7 if "n_steps" in read_parameters(n) else None for n in list_notebooks()}
    assert found == expected
    assert (found["01"], found["03"]) == (None, 7)


def test_values_for_one_notebook_reach_only_that_one():
    executions = plan({"notebooks": {"02": {"image_size": 48}}}, {})
    assert {e.notebook[:2]: e.parameters.get("image_size") for e in executions if e.parameters} == {"02": 48}


def test_defaults_are_read_from_the_parameters_cell():
    assert read_parameters("03_transfer_learning_baselines")["task"] == "planes"


def test_a_notebooks_own_value_goes_before_the_grid_and_a_given_value_before_both():
    preset = GRID | {"notebooks": {"02": {"task": "brain_planes"}}}
    assert [e.parameters["task"] for e in plan(preset, {}, only="02")] == ["brain_planes"]
    assert [e.parameters["task"] for e in plan(preset, {"task": "planes"}, only="02")] == ["planes"]
    both = plan(preset, {"task": ["planes", "brain_planes"]}, only="02")
    assert [e.parameters["task"] for e in both] == ["planes", "brain_planes"]
    assert [e.parameters["task"] for e in plan(preset, {}, only="03")] == ["planes", "brain_planes"]


def test_a_copy_is_named_by_the_grids_values_wherever_they_come_from():
    preset = GRID | {"notebooks": {"02": {"task": "brain_planes"}}}
    (by_preset,) = plan(preset, {}, only="02")
    (by_hand,) = plan(preset, {"task": "brain_planes"}, only="02")
    assert by_preset.name == by_hand.name == "02_simclr_pretraining.brain_planes"


@pytest.mark.parametrize(
    ("only", "given", "ending"),
    [
        ("01", {"seed": 3}, ".seed3"),
        ("03", {"task": "planes"}, ".planes"),
        ("03", {"seeds": [1, 2]}, ".seeds1-2"),
        ("03", {"seeds": [1], "backbone": "resnet18", "task": "planes"}, ".resnet18.planes.seeds1"),
        ("03", {"backbone": "hf-hub:timm/resnet18.a1_in1k"}, ".hf-hub_timm_resnet18.a1_in1k"),
        ("03", {"n_steps": 5}, ""),
    ],
)
def test_a_copy_is_named_by_task_backbone_seeds_and_draws_given_by_hand(only, given, ending):
    (execution,) = plan({}, given, only=only)
    assert execution.name == execution.notebook + ending


def test_the_performance_notebook_runs_only_when_named():
    names = [execution.notebook for execution in plan("smoke", {})]
    assert names
    assert not any(name.startswith("9") for name in names)
    (alone,) = plan("smoke", {}, only="90")
    assert alone.notebook == "90_performance"


def test_from_takes_that_notebook_and_those_after_it_but_not_the_one_beside_the_study():
    study = list_notebooks()
    assert list_notebooks(start="03") == [name for name in study if name >= "03"]
    assert list_notebooks(start="03_transfer") == list_notebooks(start="03")
    assert list_notebooks(start="01") == study
    for start in ("00", "90", "99"):
        with pytest.raises(UsageError, match=f"--from {start}: no such notebook; there are 01_data"):
            list_notebooks(start=start)
    with pytest.raises(UsageError, match=r"--only 99: no such notebook; there are .*90_performance"):
        list_notebooks("99")


def test_every_backbone_of_a_grid_has_its_own_results_folder():
    preset = {"grid": {"backbone": ["resnet18", "resnet50"]}}
    executions = plan(preset, {"results_dir": "/results/paper"}, only="03")
    assert [(e.parameters["backbone"], e.parameters["results_dir"]) for e in executions] == [
        ("resnet18", "/results/paper/resnet18"),
        ("resnet50", "/results/paper/resnet50"),
    ]
    (again,) = plan(preset, {"results_dir": "/results/paper", "backbone": "resnet18"}, only="03")
    assert again == executions[0]
    assert plan({}, {"results_dir": "/results/paper", "backbone": ["resnet18", "resnet50"]}, only="03") == executions
    (alone,) = plan({}, {"results_dir": "/results/mine", "backbone": "resnet18"}, only="03")
    assert alone.parameters["results_dir"] == "/results/mine"


def test_notebooks_without_a_backbone_run_in_the_folder_of_each():
    executions = plan({"grid": {"backbone": ["resnet18", "resnet50"]}}, {"results_dir": "/r"}, only="01")
    assert [e.parameters for e in executions] == [{"results_dir": "/r/resnet18"}, {"results_dir": "/r/resnet50"}]
    assert [e.name for e in executions] == ["01_data_preparation.resnet18", "01_data_preparation.resnet50"]


@pytest.mark.parametrize(
    ("preset", "given", "only", "named"),
    [
        ({}, {"imge_size": 32}, None, "did you mean image_size?"),
        ({"parameters": {"imge": 1}}, {}, None, "['imge'] are unknown to every notebook"),
        ({"grid": {"tasks": ["planes"]}}, {}, None, "['tasks'] are unknown to every notebook"),
        ({"notebooks": {"01": {"task": "planes"}}}, {}, None, "['task'] are unknown to 01_data_preparation"),
        ({"notebooks": {"07": {}}}, {}, None, "the preset's notebooks have '07'"),
        ({"notebooks": {"0": {}}}, {}, None, "the preset's notebooks have '0'; expected the start of one of 01_data"),
        ({"parameters": {"lr": "fast"}}, {}, None, "parameter lr='fast' is of type str; expected float"),
        ({"grid": {"task": [1]}}, {}, None, "parameter task=1 is of type int; expected str"),
        ({}, {"seeds": 1}, None, "parameter seeds=1 is of type int; expected list, as the default [0]"),
        ({}, {"n_steps": [5, 6]}, None, "-p n_steps [5, 6]: expected one value; only of backbone and task"),
        ({}, {"task": []}, None, "-p task []: expected one value"),
        ({}, {"task": {"a": 1}}, "03", "parameter task={'a': 1} is of type dict"),
        ({}, {"n_steps": 5}, "01", "-p n_steps: no such parameter in 01_data_preparation; it is one of 03_transfer"),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_what_was_expected(preset, given, only, named):
    with pytest.raises(UsageError) as error:
        plan(preset, given, only=only)
    assert named in str(error.value)


def test_folders_and_scheduler_are_options_of_the_command_for_notebooks_that_have_them():
    (execution,) = plan({}, {"scheduler": "tcp://here:8786", "results_dir": "/r"}, only="01")
    assert execution.parameters == {"results_dir": "/r"}
