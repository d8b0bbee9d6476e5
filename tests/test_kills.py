"""A study that is killed ends as one that is not (see killed_study.py, which has a longer form)."""

import multiprocessing

import numpy as np
import pandas as pd
import pytest
from killed_study import N_EPOCHS, assert_same_runs, compute, kill_until_done, metrics

N_TRAINED = 7  # of the thirteen runs: two pretrainings, five fine-tunings


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="forks processes to be killed")
def test_a_study_killed_at_random_moments_has_the_metrics_and_weights_of_one_left_alone(tiny_phantom, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    files = tmp_path / "whole.txt", tmp_path / "cut.txt"
    alone = kill_until_done(compute, (tiny_phantom, whole, files[0]), files[0])
    killed = kill_until_done(
        compute, (tiny_phantom, cut, files[1]), files[1], n_kills=3, rng=np.random.default_rng(3), epochs_between=7
    )
    assert alone.exits == [0]
    assert killed.exits == [-9, -9, -9, 0]
    assert set(killed.epochs) == set(alone.epochs)
    assert len(alone.epochs) == len(set(alone.epochs)) == N_TRAINED * N_EPOCHS
    assert killed.n_repeated <= 3  # of each kill at most the epoch that was under way
    assert assert_same_runs(cut, whole) == 13
    tables = [metrics(tiny_phantom, results_dir) for results_dir in (cut, whole)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
