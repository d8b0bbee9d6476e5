"""Time spent in blocks, by a clock that the tests turn."""

from types import SimpleNamespace

import pytest
import torch

from fetal_utils import stopwatch
from fetal_utils.stopwatch import Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock whose ``time`` a test sets, in seconds."""
    clock = SimpleNamespace(time=100.0)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: clock.time))
    return clock


def test_blocks_add_up_and_what_lies_between_does_not_count(clock):
    watch = Stopwatch(CPU)
    assert watch.seconds == 0
    for seconds in (2.0, 0.5, 3.0):
        with watch:
            clock.time += seconds
        clock.time += 50
    assert watch.seconds == 5.5


def test_one_watch_runs_inside_another(clock):
    whole, part = Stopwatch(CPU), Stopwatch(CPU)
    with whole:
        for _ in range(3):
            clock.time += 1
            with part:
                clock.time += 4
    assert (whole.seconds, part.seconds) == (15, 12)


def test_a_block_that_fails_is_counted_and_its_error_goes_on(clock):
    watch = Stopwatch(CPU)
    with pytest.raises(KeyError), watch:
        clock.time += 3
        raise KeyError
    assert watch.seconds == 3


def test_real_time_passes():
    watch = Stopwatch(CPU)
    with watch:
        torch.randn(200, 200).matmul(torch.randn(200, 200))
    assert 0 < watch.seconds < 60


def test_on_an_accelerator_events_are_timed_in_its_queue_and_nothing_waits_before_the_sum(clock, monkeypatch):
    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.time

        def elapsed_time(self, end):  # as torch's: milliseconds
            assert waited
            return 1000 * (end.at - self.at)

    waited = []
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(1))
    watch = Stopwatch(torch.device("cuda"))
    for seconds in (2.0, 0.25):
        with watch:
            clock.time += seconds
        clock.time += 7
    assert waited == []
    assert watch.seconds == pytest.approx(2.25)
