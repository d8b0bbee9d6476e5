"""How long a graph of runs takes on many workers, by simulation and by rehearsal."""

import time

import matplotlib.pyplot as plt
import pytest
from distributed import LocalCluster
from toy_runs import Sum, toy_store

from fetal_utils.agenda import critical_path
from fetal_utils.encoders import Features, initial_weights
from fetal_utils.estimates import RUN_SECONDS, Speed
from fetal_utils.scaling import (
    ORDERS,
    Nap,
    durations_of,
    join,
    networks_of,
    plot_scaling,
    scaling_table,
    shape_of,
    simulate,
    stages_of,
)


def fan(n, *, first=10.0, each=1.0):
    """One long run and n short ones that start from it."""
    start = Nap(number=0, seconds=first)
    return {start: first} | {Nap(number=i, seconds=each, start=start): each for i in range(1, n + 1)}


def test_one_worker_takes_the_sum_of_all_runs():
    assert simulate(fan(8), 1) == 18.0


def test_runs_that_start_from_one_wait_for_it_and_then_share_the_workers():
    assert simulate(fan(8), 4) == 10.0 + 8 / 4
    assert simulate(fan(8), 3) == 10.0 + 3
    assert simulate(fan(8), 100) == 10.0 + 1


def test_a_long_start_goes_first_although_it_was_asked_for_last():
    short = {Nap(number=100 + i, seconds=1.0): 1.0 for i in range(11)}
    assert simulate(short | fan(1), 2) == 11.0  # 10 + 1 on one worker, the eleven others on the other


def test_no_number_of_workers_is_faster_than_the_longest_chain_or_than_the_work_divided():
    runs = join([fan(5), {Nap(number=50, seconds=3.0): 3.0}])
    chain = sum(runs[run] for run in critical_path(runs))
    for n in range(1, 10):
        assert max(chain, sum(runs.values()) / n) <= simulate(runs, n) <= sum(runs.values())


def test_handing_out_runs_one_after_another_limits_how_many_can_be_busy():
    runs = {Nap(number=i, seconds=1.0): 1.0 for i in range(100)}
    assert simulate(runs, 1000) == 1.0
    assert simulate(runs, 1000, dispatch_s=0.5) == pytest.approx(100 * 0.5 + 1.0)


def test_without_a_worker_nothing_can_be_computed():
    with pytest.raises(ValueError, match="n_workers=0"):
        simulate(fan(1), 0)


def test_the_table_has_speedup_and_efficiency_over_one_worker_in_both_orders():
    other = {Nap(number=i, seconds=1.0): 1.0 for i in range(200, 210)}
    table = scaling_table([fan(8), other], [1, 2]).set_index(["order", "n_workers"])
    in_turn, at_once = (table.loc[order] for order in ORDERS)
    assert (in_turn.loc[1, "hours"], in_turn.loc[1, "speedup"]) == (pytest.approx(28 / 3600), pytest.approx(1.0))
    assert in_turn.loc[2, "hours"] == pytest.approx((10 + 4 + 5) / 3600)
    assert at_once.loc[2, "hours"] == pytest.approx(14 / 3600)  # the others fill the wait for the long one
    assert at_once.loc[2, "efficiency"] == pytest.approx(1.0)


def test_each_notebook_adds_the_runs_that_no_earlier_one_asked_for(tmp_path):
    class Images:
        metadata = range(100)

    store = toy_store(tmp_path)
    store.dataset = Images()
    source = initial_weights(backbone="test_resnet", init="random", seed=0)
    features, probe, other = Features(source=source, image_size=32), Sum(term=1), Sum(term=2, start=Sum(term=1))
    speeds = {("test_resnet", 32): Speed(views_per_s=1.0, images_per_s=50.0)}
    asked = {"01": (store, [features, probe]), "02": (store, [probe]), "03": (store, [other])}
    stages = stages_of(asked)
    assert [list(stage) for stage in stages] == [[features, probe], [other]]
    assert networks_of(stages) == [("test_resnet", 32)]
    assert durations_of(stages[0], speeds) == {features: 2.0 + RUN_SECONDS, probe: RUN_SECONDS}


def test_naps_have_the_shape_and_the_shares_of_time_of_the_runs():
    chain = [Sum(term=1), Sum(term=2, start=Sum(term=1)), Sum(term=3)]
    naps = shape_of(dict(zip(chain, [3.0, 1.0, 4.0], strict=True)), total_s=0.8)
    assert [nap.seconds for nap in naps] == pytest.approx([0.3, 0.1, 0.4])
    assert [nap.start.number if nap.start else None for nap in naps] == [None, 0, None]


def test_a_real_cluster_takes_as_long_as_the_simulation_says(tmp_path):
    naps = fan(6, first=0.6, each=0.5)
    options = {"processes": False, "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(n_workers=1, threads_per_worker=3, **options) as cluster:
        store = toy_store(tmp_path)
        store.get([Sum(term=1)], scheduler=cluster.scheduler_address)  # imports
        started = time.perf_counter()
        store.get(list(naps), scheduler=cluster.scheduler_address)
        seconds = time.perf_counter() - started
    assert simulate(naps, 3) == pytest.approx(1.6)
    assert simulate(naps, 3) <= seconds < simulate(naps, 1)


def test_the_figure_has_a_line_for_each_order_the_ideal_and_the_longest_chain():
    table = scaling_table([fan(8)], [1, 2, 4])
    ax = plot_scaling(table, fan(8), plt.figure().subplots())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [*ORDERS, "ideal", f"longest chain of runs: {11 / 3600:.3g} h"]
    for order, line in zip(ORDERS, ax.lines, strict=False):
        assert list(line.get_ydata()) == list(table.loc[table["order"] == order, "hours"])
    plt.close(ax.figure)
