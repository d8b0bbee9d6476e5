"""Timings: what is timed when, what becomes of the seconds, and that no speed-up changes a result."""

import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from fetal_utils import benchmarks, speedups
from fetal_utils.benchmarks import (
    PERFORMANCE_COLUMNS,
    TIMES,
    compare,
    plot_ratios,
    summarise,
    take_turns,
    times_as_fast,
)
from fetal_utils.contrast import SimCLR, contrast_step
from fetal_utils.depthwise import DepthwiseConv2d
from fetal_utils.environment import torch_generator
from fetal_utils.models import build_encoder
from fetal_utils.optimisers import build_optimiser, warmup_cosine
from fetal_utils.palette import colours_for
from fetal_utils.speedups import SPEEDUPS, build_step, in_fresh_process, slow_depthwise, time_speedups, time_steps

BACKBONE = "test_efficientnet"
STEP = {"backbone": BACKBONE, "image_size": 32, "batch_size": 4, "n_steps": 2, "seed": 0}
SECONDS = pd.DataFrame({"ours": [1.0, 2.0], "theirs": [2.0, 8.0]})


def test_every_way_warms_up_once_and_then_all_take_turns():
    calls = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, n_repeats=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert list(seconds.columns) == ["a", "b"]
    assert len(seconds) == 2


