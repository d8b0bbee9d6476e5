"""Time spent in a part of the code, on an accelerator too."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Adds up the time spent in ``with`` blocks.

    On an accelerator, which works behind the program's back, events in its queue are timed and nothing waits
    until ``seconds`` is read.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        self.laps: list[tuple] = []

    def now(self) -> float | torch.Event:
        if self.on_cpu:
            return time.perf_counter()
        event = torch.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> Stopwatch:
        self.start = self.now()
        return self

    def __exit__(self, *_: object) -> None:
        self.laps.append((self.start, self.now()))

    @property
    def seconds(self) -> float:
        """Sum of all blocks so far."""
        if self.on_cpu:
            return sum(end - start for start, end in self.laps)
        torch.accelerator.synchronize()
        return sum(start.elapsed_time(end) for start, end in self.laps) / 1000
