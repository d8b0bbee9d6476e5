import numpy as np
import pytest

from fetal_utils.data import CSV_COLUMNS
from fetal_utils.parameters import check_parameters
from fetal_utils.phantom import draw_metadata
from fetal_utils.splits import split_by_patient
from fetal_utils.strategies import STRATEGIES
from fetal_utils.tasks import TASKS

GOOD = {
    "label_fraction": 0.01,
    "label_fractions": [0.01, 0.5, 1],
    "val_fraction": 0.5,
    "seed": 0,
    "seeds": (0, 1, np.int64(7)),
    "draws": [0],
    "n_epochs": 1,
    "n_resamples": 2000,
    "batch_size": 2,
    "lr": 5e-4,
    "temperature": 0.1,
    "phantom_patients": 16,
    "strategies": list(STRATEGIES),
    "backbone": "resnet18",
    "image_size": 96,
    "geometry": "crop",
    "device": "cpu",
    "data_dir": "anything",
}

BAD = [
    ("label_fraction", 0, "more than 0 and at most 1"),
    ("label_fraction", 10, r"1 % is 0\.01"),
    ("label_fraction", float("nan"), "at most 1"),
    ("val_fraction", 0.6, r"at most 0\.5"),
    ("val_fraction", 0, "more than 0"),
    ("seed", -1, "a whole number, 0 or more"),
    ("seed", 1.5, "a whole number"),
    ("n_epochs", 0, "1 or more"),
    ("n_steps", 2.5, "a whole number"),
    ("n_evaluations", "many", "a whole number"),
    ("batch_size", 1, "2 or more"),
    ("pretraining_batch_size", 0, "2 or more"),
    ("lr", 0, "more than 0"),
    ("lr", "1e-3", "more than 0"),  # what YAML makes of 1e-3
    ("lr", None, "more than 0"),
    ("temperature", -0.1, "more than 0"),
    ("phantom_patients", 15, "16 patients or more"),
    ("strategy", "simclr", "one of .*simclr_imagenet"),
    ("strategy", 3, "one of"),
    ("backbone", "resnet17", "the name of a timm network"),
    ("backbone", 18, "the name of a timm network"),
    ("image_size", 4, "8 to 1024 px"),
    ("image_size", "96", "8 to 1024 px"),
    ("geometry", "stretch", "one of"),
    ("device", "gpu", "'auto' takes what is there"),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_values_pass(name):
    check_parameters({name: GOOD[name]})


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_a_bad_value_is_named_with_what_was_expected(name, value, expected):
    with pytest.raises(ValueError, match=rf"{name}={value!r}.*{expected}"):
        check_parameters({**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "values", "wrong"),
    [
        ("label_fractions", [0.1, 25], "label_fractions=25"),
        ("seeds", [0, -3], "seeds=-3"),
        ("strategies", ["imagenet", "imagenett"], "strategies='imagenett'"),
    ],
)
def test_one_bad_value_of_a_list_is_named(name, values, wrong):
    with pytest.raises(ValueError, match=wrong):
        check_parameters({name: values})


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="seeds is empty: expected at least one value"):
        check_parameters({"seeds": []})


def test_an_unknown_augmentation_is_refused_and_the_known_ones_pass():
    check_parameters({"augmentation": "weak"})
    with pytest.raises(ValueError, match="strongest"):
        check_parameters({"augmentation": "strongest"})


def test_the_smallest_phantom_allowed_can_be_split():
    table = draw_metadata(GOOD["phantom_patients"], rng=np.random.default_rng(0)).rename(columns=CSV_COLUMNS)
    table["split"] = table["split"].map({1: "train", 0: "test"})
    subset = split_by_patient(table, val_fraction=0.2, rng=np.random.default_rng(0))
    for task in TASKS.values():
        planes = {name: set(table[task.label_column][subset == name]) for name in ("train", "val", "test")}
        assert set(task.classes) <= planes["train"]
        assert set(task.classes) <= planes["test"]
        assert set(task.classes) & planes["val"]


def test_names_without_a_rule_pass_over():
    check_parameters({"data_dir": -1, "title": None})


def test_strategies_to_skip_may_be_none_but_must_exist():
    check_parameters({"skip_strategies": []})
    check_parameters({"skip_strategies": ["dual_scratch"]})
    with pytest.raises(ValueError, match="'dual' is unknown"):
        check_parameters({"skip_strategies": ["dual"]})
