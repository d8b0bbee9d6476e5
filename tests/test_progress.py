"""Progress bars: lines in a log, bars that move where somebody sees them."""

import io
import sys

import pytest
import tqdm.auto

from fetal_utils import environment, progress
from fetal_utils.environment import bars_can_move, progress_bar
from fetal_utils.progress import LINE_INTERVAL_S, ProgressLines


class Clock:
    """A time that passes only when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def run_bar(clock, *, n_updates, seconds_each, **options):
    """A bar that is updated at a steady pace; the lines that it wrote."""
    file = io.StringIO()
    bar = ProgressLines(total=n_updates, desc="runs", unit="run", file=file, **options)
    bar._time = clock  # tqdm took its own before
    bar.start_t = bar.last_print_t = clock.now
    for _ in range(n_updates):
        clock.now += seconds_each
        bar.update()
        bar.set_postfix_str("fine_tune")
    bar.close()
    text = file.getvalue()
    assert "\r" not in text
    assert text == "" or text.endswith("\n")
    return text.splitlines()


def test_a_quick_bar_that_stays_writes_its_first_and_its_last_line(clock):
    lines = run_bar(clock, n_updates=1000, seconds_each=0.001)
    assert [line.split("[")[0] for line in lines] == ["runs:   0% 0/1000 ", "runs: 100% 1000/1000 "]


def test_a_quick_bar_that_vanishes_writes_nothing(clock):
    assert run_bar(clock, n_updates=1000, seconds_each=0.001, leave=False) == []


@pytest.mark.parametrize(("leave", "around"), [(True, 2), (False, 0)])
def test_a_long_bar_writes_a_line_for_each_interval(clock, leave, around):
    n_intervals = 10
    lines = run_bar(clock, n_updates=n_intervals * 30, seconds_each=LINE_INTERVAL_S / 30 + 1e-6, leave=leave)
    assert len(lines) == n_intervals + around
    assert "150/300 [02:30<02:30," in lines[5 if leave else 4]
    assert "fine_tune" in lines[-1]


def test_a_slow_bar_writes_a_line_for_each_update(clock):
    assert len(run_bar(clock, n_updates=4, seconds_each=100.0, leave=False)) == 4


def test_a_hidden_bar_writes_nothing_and_still_counts(clock, capsys):
    with ProgressLines(total=3, desc="runs", unit="run", disable=True) as bar:
        clock.now += 1000
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_what_is_iterated_over_comes_out_whole(clock):
    file = io.StringIO()
    assert list(ProgressLines("abc", desc="letters", file=file)) == ["a", "b", "c"]
    assert "3/3" in file.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("is_kernel", "is_watched", "is_terminal", "moves"),
    [
        (True, True, False, True),  # JupyterLab
        (True, False, False, False),  # an executed notebook
        (False, False, True, True),  # a terminal
        (False, True, True, True),  # an editor's terminal
        (False, True, False, False),  # a log file, typed in an editor's terminal
        (False, False, False, False),
    ],
)
def test_bars_move_only_where_somebody_sees_them(monkeypatch, is_kernel, is_watched, is_terminal, moves):
    if is_kernel:
        monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", None)
    else:
        monkeypatch.delitem(sys.modules, "ipykernel.kernelapp", raising=False)
    monkeypatch.setattr(environment, "somebody_watches", lambda: is_watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert bars_can_move() is moves
    with progress_bar(total=1, desc="runs", unit="run", show=False) as bar:
        assert type(bar) is (tqdm.auto.tqdm if moves else ProgressLines)
