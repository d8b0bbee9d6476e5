"""Images chosen by rules."""

import numpy as np
import pandas as pd
import pytest

from fetal_utils.examples import RULES, choose_examples, draw_one_per_patient

# confidence of the predicted class; patient 1 has the two surest right ones
ROWS = [
    ("a", 1, "x", "x", 0.99),
    ("b", 1, "x", "x", 0.98),
    ("c", 2, "x", "x", 0.90),
    ("d", 3, "y", "y", 0.60),
    ("e", 4, "y", "x", 0.95),
    ("f", 5, "y", "x", 0.55),
    ("g", 4, "y", "x", 0.51),
]


@pytest.fixture
def predictions() -> pd.DataFrame:
    table = pd.DataFrame(ROWS, columns=["image_name", "patient", "true", "predicted", "sure"])
    x = table["sure"].where(table["predicted"] == "x", 1 - table["sure"])
    return table.drop(columns="sure").assign(probability_x=x, probability_y=1 - x)


def test_the_surest_and_the_least_sure_are_chosen_and_no_patient_twice(predictions):
    chosen = choose_examples(predictions, n_each=1, rng=np.random.default_rng(0))
    # the least sure wrong image is patient 4's, who is shown as the surest already
    assert dict(zip(chosen["rule"], chosen["image_name"], strict=True)) == dict(zip(RULES, "adef", strict=True))
    assert chosen["confidence"].tolist() == pytest.approx([0.99, 0.60, 0.95, 0.55])


def test_a_rule_has_fewer_images_where_there_are_not_enough(predictions):
    chosen = choose_examples(
        predictions[predictions["true"] == predictions["predicted"]], n_each=2, rng=np.random.default_rng(0)
    )
    assert chosen["rule"].value_counts().to_dict() == {"right, surest": 2, "right, least sure": 1}
    assert chosen["patient"].is_unique


def test_among_equals_the_generator_decides_and_the_same_one_decides_alike(predictions):
    equal = predictions.assign(probability_x=0.5, probability_y=0.5, patient=range(7))
    names = [
        choose_examples(equal, n_each=1, rng=np.random.default_rng(seed))["image_name"].tolist() for seed in range(20)
    ]
    assert len({tuple(one) for one in names}) > 5
    assert names[3] == choose_examples(equal, n_each=1, rng=np.random.default_rng(3))["image_name"].tolist()


def test_no_image_at_all_is_refused(predictions):
    with pytest.raises(ValueError, match="n_each=0"):
        choose_examples(predictions, n_each=0, rng=np.random.default_rng(0))


def test_one_image_of_each_patient_is_drawn(predictions):
    drawn = draw_one_per_patient(predictions, n_images=99, rng=np.random.default_rng(0))
    assert sorted(drawn["patient"]) == [1, 2, 3, 4, 5]
    assert len(draw_one_per_patient(predictions, n_images=3, rng=np.random.default_rng(0))) == 3
    several = {
        tuple(draw_one_per_patient(predictions, n_images=99, rng=np.random.default_rng(s)).index) for s in range(9)
    }
    assert len(several) > 1
