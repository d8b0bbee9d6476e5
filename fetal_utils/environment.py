"""What a computation runs on: device, seeds, versions, progress, and files that are written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "timm", "kornia", "scikit-learn", "numpy", "pandas")
LINE_INTERVAL_S = 30.0  # between lines of a bar that nobody watches
FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # nothing else can be written there either
TEXT_COLUMNS = (
    "image_name", "operator", "machine", "true", "predicted", "plane", "brain_plane", "task", "strategy", "baseline",
    "name", "label", "reason",
)  # fmt: skip


class StorageError(OSError):
    """A folder can't take what is to be written: full, read-only, over its quota, or another user's."""


def project_path(path: str | Path) -> Path:
    """A notebook's path, "~" expanded: absolute as it is, relative from the repository root, wherever it is run."""
    return PROJECT_ROOT / Path(path).expanduser()


def pick_device(device: str = "auto") -> torch.device:
    """The device to compute on: "auto" takes the accelerator that torch finds, else the CPU.

    Raises
    ------
    ValueError
        If torch has no such device here.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} can't be used here ({reason}); 'auto' takes what is there") from None
    return torch.device(device)


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch; only a notebook's setup cell calls this."""
    if seed < 0:
        raise ValueError(f"seed={seed}: expected 0 or more")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that draw from the global one)
    torch.manual_seed(seed)


def torch_generator(*seeds: int) -> torch.Generator:
    """A CPU generator seeded by several numbers together, say a run's seed and a purpose.

    Give the same count of numbers everywhere: trailing zeros do not count, so ``(7,)`` is ``(7, 0)``.
    """
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


@cache
def commit() -> str:
    """The repository's commit when first asked, with "+changes" if files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe_environment(
    results_dir: str | Path, *, device: torch.device | str = "cpu", **facts: object
) -> pd.DataFrame:
    """What a notebook runs on: ``facts``, then results folder, device, threads and versions, one row each."""
    folder, device = project_path(results_dir), torch.device(device)
    existing = next(one for one in (folder, *folder.parents) if one.is_dir())
    rows = facts | {
        "results": f"{folder}, {shutil.disk_usage(existing).free / 2**30:,.0f} GiB of disk free",
        "device": f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device),
        "CPU": f"{torch.get_num_threads()} of {os.cpu_count()} cores in use by torch",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": commit(),
    }
    return pd.DataFrame({"": {name: str(value) for name, value in rows.items()}})


def progress_bar(*, total: int, desc: str, unit: str, show: bool = True, **options) -> tqdm:
    """A bar with the time left; where nobody watches (a log, an executed notebook), a line every 30 s at most."""
    is_kernel = "ipykernel.kernelapp" in sys.modules
    front_end = any(name == "JPY_SESSION_NAME" or name.startswith("VSCODE_") for name in os.environ)
    if front_end if is_kernel else sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=unit, disable=not show, mininterval=0.2, **options)
    interval = {"mininterval": LINE_INTERVAL_S, "maxinterval": LINE_INTERVAL_S}
    return tqdm(total=total, desc=desc, unit=unit, disable=not show, ascii=True, **interval, **options)


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next arrays; where glibc is not, nothing changes.

    Giving every large array back to the system and asking for it again costs a training step on a CPU up to half of
    its time. `return_freed_memory` is the other half of the bargain.
    """
    if libc := find_glibc():
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_max, 0)  # no array gets a mapping of its own, which would end with it


def return_freed_memory() -> None:
    """Give what is kept back to the system: between runs, which differ in the sizes of their arrays."""
    if libc := find_glibc():
        libc.malloc_trim(0)


def find_glibc() -> ctypes.CDLL | None:
    """This process's C library if it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it: readers see the old file or the new one.

    What is written has reached the disk before it gets its name. If ``write`` raises, ``path`` stays as it was.

    Raises
    ------
    StorageError
        If the disk is full or read-only, whatever ``write`` made of that.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # several processes may write the same file
    try:
        with storage_errors(path):
            try:
                write(beside)
                append(beside, b"")
            except Exception as error:
                raise_disk_error(error, beside)
                raise
            beside.replace(path)
    finally:
        with suppress(OSError):  # on a file system that has become read-only it stays
            beside.unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Write some more to a file, down to the disk."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def raise_disk_error(error: Exception, beside: Path) -> None:
    """Raise the system's error about the disk that lies behind a library's own error, if one does.

    safetensors tells its number in words, NumPy that there is not "enough free space"; torch says nothing of a disk,
    but leaves the file, to which nothing more can be written.
    """
    if getattr(error, "errno", None) is not None:
        return
    number = re.search(r"\(os error (\d+)\)", str(error))
    code = int(number[1]) if number else errno.ENOSPC if "free space" in str(error) else 0
    if code:
        raise OSError(code, os.strerror(code)) from error
    append(beside, bytes(2**16))


@contextmanager
def storage_errors(path: str | Path) -> Iterator[None]:
    """Turn the system's errors about the disk at ``path`` into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in FULL_OR_READ_ONLY:
            raise
        raise StorageError(error.errno, storage_message(path, error)) from error


def storage_message(path: str | Path, error: OSError) -> str:
    """Which file or folder can't be written, why, and what to do."""
    return (
        f"{path} can't be written: {error.strerror}. Make room, or make it writable, or give another results folder; "
        "then run the same again: what was finished is kept"
    )


def check_writable(folder: str | Path) -> None:
    """Make a folder if need be and write a file into it for a moment; StorageError with the reason if that fails."""
    folder = Path(folder)
    beside = folder / f".{secrets.token_hex(4)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        append(beside, bytes(2**16))
    except OSError as error:
        raise StorageError(error.errno, storage_message(folder, error)) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict) -> None:
    """A dictionary as a file, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> dict:
    """A dictionary from a file; ValueError that names the file if it is broken."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor text
        raise ValueError(f"{path} is broken ({error}); delete that folder and run the same again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is broken (no dictionary); delete that folder and run the same again")
    return content


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """A table as CSV, whole or not at all."""
    replace_file(path, lambda beside: table.to_csv(beside, index=False))


def read_table(path: str | Path) -> pd.DataFrame:
    """A table as `write_table` wrote it: `TEXT_COLUMNS` stay text, also "0001", "NA" and ""; elsewhere "" is NaN."""
    columns = pd.read_csv(path, nrows=0).columns
    empty = {name: [""] for name in columns if name not in TEXT_COLUMNS}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=empty)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which batch systems send before they kill, end the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("terminated")

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
