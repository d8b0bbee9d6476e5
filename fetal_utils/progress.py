"""Progress where nobody watches it move: whole lines, few of them, with what is left."""

from __future__ import annotations

import time

from tqdm.std import tqdm

LINE_INTERVAL_S = 30.0


class ProgressLines(tqdm):
    """A tqdm that writes a line every `LINE_INTERVAL_S` at most, for logs and executed notebooks.

    A bar that would stay on a screen (``leave=True``) has a first line and a last one as well; one that would vanish
    has none unless it lasts longer than the interval.
    """

    def __init__(self, *arguments, leave: bool = True, **options) -> None:
        self.ends_with_line = leave
        self.line_s = float("-inf") if leave else time.monotonic()  # when the last line was written
        options |= {
            "mininterval": LINE_INTERVAL_S,
            "maxinterval": LINE_INTERVAL_S,
            "bar_format": "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        }
        # a vanishing bar below the first row, so that closing it writes nothing
        super().__init__(*arguments, leave=False, position=1, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line, unless the last one is too fresh; postfixes and tqdm's own monitor ask for more of them."""
        now = time.monotonic()
        if msg != "" and now - self.line_s >= LINE_INTERVAL_S:
            self.line_s = now
            self.write_line()

    def write_line(self) -> None:
        """Write how far it is."""
        print(str(self).rstrip(), file=self.fp, flush=True)

    def close(self) -> None:
        """Write the last line, if the bar is one that stays."""
        if self.ends_with_line and not self.disable:
            self.write_line()
        super().close()
