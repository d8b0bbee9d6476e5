"""Files that appear whole or not at all, and folders that can't take them."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROBE_BYTES = 2**16

REASONS = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file is larger than this process or file system may write (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
}
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # nothing else that is written there would work


class StorageError(OSError):
    """A folder can't take what is to be written: full, read-only or another user's."""


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it: readers see the old file or the new one.

    What is written has reached the disk before it gets its name, so that neither a machine that loses power nor a
    full file server leaves a short file.

    Parameters
    ----------
    path : path
        The file to make or replace.
    write : callable
        Takes the path of the file beside it. If it raises, that file is removed and ``path`` stays as it was.

    Raises
    ------
    StorageError
        If the disk is full or read-only, whatever ``write`` made of that.
    """
    path = Path(path)
    # several threads, processes and machines may write the same file
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with storage_errors(path, beside=beside):
            try:
                write(beside)
                flush(beside)
            except Exception as error:
                if getattr(error, "errno", None) is None:
                    raise_disk_error(error, beside)
                raise
            beside.replace(path)
    finally:
        with suppress(OSError):  # on a file system that has become read-only it stays
            beside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def raise_disk_error(error: Exception, beside: Path) -> None:
    """Raise the system's error about the disk that lies behind a library's own error, if one does.

    safetensors tells its number in words, NumPy that there is not "enough free space"; torch's says nothing of a
    disk, but leaves the file, to which nothing more can be written.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    code = int(number[1]) if number else errno.ENOSPC if "free space" in str(error) else 0
    if code:
        raise OSError(code, os.strerror(code)) from error
    probe(beside)


def probe(path: Path) -> None:
    """Write some more to a file, down to the disk; an OSError if that can't be done."""
    with path.open("ab") as file:
        file.write(bytes(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def storage_errors(path: str | Path, *, beside: Path | None = None) -> Iterator[None]:
    """Turn the system's errors about the disk at ``path`` into a StorageError that says what to do.

    ``beside`` is a file that goes if it could not be finished: its space counts as free.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        raise StorageError(storage_message(Path(path), error, beside)) from error


def storage_message(path: Path, error: OSError, beside: Path | None = None) -> str:
    """Which file or folder, why not, how much is free, and what to do."""
    reason = REASONS.get(error.errno, error.strerror)
    with suppress(OSError):
        folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
        n_bytes = shutil.disk_usage(folder).free + (beside.stat().st_size if beside and beside.exists() else 0)
        reason += f" ({n_bytes / 2**20:,.1f} MiB free{', more is needed' if beside else ''})"
    return (
        f"{path} can't be written: {reason}. Make room, or make it writable, or give another results folder; then "
        "run the same again: what was finished is kept"
    )


def check_writable(folder: str | Path) -> None:
    """Make a folder if need be and write a file into it for a moment.

    Raises
    ------
    StorageError
        If that can't be done, with the reason.
    """
    folder = Path(folder)
    beside = folder / f".{secrets.token_hex(4)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe(beside)
    except OSError as error:
        raise StorageError(storage_message(folder, error)) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
