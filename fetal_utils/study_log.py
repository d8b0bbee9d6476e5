"""The log of a study: what was done when, on the screen and in ``<results_dir>/study.log``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_NAME = "study.log"


class LogFile(logging.FileHandler):
    """A file that takes lines as long as there is space; the screen has them in any case."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on: a full disk is reported by what can't do without it."""


@contextmanager
def study_log(results_dir: Path) -> Iterator[logging.Logger]:
    """A logger whose ``info`` goes to the screen and the file and whose ``debug`` goes to the file alone.

    The file has the time at the start of each line, and each call adds to it.

    Raises
    ------
    OSError
        If the folder can't be made or written to.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    file = LogFile(results_dir / LOG_NAME, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    screen = logging.StreamHandler(sys.stdout)
    screen.setLevel(logging.INFO)
    logger = logging.Logger("study", logging.DEBUG)
    logger.addHandler(file)
    logger.addHandler(screen)
    try:
        yield logger
    finally:
        file.close()


class Listener:
    """A file that hands on the whole lines written to it, the last state of one that was written over."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.rest = ""

    def write(self, text: str) -> None:
        """Take a piece of text; what is not yet a line waits for its end."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if shown := last_state(line):
                self.say(f"    {shown}")

    def flush(self) -> None:
        """Files have it; there is nothing to do."""


def last_state(line: str) -> str:
    """What a terminal shows of a line in which carriage returns go back to its start."""
    return line.rstrip().rpartition("\r")[2].rstrip()
