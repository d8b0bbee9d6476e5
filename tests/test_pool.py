"""The images of a pretraining, and its false negatives by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_folders import write_images

from fetal_utils.encoders import InitialWeights
from fetal_utils.pool import UNKNOWN, Pool, open_pool, same
from fetal_utils.pretraining import strata
from fetal_utils.simclr import Pretrain
from fetal_utils.unlabelled import open_unlabelled

# image      0  1  2  3  4  5        5 is from a folder without a table
PATIENTS = [7, 7, 7, 9, 9, UNKNOWN]
PLANES = [0, 0, 1, 0, 0, UNKNOWN]
POOL = Pool(torch.zeros(6, 8, 8, dtype=torch.uint8), torch.tensor(PATIENTS), torch.tensor(PLANES), n_extra=1)
SETTINGS = Pretrain(start=InitialWeights(backbone="test_efficientnet", init="random"), image_size=32)


def rates(*batches):
    return list(POOL.rates(torch.tensor(batches)).values())


# --- rates ---


def test_rates_of_one_batch_by_hand():
    # 0 and 1 meet each other; 2 is of their patient but another plane, 3 of their plane but another patient
    same_patient_anchors, same_class_negatives = rates([0, 1, 2, 3])
    assert same_patient_anchors == pytest.approx(2 / 4)
    # each of 0, 1 and 3 has two of its plane among its three negatives, and 2 has none
    assert same_class_negatives == pytest.approx(3 * (2 / 3) / 4)


def test_rates_are_the_mean_of_the_batches_each_seen_apart():
    # in the second batch 3 and 4 meet each other, and have one of their plane among three negatives
    assert rates([3, 4, 5, 2]) == pytest.approx([2 / 4, 2 * (1 / 3) / 4])
    assert rates([0, 1, 2, 3], [3, 4, 5, 2]) == pytest.approx([1 / 2, (1 / 2 + 1 / 6) / 2])


def test_a_batch_of_one_patient_and_plane_is_all_false_negatives_and_one_of_different_ones_has_none():
    assert rates([0, 1]) == [1, 1]
    assert rates([2, 3]) == [0, 0]


def test_unknown_patients_and_planes_never_count():
    unknown = torch.full((4,), UNKNOWN)
    pool = Pool(torch.zeros(4, 8, 8, dtype=torch.uint8), unknown, unknown, n_extra=4)
    batch = torch.arange(4)
    assert list(pool.rates(batch[None]).values()) == [0, 0]
    assert not pool.same_patient(batch).any()


def test_the_rates_have_the_names_of_the_log():
    assert list(POOL.rates(torch.tensor([[0, 1]]))) == ["same_patient_anchors", "same_class_negatives"]


# --- pairs ---


def test_pairs_of_a_patient_by_hand_in_the_order_of_the_batch():
    pairs = POOL.same_patient(torch.tensor([3, 0, 5, 4]))
    assert pairs.nonzero().tolist() == [[0, 3], [3, 0]]  # images 3 and 4
    assert pairs.dtype == torch.bool


def test_pairs_are_of_different_positions_and_go_both_ways():
    codes = torch.randint(-1, 3, (5, 12), generator=torch.Generator().manual_seed(0))
    pairs = same(codes)
    assert pairs.shape == (5, 12, 12)
    assert torch.equal(pairs, pairs.mT)
    assert not pairs.diagonal(dim1=1, dim2=2).any()


# --- the images ---


def open_for(dataset, settings=SETTINGS):
    """The pool of a pretraining, and the positions of its images in the table."""
    work = SimpleNamespace(dataset=dataset, store=SimpleNamespace(progress=False))
    rows = settings.pool_rows(dataset)
    return open_pool(settings, work, rows, strata(dataset.metadata)), rows


def test_the_pool_holds_the_images_patients_and_planes_of_its_rows(tiny_dataset):
    pool, rows = open_for(tiny_dataset)
    table = tiny_dataset.metadata.iloc[rows]
    np.testing.assert_array_equal(pool.images, tiny_dataset.images(32, progress=False)[rows])
    assert len(pool) == len(rows)
    for codes, values in [(pool.patients, table["patient"]), (pool.planes, table["plane"] + table["brain_plane"])]:
        by_code = values.groupby(codes.numpy()).nunique()
        assert (by_code == 1).all() and len(by_code) == values.nunique()  # a code for each value, and only one


def test_brain_planes_are_planes_of_their_own(tiny_dataset):
    pool, rows = open_for(tiny_dataset)
    brains = (tiny_dataset.metadata["plane"].iloc[rows] == "Fetal brain").to_numpy()
    assert len(set(pool.planes.numpy()[brains])) == 4  # three and the other ones


def test_images_of_a_further_folder_come_last_and_without_patient_or_plane(tiny_dataset, tmp_path):
    pictures = {f"new_{i}": np.full((40, 40), 50 + i, dtype=np.uint8) for i in range(3)}
    settings = dataclasses.replace(SETTINGS, extra_images=open_unlabelled(write_images(tmp_path, pictures)))
    pool, rows = open_for(tiny_dataset, settings)
    n_rows = len(rows)
    assert len(pool) == n_rows + 3
    np.testing.assert_array_equal(pool.images[:n_rows], tiny_dataset.images(32, progress=False)[rows])
    assert pool.images[n_rows:].float().mean((1, 2)).tolist() == [50, 51, 52]
    for codes in (pool.patients, pool.planes):
        assert (codes[n_rows:] == UNKNOWN).all()
        assert (codes[:n_rows] != UNKNOWN).all()


# --- facts ---


def test_facts_count_images_known_patients_and_what_came_from_outside():
    pool = dataclasses.replace(POOL, n_left_out=4)
    assert pool.facts() == {"n_images": 6, "n_patients": 2, "n_extra_images": 1, "n_extra_left_out": 4}


def test_facts_without_a_further_folder_are_those_of_the_table(tiny_dataset):
    pool, rows = open_for(tiny_dataset)
    assert pool.facts() == {
        "n_images": len(rows),
        "n_patients": tiny_dataset.metadata["patient"].iloc[rows].nunique(),
        "n_extra_images": 0,
        "n_extra_left_out": 0,
    }
