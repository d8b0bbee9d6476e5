"""What a computation runs on: device, seeds, versions, progress, and files that are written whole or not at all."""

import ctypes
import errno
import hashlib
import json
import os
import platform
import random
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tqdm.auto

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "timm", "kornia", "scikit-learn", "numpy", "pandas")
LINE_INTERVAL_S = 30.0  # between lines of a bar that nobody watches
# what the system, or NumPy, says of a disk to which nothing else can be written either; other libraries repeat it
FULL_OR_READ_ONLY = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)]
FULL_OR_READ_ONLY += ["Not enough free space"]
TEXT_COLUMNS = [
    "image_name", "operator", "machine", "true", "predicted", "plane", "brain_plane", "task", "strategy", "baseline",
    "protocol", "metric", "kind", "key", "data_key", "verdict", "family", "reading", "note", "device", "method", "map",
    "score", "label", "name", "setting", "reason", "state", "commit", "group", "variant",
]  # fmt: skip


class StorageError(OSError):
    """A disk can't take what is to be written: it is full, read-only or over its quota."""


def project_path(path: str | Path) -> Path:
    """A notebook's path, "~" expanded: absolute as it is, relative from the repository root, wherever it is run."""
    return PROJECT_ROOT / Path(path).expanduser()


def pick_device(device: str = "auto") -> torch.device:
    """A torch device by its name; "auto" takes the accelerator that torch finds, else the CPU. ValueError if absent."""
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} can't be used here ({reason}); 'auto' takes what is there") from None


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch; only a notebook's setup cell calls this."""
    np.random.seed(seed)  # noqa: NPY002 (libraries draw from the global one); ValueError from NumPy if negative
    random.seed(seed)
    torch.manual_seed(seed)


def torch_generator(*seeds: int) -> torch.Generator:
    """A CPU generator seeded by several numbers, say a run's seed and a purpose; trailing zeros do not count."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


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


@cache
def code_key() -> str:
    """A hash of this package's source when first asked; unlike `commit` it ignores an edited notebook."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()[:12]


def describe_environment(results_dir: str | Path, *, device: torch.device | str = "cpu", **facts) -> pd.DataFrame:
    """What a notebook runs on: ``facts``, then results folder, device, threads and versions, to be shown as a table."""
    device = torch.device(device)
    rows = facts | {
        "results": project_path(results_dir),
        "device": f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device,
        "CPU": f"{torch.get_num_threads()} of {os.cpu_count()} cores in use by torch",
    }
    return pd.DataFrame({"": rows | versions()}).astype(str)


class ProgressLines(tqdm.std.tqdm):
    """A bar for logs and executed notebooks: whole lines of text, which stay."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg != "":  # which would clear the line
            print(str(self).rstrip(), file=self.fp, flush=True)


def somebody_watches() -> bool:
    """Whether an application with a screen, Jupyter's server or VS Code, started this kernel."""
    return any(name == "JPY_SESSION_NAME" or name.startswith("VSCODE_") for name in os.environ)


def progress_bar(*, show: bool = True, leave: bool = True, **options) -> tqdm.std.tqdm:
    """tqdm's bar; where nobody watches (a log, an executed notebook), a line every 30 s at most."""
    options |= {"disable": not show, "leave": leave}
    if somebody_watches() if "ipykernel.kernelapp" in sys.modules else sys.stderr.isatty():
        return tqdm.auto.tqdm(mininterval=0.2, **options)
    delay = 0 if leave else LINE_INTERVAL_S  # a bar that would vanish has lines only if it lasts
    return ProgressLines(mininterval=LINE_INTERVAL_S, maxinterval=LINE_INTERVAL_S, delay=delay, position=1, **options)


def keep_freed_memory(*, trim: bool = False) -> None:
    """Let this process keep freed memory for its next arrays, as giving every large one back and asking for it again
    costs a training step on a CPU up to half of its time; ``trim`` gives back what is kept now. Only with glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no array gets a mapping of its own, which would end with it
        if trim:
            libc.malloc_trim(0)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which batch systems send before they kill, end the block as Ctrl-C does; for a command's main."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextmanager
def storage_errors(path: str | Path) -> Iterator[None]:
    """Turn errors about a full or read-only disk, of whatever library, into a StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        reasons = [words for words in FULL_OR_READ_ONLY if words in str(error)]
        if not reasons:
            raise
        remedy = "Make room or give another results folder, then run the same again: what was finished is kept"
        raise StorageError(f"{path} can't be written: {reasons[0]}. {remedy}") from error


def check_writable(folder: str | Path) -> None:
    """Make a folder if need be and write into it for a moment; OSError with the reason if that fails."""
    with storage_errors(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**16))


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, down to the disk, then rename it: readers see the old or the new one.

    If ``write`` raises, ``path`` stays as it was; StorageError if that was for a full or read-only disk."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # several processes may write the same file
    try:
        with storage_errors(path):
            try:
                write(beside)
            except Exception:
                append(beside, bytes(2**16))  # torch says nothing of a full disk, but nothing can be added to its file
                raise
            append(beside, b"")
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


def write_json(path: str | Path, content: dict) -> None:
    """A dictionary as a file, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def read_json(path: str | Path) -> dict:
    """A dictionary from a file; ValueError that names the file if it is broken."""
    try:
        return {**json.loads(Path(path).read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:  # neither JSON nor text, or no dictionary
        raise ValueError(f"{path} is broken ({error}); delete its folder and run the same again") from None


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """A table as CSV, whole or not at all."""
    replace_file(path, lambda beside: table.to_csv(beside, index=False))


def read_table(path: str | Path) -> pd.DataFrame:
    """A table as `write_table` wrote it: `TEXT_COLUMNS` stay text, also "0001", "NA" and ""; elsewhere "" is NaN."""
    empty = {name: [""] for name in pd.read_csv(path, nrows=0).columns if name not in TEXT_COLUMNS}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=empty)
