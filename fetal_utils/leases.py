"""Leases: which live process computes a run, so that several may share a results folder.

Caches of images and the phantom keep the operating system's locks: they take minutes, not hours, nobody needs to be
told who builds them, and whoever comes second checks what is there.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil
from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

LEASE_S = 60.0  # an owner without a sign of life for so long has lost its lease; it gives six of them in that time


@dataclass(frozen=True)
class Owner:
    """The process that a lease names."""

    user: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.user}@{self.host}, pid {self.pid}"


class LeaseLostError(RuntimeError):
    """The process was paused for longer than its lease; another one may have taken over."""


class Lease:
    """A claim to a run, held by one process at a time and kept up by a thread that touches its file.

    A dead owner's lease is free at once where that was a process of this machine, else when its file was not touched
    for ``lease_s``, by the waiting process's own clock. Unlike a lock of the operating system it names its owner,
    also to other machines, and needs no more of a shared file system than that files are created by one of many.

    A lease is no guarantee: a process that was paused for longer finds it gone when it goes on. It is to ask by `check`
    before it writes, and what it writes in between must be what its successor would write too.

    Parameters
    ----------
    path : path
        Of the file that is there while the lease is held.
    lease_s : float
        The same for all who ask for that path.
    """

    held_here: ClassVar[set[str]] = set()  # tokens of the claims of this process

    def __init__(self, path: str | Path, *, lease_s: float = LEASE_S) -> None:
        self.path, self.lease_s = Path(path), lease_s
        self.marker = SoftFileLease(path, lease_duration=lease_s, heartbeat_interval=lease_s / 6)
        self.seen, self.seen_at = None, 0.0  # the file when it last changed, and when that was, as watched from here

    def acquire(self) -> bool:
        """Take the lease without waiting; False while another live process, or one that may live, holds it.

        Raises
        ------
        OSError
            If the file can't be written.
        """
        return self.try_marker() or (self.abandoned() and self.set_aside() and self.try_marker())

    def try_marker(self) -> bool:
        """One attempt of the library's, which also takes over what a dead process left, where it can."""
        with suppress(Timeout, LeaseSettingsMismatch):  # the latter of a version with another `LEASE_S`
            self.marker.acquire(blocking=False)
            self.held_here.add(self.marker.token)
            return True
        return False

    def abandoned(self) -> bool:
        """Whether the file has outlived a lease, or is this process's own and could not be removed.

        The library leaves two kinds alone: an empty file, which a crash of the machine can leave, and any on a file
        system that can't swap two names in one step, such as NFS.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        look = found.st_ino, found.st_mtime_ns
        if look != self.seen:
            self.seen, self.seen_at = look, time.monotonic()
        owner = self.marker.owner
        if owner and self.marker.is_lock_held_by_us and owner.token not in self.held_here:
            return True  # from before the file system became read-only for a while
        return time.monotonic() - self.seen_at > 1.2 * self.lease_s  # the library goes first

    def set_aside(self) -> bool:
        """Take the abandoned file away; of several who try, one does. False if it was a living one after all."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.abandoned")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return False
        found = aside.stat()
        is_it = (found.st_ino, found.st_mtime_ns) == self.seen
        if not is_it:
            with suppress(FileExistsError):  # then its owner has lost the lease, and learns that by `check`
                os.link(aside, self.path)
        aside.unlink()
        return is_it

    def held(self) -> bool:
        """Whether the file still names this claim; looked up on the disk, now."""
        for patience_s in (0.2, 0.0):  # who judges a lease may have its file aside for a moment
            owner = self.marker.owner
            if owner is not None and owner.token == self.marker.token:
                return True
            time.sleep(patience_s)
        return False

    def check(self) -> None:
        """Raise a LeaseLostError if the lease is no longer held."""
        if not self.held():
            successor = read_owner(self.path)
            raise LeaseLostError(
                f"lease {self.path.name} was lost: no sign of life for {self.lease_s:g} s, as after a pause of the "
                f"machine; {f'{successor} has taken over' if successor else 'its file is gone'}"
            )

    def release(self) -> None:
        """Give the lease back; a successor's is left alone."""
        self.held_here.discard(self.marker.token)
        self.marker.release()


def read_owner(path: str | Path) -> Owner | None:
    """Who holds or held the lease of that file; None without one."""
    record = SoftFileLease(path).owner
    if record is None:
        return None
    host = record.hostname.partition("?")[0]  # a container's name goes on with its namespace
    return Owner(user=user_of(Path(path)), host=host, pid=record.pid)


def user_of(path: Path) -> str:
    """Name of the user that a file belongs to, or a question mark where there is none."""
    try:
        return path.owner()
    except (KeyError, OSError, NotImplementedError):  # no such user here, file gone, or Windows
        return "?"


def live_owner(path: str | Path, *, lease_s: float = LEASE_S) -> Owner | None:
    """The owner of a lease unless it is gone; only looks, for lists.

    Gone is a process of this machine that ended, and any whose last sign of life is older than ``lease_s`` by
    this machine's clock.
    """
    owner = read_owner(path)
    try:
        silent_s = time.time() - Path(path).stat().st_mtime
    except FileNotFoundError:
        return None
    ended = owner is not None and owner.host == socket.gethostname() and not psutil.pid_exists(owner.pid)
    return None if ended or silent_s > lease_s else owner
