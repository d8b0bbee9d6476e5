"""The order in which runs are started: a start before what starts from it, what others wait for first."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from fetal_utils.settings import Settings


class Agenda:
    """Runs that are still to be started; its length is their number.

    Of the runs that can start, the one with the longest chain of others behind it goes first, so that a pretraining
    does not begin when all else is finished; equals go in the order given.

    Parameters
    ----------
    missing : sequence of Settings
        Each once, a start before what starts from it; a start that is not among them is finished.
    """

    def __init__(self, missing: Sequence[Settings]) -> None:
        self.starts = starts_among(missing)
        self.followers: dict[Settings, list[Settings]] = defaultdict(list)
        for run, starts in self.starts.items():
            for start in starts:
                self.followers[start].append(run)
        self.places = {run: (-height, i) for i, (run, height) in enumerate(self.heights(missing))}
        self.ready = [(self.places[run], run) for run in missing if not self.starts[run]]
        heapq.heapify(self.ready)
        self.n_left = len(missing)

    def __len__(self) -> int:
        return self.n_left

    def heights(self, missing: Sequence[Settings]) -> list[tuple[Settings, int]]:
        """Each run with the length of the longest chain of runs that wait for it, in the order given."""
        heights: dict[Settings, int] = {}
        for run in reversed(missing):
            heights[run] = max((1 + heights[follower] for follower in self.followers[run]), default=0)
        return [(run, heights[run]) for run in missing]

    def next(self) -> Settings | None:
        """Take the run to start next; None if none can be started before another one is finished."""
        if not self.ready:
            return None
        self.n_left -= 1
        return heapq.heappop(self.ready)[1]

    def put_back(self, run: Settings) -> None:
        """A run that was taken is to be started again."""
        self.n_left += 1
        heapq.heappush(self.ready, (self.places[run], run))

    def finish(self, run: Settings) -> None:
        """A run that was taken is finished: what waited for it alone can start."""
        for follower in self.followers[run]:
            self.starts[follower].discard(run)
            if not self.starts[follower]:
                heapq.heappush(self.ready, (self.places[follower], follower))

    def fail(self, run: Settings) -> list[Settings]:
        """A run that was taken failed: what starts from it, at once or later, is struck off and returned."""
        lost: dict[Settings, None] = {}  # in order, each once
        path = [run]
        while path:
            for follower in self.followers[path.pop()]:
                if follower in self.places and follower not in lost:
                    lost[follower] = None
                    path.append(follower)
        for follower in lost:
            del self.places[follower]  # so that a second failed start does not strike it off again
        self.n_left -= len(lost)
        return list(lost)


def starts_among(runs: Sequence[Settings]) -> dict[Settings, set[Settings]]:
    """For each run, those of the others that it starts from."""
    known = set(runs)
    return {run: known.intersection(run.starts_from()) for run in runs}


def width(runs: Sequence[Settings]) -> int:
    """How many of the runs can be computed at the same time, at most; a start comes before what starts from it."""
    depths: dict[Settings, int] = {}
    for run, starts in starts_among(runs).items():
        depths[run] = max((1 + depths[start] for start in starts), default=0)
    return max(Counter(depths.values()).values(), default=0)


def critical_path(seconds: Mapping[Settings, float]) -> list[Settings]:
    """The chain of runs, each starting from the one before, that takes longest: no number of workers is faster."""
    ends: dict[Settings, float] = {}
    for run, starts in starts_among(list(seconds)).items():
        ends[run] = seconds[run] + max((ends[start] for start in starts), default=0.0)
    path: list[Settings] = []
    last = [max(ends, key=ends.get)] if ends else []
    while last:
        path.append(max(last, key=ends.get))
        last = [start for start in path[-1].starts_from() if start in ends]
    return path[::-1]
