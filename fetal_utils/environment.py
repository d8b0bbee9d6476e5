"""What a computation runs on: device, seed, versions, memory, and how progress is shown."""

from __future__ import annotations

import os
import platform
import random
import resource
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import torch
from IPython.display import Markdown
from tqdm.auto import tqdm

from fetal_utils.progress import ProgressLines

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "timm", "kornia", "scikit-learn", "numpy", "pandas")
MEASURED_THREADS = 2  # of the CPU on which the minutes that notebooks quote were measured
LEAST_MEMORY_GIB = 3  # free; below it, a notebook's own values may not fit
LEAST_DISK_GIB = 2  # free, for decoded images and the weights of a study's runs


def project_path(path: str | Path) -> Path:
    """A notebook's path: absolute as it is, relative from the repository root.

    JupyterLab, papermill and pytest each start a notebook in another folder.
    """
    path = Path(path).expanduser()
    return path if path.is_absolute() else PROJECT_ROOT / path


def pick_device(device: str = "auto") -> torch.device:
    """The device to compute on.

    Parameters
    ----------
    device : str
        "auto" takes the accelerator that torch finds, else the CPU; any torch name is taken as it is.

    Raises
    ------
    ValueError
        If torch has no such device here.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} can't be used here ({reason}); 'auto' takes what is there") from None
    return torch.device(device)


def somebody_watches() -> bool:
    """Whether this kernel belongs to an application with a screen: Jupyter's server or VS Code started it."""
    return any(map(set_by_front_end, os.environ))


def set_by_front_end(name: str) -> bool:
    """Whether an environment variable is one by which Jupyter's server or VS Code tells that it started this."""
    return name == "JPY_SESSION_NAME" or name.startswith("VSCODE_")


def bars_can_move() -> bool:
    """Whether a progress bar is seen moving: in a terminal or in a watched notebook, and not in a log or a copy."""
    is_kernel = "ipykernel.kernelapp" in sys.modules
    return somebody_watches() if is_kernel else sys.stderr.isatty()


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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def commit() -> str:
    """The repository's commit, with "+changes" if files differ from it; empty outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()


def describe_environment(results_dir: str | Path, *, device: torch.device | str = "cpu", **facts: object) -> Markdown:
    """What a notebook runs on, as a table, and what that means for the minutes it quotes.

    Parameters
    ----------
    results_dir : path
        Where the results go, whether or not it exists yet; relative ones count from the repository root.
    device : torch.device or str
        What the networks are computed on.
    **facts
        Further rows, before all others.
    """
    folder = project_path(results_dir)
    existing = next(one for one in (folder, *folder.parents) if one.is_dir())
    memory_gib = psutil.virtual_memory().available / 2**30
    disk_gib = shutil.disk_usage(existing).free / 2**30
    device, threads = torch.device(device), torch.get_num_threads()
    rows = facts | {
        "results": f"{folder}, {disk_gib:,.0f} GiB of disk free",
        "device": device if device.type == "cpu" else f"{device}, {_accelerator_name(device)}",
        "CPU": f"{threads} of {os.cpu_count()} cores in use by torch, {memory_gib:,.1f} GiB of memory free",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    table = "\n".join(f"| **{name}** | {value} |" for name, value in rows.items())
    meaning = what_it_means(device.type, threads=threads, memory_gib=memory_gib, disk_gib=disk_gib)
    return Markdown("| | |\n|:--|:--|\n" + table + "\n\n" + "\n".join(f"- {line}" for line in meaning))


def what_it_means(device_type: str, *, threads: int, memory_gib: float, disk_gib: float) -> list[str]:
    """For a reader of quoted minutes: what to expect on this machine, and what to change where it is small."""
    if device_type != "cpu":
        lines = [
            f"Networks run on **{device_type}**: expect fewer minutes than the CPU's above; none were measured on it."
        ]
    elif threads == MEASURED_THREADS:
        lines = [f"CPU with {threads} threads: the minutes above are for such a machine."]
    else:
        change = "more" if threads < MEASURED_THREADS else "fewer"
        noun = "thread" if threads == 1 else "threads"
        lines = [f"CPU with {threads} {noun}: expect {change} minutes than above, which are for {MEASURED_THREADS}."]
    if memory_gib < LEAST_MEMORY_GIB:
        lines.append(
            f"**Less than {LEAST_MEMORY_GIB} GiB of memory are free**: close other kernels, or use an `image_size` of "
            "64 and small batches."
        )
    if disk_gib < LEAST_DISK_GIB:
        lines.append(f"**Less than {LEAST_DISK_GIB} GiB of disk are free**: give a `results_dir` on a larger one.")
    return lines


def _accelerator_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(device))
    return f"{torch.cuda.get_device_name(device)}, {free:,.0f} of {total:,.0f} GiB free"


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: of the accelerator, or of this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def progress_bar(*, total: int, desc: str, unit: str, show: bool = True, **options) -> tqdm:
    """A bar with the time left; where nobody watches (a log, an executed notebook), a line every 30 s at most."""
    if bars_can_move():
        return tqdm(total=total, desc=desc, unit=unit, disable=not show, mininterval=0.2, **options)
    return ProgressLines(total=total, desc=desc, unit=unit, disable=not show, **options)
