import numpy as np
import pandas as pd
import pytest

from fetal_utils.cam_rows import CAM_COLUMNS, cam_rows

ABOUT = {
    "task": "planes",
    "strategy": "imagenet",
    "protocol": "fine_tune",
    "label_fraction": 0.1,
    "seed": 3,
    "method": "gradcam",
}


def scores_of(values, *, planes, patients, name="model", score="energy_anatomy"):
    about = {"image": range(len(values)), "patient": patients, "plane": planes, "map": name}
    return pd.DataFrame(about | {"score": score, "value": values})


def rows_of(scores, *, n_resamples=500, seed=0):
    return cam_rows(scores, **ABOUT, n_resamples=n_resamples, rng=np.random.default_rng(seed))


def row(rows, plane="all", name="model"):
    (found,) = rows[(rows["plane"] == plane) & (rows["map"] == name)].to_dict("records")
    return found


def test_a_row_has_the_mean_over_images_and_counts_images_and_patients():
    scores = scores_of([0.1, 0.3, 0.8, np.nan], planes=["brain", "brain", "femur", "femur"], patients=[1, 1, 2, 3])
    rows = rows_of(scores)
    assert tuple(rows.columns) == CAM_COLUMNS
    assert rows["plane"].tolist() == ["brain", "femur", "all"] or set(rows["plane"]) == {"brain", "femur", "all"}
    found = row(rows)
    assert found["value"] == pytest.approx(0.4)
    assert (found["n_images"], found["n_patients"]) == (3, 2)  # the image without a value does not count
    assert row(rows, "brain")["value"] == pytest.approx(0.2)
    assert {name: found[name] for name in ABOUT} == ABOUT


def test_the_interval_resamples_patients_and_not_images():
    # two patients whose images are all alike: a resample holds one, the other, or both
    scores = scores_of([0.0] * 50 + [1.0] * 50, planes=["brain"] * 100, patients=[1] * 50 + [2] * 50)
    found = row(rows_of(scores))
    assert (found["low"], found["value"], found["high"]) == (0, 0.5, 1)


def test_a_plane_of_one_patient_has_a_value_and_no_interval():
    scores = scores_of([0.2, 0.4, 0.9], planes=["brain", "brain", "femur"], patients=[1, 2, 2])
    rows = rows_of(scores)
    assert row(rows, "femur")["value"] == pytest.approx(0.9)
    assert np.isnan([row(rows, "femur")[end] for end in ("low", "high")]).all()
    assert row(rows, "brain")["low"] == pytest.approx(0.2)


def test_a_score_that_no_image_has_keeps_its_row():
    scores = scores_of([np.nan, np.nan], planes=["brain", "brain"], patients=[1, 2])
    found = row(rows_of(scores))
    assert np.isnan([found[name] for name in ("value", "low", "high")]).all()
    assert (found["n_images"], found["n_patients"]) == (0, 0)


def test_all_maps_are_resampled_alike_so_equal_scores_have_equal_intervals():
    values, rng = np.random.default_rng(0).random(30), np.random.default_rng(1)
    patients = rng.integers(10, size=30)
    parts = [scores_of(values, planes=["brain"] * 30, patients=patients, name=name) for name in ("model", "random")]
    rows = rows_of(pd.concat(parts))
    model, random = row(rows), row(rows, name="random")
    assert (model["low"], model["high"]) == (random["low"], random["high"])
    assert model["low"] < model["value"] < model["high"]


def test_no_scores_and_a_single_patient_are_refused():
    scores = scores_of([0.2, 0.4], planes=["brain", "brain"], patients=[1, 1])
    with pytest.raises(ValueError, match="no scores"):
        rows_of(scores.iloc[:0])
    with pytest.raises(ValueError, match="1 test patient"):
        rows_of(scores)
