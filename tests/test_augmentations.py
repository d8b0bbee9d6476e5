"""Presets of augmentation: names, and names that change one family."""

import pytest

from fetal_utils.augmentations import FAMILIES, PRESETS, check_preset, named_preset, without


def by_family(rows):
    return {row.family: row for row in rows}


@pytest.mark.parametrize("name", PRESETS)
def test_a_name_alone_is_the_preset_itself(name):
    assert check_preset(name) == named_preset(name) == PRESETS[name]


@pytest.mark.parametrize("row", PRESETS["ultrasound"], ids=lambda row: row.family)
def test_without_takes_one_family_out_and_leaves_the_others_in_their_order(row):
    rows = check_preset(f"ultrasound without {row.family}")
    assert rows == tuple(other for other in PRESETS["ultrasound"] if other is not row)
    assert rows == without("ultrasound", row.family)


@pytest.mark.parametrize(
    ("text", "family", "strength"),
    [
        ("ultrasound with crop 0.7", "crop", 0.7),
        ("ultrasound with crop .25", "crop", 0.25),
        ("ultrasound with rotate 30", "rotate", 30.0),
        ("simclr with blur 0", "blur", 0.0),
        ("weak with shift 0.5", "shift", 0.5),
    ],
)
def test_with_changes_the_strength_of_one_family_and_nothing_else(text, family, strength):
    rows = by_family(check_preset(text))
    before = by_family(PRESETS[text.split()[0]])
    assert rows.pop(family) == before.pop(family)._replace(strength=strength)
    assert rows == before


def test_the_strength_that_a_preset_has_gives_that_preset_in_any_order():
    assert set(check_preset("ultrasound with crop 0.4")) == set(PRESETS["ultrasound"])


def test_every_family_of_every_preset_can_be_named():
    for name, rows in PRESETS.items():
        for family in by_family(rows):
            changed = by_family(check_preset(f"{name} with {family} {FAMILIES[family].max_strength}"))
            assert changed[family].strength == FAMILIES[family].max_strength


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blurry",
        "Ultrasound",
        "ultrasound without",
        "ultrasound with crop",
        "ultrasound with crop large",
        "ultrasound with crop -0.1",
        "ultrasound with crop 0.5 without blur",
        "ultrasound without blur and flip",
        "ultrasound  without blur",
        "without blur",
    ],
)
def test_a_text_that_names_no_preset_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=f"unknown preset {text!r}; .*'ultrasound without blur'.*own"):
        check_preset(text)


@pytest.mark.parametrize("text", ["weak without blur", "weak with blur 0.01", "none without crop", "weak with hue 1"])
def test_a_family_that_the_preset_does_not_have_is_refused_by_name(text):
    with pytest.raises(ValueError, match=f"the preset has no family '{text.split()[2]}'"):
        check_preset(text)


@pytest.mark.parametrize(("text", "largest"), [("ultrasound with crop 1.0", 0.99), ("ultrasound with rotate 181", 180)])
def test_a_strength_beyond_its_largest_is_refused(text, largest):
    with pytest.raises(ValueError, match=f"give 0 to {largest}"):
        check_preset(text)
