"""Values typed on a command line."""

import pytest

from fetal_utils.command_line import UsageError, check_type, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("-2.5E+4", -25000.0),
        (".5e1", 5.0),
        ("[1e-3, 1]", [1e-3, 1]),
        ("[0.1, 1.0]", [0.1, 1.0]),
        ("resnet18", "resnet18"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("inf", "inf"),
        ("true", True),
        ("", None),
    ],
)
def test_values_from_the_command_line_are_read_as_yaml(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["[0.1", "a: b: c", "'open", "!!python/object:os.system x"])
def test_what_is_not_yaml_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match=r"-p: .* is not YAML") as error:
        parse_value(text)
    assert "\n" not in str(error.value)


def test_a_whole_number_serves_as_a_float_also_in_a_list():
    assert check_type("lr", 1, 0.5) == 1.0
    assert [type(value) for value in check_type("label_fractions", [1, 0.5], [0.1])] == [float, float]


@pytest.mark.parametrize(("value", "default"), [("a", 1), (1.5, 1), (True, 1), (1, "a"), (0.5, [0.5]), (["a"], [1])])
def test_a_value_of_another_type_is_refused(value, default):
    with pytest.raises(UsageError, match="parameter x="):
        check_type("x", value, default)


def test_an_empty_list_as_default_takes_a_list_of_anything_and_nothing_else():
    assert check_type("skip_strategies", ["scratch"], []) == ["scratch"]
    with pytest.raises(UsageError, match="skip_strategies"):
        check_type("skip_strategies", "scratch", [])
