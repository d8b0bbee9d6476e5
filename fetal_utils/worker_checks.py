"""What the workers of a cluster must share with whoever asks them for runs, and whether they do."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fetal_utils.dataset import Dataset
from fetal_utils.environment import commit, versions

if TYPE_CHECKING:
    from distributed import Client

    from fetal_utils.runs import RunStore


class UnfitWorkerError(RuntimeError):
    """A worker does not share what it must; ``args`` are its address and the reason."""

    def __str__(self) -> str:
        return f"worker {' '.join(self.args)}"


@dataclass(frozen=True)
class Site:
    """What a worker must find as the one who asks has it.

    Attributes
    ----------
    results_dir : Path
        Absolute.
    token : str
        Name of a file in ``results_dir`` that holds its own name.
    dataset : Dataset
    data_key : str
        Key of the data set, as it was computed where the runs were asked for.
    results_version : int
        `fetal_utils.runs.RESULTS_VERSION` there.
    versions : tuple of (str, str)
        Of Python and packages, there.
    commit : str
        Of the repository, there.
    """

    results_dir: Path
    token: str
    dataset: Dataset
    data_key: str
    results_version: int
    versions: tuple[tuple[str, str], ...]
    commit: str

    def obstacle(self) -> str:
        """Why this process can't compute runs for the site; an empty string if it can."""
        from fetal_utils.runs import RESULTS_VERSION  # which imports this module

        if self.results_version != RESULTS_VERSION:
            return (
                f"has other code, whose results are of version {RESULTS_VERSION} and not {self.results_version}; "
                "bring it to the same commit"
            )
        try:
            token = (self.results_dir / self.token).read_text(encoding="utf-8")
        except OSError:
            token = ""
        if token != self.token:
            return f"does not see the results folder {self.results_dir}; share it with every worker, under that path"
        if not os.access(self.results_dir, os.W_OK):
            return f"can't write into the results folder {self.results_dir}"
        return self.data_obstacle()

    def data_obstacle(self) -> str:
        """Why this process does not have the site's data; an empty string if it has."""
        try:
            key = self.dataset.key
        except (OSError, ValueError) as error:
            return f"can't read the data: {error}"
        if key != self.data_key:
            return f"reads other data as {self.dataset.title!r}: its key is {key}, expected {self.data_key}"
        return ""

    def differences(self) -> list[str]:
        """What may give other numbers here than where the runs were asked for."""
        own = versions() | {"commit": commit()}
        asked = dict(self.versions) | {"commit": self.commit}
        return [f"{name} {own.get(name)} and not {value}" for name, value in asked.items() if own.get(name) != value]


@contextmanager
def open_site(store: RunStore) -> Iterator[Site]:
    """A store's site; its token lies in the results folder until the end."""
    from fetal_utils.runs import RESULTS_VERSION  # which imports this module

    token = f".workers-{uuid.uuid4().hex}"
    folder = store.results_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / token).write_text(token, encoding="utf-8")
    try:
        dataset = store.dataset
        yield Site(folder, token, dataset, dataset.key, RESULTS_VERSION, tuple(versions().items()), commit())
    finally:
        (folder / token).unlink(missing_ok=True)


def check_workers(client: Client, site: Site) -> None:
    """Ask every worker that is there whether it shares the site; other versions are a warning.

    Raises
    ------
    UnfitWorkerError
        If any does not, with the reason of each.
    """
    answers = client.run(look_around, site, on_error="return")
    unfit = {address: reason for address, answer in answers.items() if (reason := reason_of(answer))}
    if unfit:
        address, reason = next(iter(unfit.items()))
        others = "".join(f"\n  {address} {reason}" for address, reason in list(unfit.items())[1:])
        raise UnfitWorkerError(address, f"{reason} ({len(unfit)} of {len(answers)} workers can't compute){others}")
    for address, (_, differences) in answers.items():
        if differences:
            print(f"warning: worker {address} has {', '.join(differences)}", file=sys.stderr, flush=True)


def reason_of(answer: object) -> str:
    """Why a worker that gave this answer is unfit; empty if it is fit."""
    if isinstance(answer, BaseException):
        return f"can't run this package's code ({answer}); install the same commit there"
    return answer[0]


@lru_cache(maxsize=2)
def find_obstacle(site: Site) -> str:
    """On a worker: `Site.obstacle`, looked for once; a call that asks for runs has a site of its own."""
    return site.obstacle()


async def look_around(site: Site) -> tuple[str, list[str]]:
    """On a worker: `Site.obstacle` and `Site.differences`, in a thread, so that its heartbeat goes on."""
    obstacle = await asyncio.to_thread(find_obstacle, site)
    where = f"on {socket.gethostname()} " if obstacle else ""
    return where + obstacle, await asyncio.to_thread(site.differences)