def test_the_seconds_are_those_of_the_call_and_the_warm_up_is_not_among_them(monkeypatch):
    clock = SimpleNamespace(now=0.0, calls=0)

    def work():
        clock.calls += 1
        clock.now += {1: 100.0, 2: 3.0, 3: 5.0}[clock.calls]

    monkeypatch.setattr(benchmarks, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert take_turns({"work": work}, n_repeats=2)["work"].tolist() == [3.0, 5.0]


@pytest.mark.parametrize(("ways", "n_repeats"), [({}, 3), ({"a": print}, 0)])
def test_nothing_to_time_is_refused(ways, n_repeats):
    with pytest.raises(ValueError, match="at least one way and one round"):
        take_turns(ways, n_repeats=n_repeats)


def test_a_row_holds_the_median_the_lowest_and_the_highest_round():
    (row,) = summarise(pd.DataFrame({"x": [5.0, 1.0, 3.5]}), section="views", unit="s").itertuples(index=False)
    assert row._asdict() == dict(zip(PERFORMANCE_COLUMNS, ("views", "x", 3.5, "s", 1.0, 5.0, 3), strict=True))


def test_a_ratio_is_of_two_times_of_one_round():
    ratios = times_as_fast(SECONDS, "ours", than=["theirs"])
    assert ratios["ours : theirs"].tolist() == [2.0, 4.0]  # the medians' ratio would be 5 / 1.5


def test_a_way_that_was_not_timed_is_named():
    with pytest.raises(ValueError, match=r"\['mine'\] were not timed; there are \['ours', 'theirs'\]"):
        times_as_fast(SECONDS, "ours", than=["mine"])


def test_a_section_has_the_rate_of_every_way_and_then_the_ratios():
    table = compare(SECONDS, section="step", n_done=16, unit="images", way="ours", than=["theirs"])
    assert table["what"].tolist() == ["ours", "theirs", "ours : theirs"]
    assert table["unit"].tolist() == ["images/s", "images/s", TIMES]
    assert table["value"].tolist() == [12.0, 5.0, 3.0]  # of 16 and 8, of 8 and 2, of 2 and 4
    assert tuple(table.columns) == PERFORMANCE_COLUMNS


def test_a_section_with_nothing_to_compare_has_rates_alone():
    table = compare(SECONDS, section="step", n_done=16, unit="images", way="ours", than=[])
    assert table["unit"].tolist() == ["images/s", "images/s"]


def test_no_speed_up_changes_the_losses_of_the_steps():
    views = torch.rand(2, 4, 1, 32, 32, generator=torch_generator(0, 0)).unbind()
    losses = np.empty((len(SPEEDUPS), 3))
    for row, chosen in zip(losses, SPEEDUPS.values(), strict=True):
        step = build_step(chosen, views, backbone=BACKBONE, seed=0)
        row[:] = [step().item() for _ in row]
    assert (np.diff(losses) < 0).all()
    assert losses == pytest.approx(np.tile(losses[0], (len(SPEEDUPS), 1)), rel=1e-3)


def test_the_timed_step_is_the_step_of_a_pretraining():
    views = torch.rand(2, 4, 1, 32, 32, generator=torch_generator(0, 0)).unbind()
    step = build_step(SPEEDUPS["all three"], views, backbone=BACKBONE, seed=0)
    model = SimCLR(build_encoder(BACKBONE, init="random", seed=0), projection_dim=128, seed=0)
    model.to(memory_format=torch.channels_last)
    optimiser = build_optimiser(model, lr=5e-4, weight_decay=1e-4)
    schedule = warmup_cosine(optimiser, n_steps=1000, n_warmup=0)
    expected = [contrast_step(model, optimiser, schedule, *views, temperature=0.1)[0].item() for _ in range(2)]
    assert expected[1] < expected[0]
    assert [step().item(), step().item()] == pytest.approx(expected, rel=1e-5)


def test_slow_depthwise_undoes_what_build_encoder_did_and_keeps_the_weights():
    encoder = build_encoder(BACKBONE, init="random", seed=0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert any(isinstance(layer, DepthwiseConv2d) for layer in encoder.modules())
    slow_depthwise(encoder)
    assert not any(isinstance(layer, DepthwiseConv2d) for layer in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_every_way_takes_its_turn_in_a_process_of_its_own(monkeypatch):
    asked = []

    def pretend(function, name, **step):
        asked.append(name)
        assert function is time_steps
        assert step == STEP
        return float(len(asked))

    monkeypatch.setattr(speedups, "in_fresh_process", pretend)
    seconds = time_speedups(n_repeats=2, **STEP)
    assert asked == [*SPEEDUPS, *SPEEDUPS]
    assert list(seconds.columns) == list(SPEEDUPS)
    assert seconds["all three"].tolist() == [1.0, 1.0 + len(SPEEDUPS)]


@pytest.mark.parametrize(("name", "n_asked"), [("all three", 1), ("without kept memory", 0), ("none of them", 0)])
def test_memory_is_kept_only_where_it_is_asked_for(name, n_asked, monkeypatch):
    asked = []
    monkeypatch.setattr(speedups, "keep_freed_memory", lambda: asked.append(1))
    assert time_steps(name, **STEP) > 0
    assert len(asked) == n_asked


def test_a_fresh_process_is_another_one_each_time_and_no_child_of_this_one():
    assert len({os.getpid(), in_fresh_process(os.getpid), in_fresh_process(os.getpid)}) == 3
    server = in_fresh_process(os.getppid)
    assert in_fresh_process(os.getppid) == server != os.getpid()


def test_an_error_in_a_fresh_process_is_raised_here_and_a_killed_one_is_said_to_be():
    with pytest.raises(KeyError, match="all four"):
        in_fresh_process(time_steps, "all four", **STEP)
    with pytest.raises(RuntimeError, match=r"_exit ended without a result \(exit code 3\)"):
        in_fresh_process(os._exit, 3)


class TestPlotRatios:
    table = pd.concat(
        [
            summarise(pd.DataFrame({"a": [2.0, 3.0, 7.0], "b": [0.5, 0.5, 0.5]}), section="views", unit=TIMES),
            summarise(pd.DataFrame({"c": [9.0]}), section="step", unit="%"),
            summarise(pd.DataFrame({"d": [4.0]}), section="step", unit=TIMES),
        ]
    )

    def test_each_ratio_is_a_bar_from_1_in_the_colour_of_its_section_and_the_first_is_on_top(self):
        ax = plot_ratios(self.table, Figure().add_subplot())
        ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
        assert ends == pytest.approx([4.0, 0.5, 3.0])  # from below
        assert [label.get_text() for label in ax.get_yticklabels()] == ["step: d", "views: b", "views: a"]
        colours = colours_for(["step", "views"])
        expected = [to_rgba(colours[section]) for section in ("step", "views", "views")]
        assert [bar.get_facecolor() for bar in ax.patches] == expected

    def test_the_whisker_spans_the_rounds(self):
        ax = plot_ratios(self.table, Figure().add_subplot())
        (whiskers,) = ax.collections
        assert np.array(whiskers.get_segments())[-1][:, 0].tolist() == pytest.approx([2.0, 7.0])

    def test_a_table_without_ratios_is_refused(self):
        with pytest.raises(ValueError, match="nothing was compared"):
            plot_ratios(self.table[self.table["unit"] == "%"], Figure().add_subplot())
