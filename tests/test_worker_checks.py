"""What the workers of a cluster must share with whoever asks them for runs."""

import dataclasses

import pytest
from toy_runs import toy_store

from fetal_utils.dataset import Dataset
from fetal_utils.environment import versions
from fetal_utils.worker_checks import open_site


@pytest.fixture
def site(tmp_path):
    with open_site(toy_store(tmp_path)) as site:
        yield site


def test_a_process_that_shares_all_of_it_has_no_obstacle_and_no_difference(site):
    assert site.obstacle() == ""
    assert site.differences() == []


def test_a_folder_of_the_same_name_that_is_another_one_is_told_by_its_token(site, tmp_path):
    elsewhere = dataclasses.replace(site, results_dir=tmp_path / "elsewhere")
    assert f"does not see the results folder {tmp_path / 'elsewhere'}" in elsewhere.obstacle()
    elsewhere.results_dir.mkdir()
    assert "does not see the results folder" in elsewhere.obstacle()
    (elsewhere.results_dir / site.token).write_text("another")
    assert "does not see the results folder" in elsewhere.obstacle()


def test_a_results_folder_that_can_only_be_read_is_an_obstacle(site, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a read-only mount
    assert "can't write into the results folder" in site.obstacle()


def test_data_that_are_not_there_or_not_the_same_are_an_obstacle(site, tmp_path, tiny_dataset):
    absent = Dataset(tmp_path / "absent", tmp_path / "cache")
    assert "can't read the data" in dataclasses.replace(site, dataset=absent).obstacle()
    other = dataclasses.replace(site, dataset=tiny_dataset)
    assert f"its key is {tiny_dataset.key}, expected toy" in other.obstacle()
    assert dataclasses.replace(other, data_key=tiny_dataset.key).obstacle() == ""


def test_results_of_another_version_are_an_obstacle_and_other_packages_a_difference(site):
    assert "same commit" in dataclasses.replace(site, results_version=0).obstacle()
    other = dataclasses.replace(site, versions=(("torch", "0.1"),), commit="0123456789ab")
    assert other.obstacle() == ""
    assert f"torch {versions()['torch']} and not 0.1" in other.differences()
    assert [line for line in other.differences() if line.startswith("commit")]


def test_the_token_is_gone_when_the_site_is_closed(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), open_site(toy_store(tmp_path)):
        assert len(list(tmp_path.iterdir())) == 1
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
