"""Timings: ways to do the same work take turns, and become rates and ratios in one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from matplotlib.axes import Axes

from fetal_utils.palette import FONT_SIZE, INK, colours_for, finish

PERFORMANCE_COLUMNS = ("section", "what", "value", "unit", "low", "high", "n_repeats")
TIMES = "times as fast"  # unit of a ratio


def take_turns(ways: Mapping[str, Callable[[], object]], *, n_repeats: int) -> pd.DataFrame:
    """Seconds that each of several ways to do the same work takes.

    Each is called once untimed, to warm up. Then, in every round, each is called once, so that whatever else
    slows the machine down meets them all.

    Parameters
    ----------
    ways : mapping of str to callable
        Functions without arguments, by name.
    n_repeats : int
        Rounds, at least 1.

    Returns
    -------
    DataFrame, shape (n_repeats, n_ways)
        A column of seconds for each way.

    Raises
    ------
    ValueError
        If there is no way or no round.
    """
    if not ways or n_repeats < 1:
        raise ValueError(f"{len(ways)} ways and n_repeats={n_repeats}: give at least one way and one round")
    for work in ways.values():
        work()
    return pd.DataFrame([{name: seconds_of(work) for name, work in ways.items()} for _ in range(n_repeats)])


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of one call, what it leaves in an accelerator's queue included."""
    wait_for_accelerator()
    started = time.perf_counter()
    work()
    wait_for_accelerator()
    return time.perf_counter() - started


def wait_for_accelerator() -> None:
    """Return when an accelerator, if there is one, has nothing left to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def summarise(values: pd.DataFrame, *, section: str, unit: str) -> pd.DataFrame:
    """Median, lowest and highest of each column over the rounds, in `PERFORMANCE_COLUMNS`."""
    rows = {
        "section": section,
        "what": list(values.columns),
        "value": values.median().to_numpy(),
        "unit": unit,
        "low": values.min().to_numpy(),
        "high": values.max().to_numpy(),
        "n_repeats": len(values),
    }
    return pd.DataFrame(rows)[list(PERFORMANCE_COLUMNS)]


def times_as_fast(seconds: pd.DataFrame, way: str, *, than: Sequence[str]) -> pd.DataFrame:
    """How many times as fast one way is as others, each ratio of two times of one round.

    Parameters
    ----------
    seconds : DataFrame, shape (n_repeats, n_ways)
        As from `take_turns`, for the same work by every way.
    way : str
    than : sequence of str

    Returns
    -------
    DataFrame, shape (n_repeats, len(than))
        Columns ``"<way> : <other>"``; above 1 where ``way`` is faster.

    Raises
    ------
    ValueError
        If a name is no column.
    """
    if unknown := [name for name in (way, *than) if name not in seconds.columns]:
        raise ValueError(f"{unknown} were not timed; there are {list(seconds.columns)}")
    return pd.DataFrame({f"{way} : {other}": seconds[other] / seconds[way] for other in than})


def compare(
    seconds: pd.DataFrame, *, section: str, n_done: int, unit: str, way: str, than: Sequence[str]
) -> pd.DataFrame:
    """The rows of a section: rates of all ways (``n_done`` per call, in ``unit`` per second), then `times_as_fast`."""
    rates = summarise(n_done / seconds, section=section, unit=f"{unit}/s")
    if not than:  # nothing to compare with is installed
        return rates
    ratios = summarise(times_as_fast(seconds, way, than=than), section=section, unit=TIMES)
    return pd.concat([rates, ratios], ignore_index=True)


def plot_ratios(table: pd.DataFrame, ax: Axes) -> Axes:
    """The ratios of a performance table as bars from 1, a colour for each section.

    Parameters
    ----------
    table : DataFrame
        Columns `PERFORMANCE_COLUMNS`; rows of another unit than `TIMES` are passed over.
    ax : Axes
        To draw on; returned.

    Raises
    ------
    ValueError
        If there is no ratio.
    """
    rows = table[table["unit"] == TIMES].iloc[::-1]  # the first on top
    if rows.empty:
        raise ValueError(f"no row of the table has the unit {TIMES!r}: nothing was compared")
    colours = rows["section"].map(colours_for(list(rows["section"].unique())))
    whiskers = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    ax.set_xscale("log")
    ax.barh(range(len(rows)), rows["value"] - 1, left=1, color=colours, xerr=whiskers, ecolor=INK, capsize=2)
    for y, (value, high) in enumerate(zip(rows["value"], rows["high"], strict=True)):
        place = (max(value, high, 1), y)
        ax.annotate(f"{value:.3g}", place, (6, 0), textcoords="offset points", va="center", fontsize=FONT_SIZE - 1)
    ax.set_yticks(range(len(rows)), rows["section"] + ": " + rows["what"])
    ax.axvline(1, color=INK, linewidth=0.8)
    ax.margins(x=0.12)
    ax.xaxis.set_major_formatter("{x:g}")
    return finish(ax, xlabel="times as fast (log scale; whisker: range of the rounds)", grid="x")
