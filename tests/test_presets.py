"""Presets: read from YAML, checked before anything runs."""

import pytest

from fetal_utils.command_line import UsageError
from fetal_utils.presets import FORMS, list_presets, read_preset


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_study_has_its_presets_and_each_says_what_it_is_for():
    assert list_presets() == ["demo", "laptop", "paper", "smoke"]
    assert all(read_preset(name)["description"] for name in list_presets())


def test_what_a_preset_lacks_is_empty(tmp_path):
    empty = {"description": "", "parameters": {}, "grid": {}, "notebooks": {}}
    assert read_preset(write(tmp_path, "")) == empty
    assert read_preset(write(tmp_path, "parameters:\ngrid:  # nothing yet\n")) == empty
    assert set(empty) == set(FORMS)


def test_an_exponent_makes_a_number_also_without_a_point(tmp_path):
    preset = read_preset(write(tmp_path, "parameters: {lr: 1e-3, lrs: [5E-4, 2e3], name: 1e-3x}"))
    assert preset["parameters"] == {"lr": 0.001, "lrs": [0.0005, 2000.0], "name": "1e-3x"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("parameters: [", "not YAML"),
        ("- smoke", "holds a list; expected a mapping"),
        ("smoke", "holds a str; expected a mapping"),
        ("extra: 1", "['extra'] are unknown"),
        ("1: 2", "[1] are unknown"),
        ("description: [a]", "description is ['a']; expected a text"),
        ("parameters: 5", "parameters is 5; expected a mapping"),
        ("parameters: [seed]", "parameters is ['seed']; expected a mapping"),
        ("grid: [task]", "grid is ['task']; expected a mapping"),
        ("grid: {task: planes}", "grid has task: 'planes'; expected a list"),
        ("grid: {task: []}", "grid has task: []; expected a list"),
        ("grid: {task: [planes, planes]}", "expected a list of different values"),
        ("notebooks: {04: {n_steps: 5}}", 'notebooks has 4; write its number in quotes, such as "04"'),
        ('notebooks: {"04": 5}', "notebooks has 04: 5; expected a mapping"),
    ],
)
def test_a_preset_of_another_form_is_refused_with_what_was_expected(tmp_path, text, named):
    with pytest.raises(UsageError) as error:
        read_preset(write(tmp_path, text))
    assert named in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not YAML"):
        read_preset(str(path))


def test_a_missing_preset_is_named_with_those_there_are():
    with pytest.raises(UsageError, match=r"--preset nope: no such preset; there are demo, laptop, paper, smoke"):
        read_preset("nope")
