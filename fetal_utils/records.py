"""What a run's folder says of the run: from its start what is computed, at its end what made it."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fetal_utils.environment import commit, peak_memory_mib, versions
from fetal_utils.files import replace_file

if TYPE_CHECKING:  # at run time `runs` reads this module, not the other way round
    from fetal_utils.runs import Work

SETTINGS, RECORD, TRACEBACK, CHECKPOINT = "settings.json", "record.json", "traceback.txt", "checkpoint.pt"


@cache
def software() -> dict:
    """Versions and commit of what this process has loaded; asked once, as the answer costs more than a small run."""
    return {"versions": versions(), "commit": commit()}


def place(device: torch.device) -> dict[str, str]:
    """Where this process computes."""
    return {"device": str(device), "host": socket.gethostname()}


def begin_folder(work: Work, identity: dict) -> None:
    """Make a run's unfinished folder say what is computed there, and where; an earlier attempt's traceback goes.

    Raises
    ------
    FileExistsError
        If something without a record has the name that the folder is to get.
    """
    work.folder.mkdir(exist_ok=True)
    if (folder := work.folder.with_suffix("")).exists():
        raise FileExistsError(f"{folder} is there without its {RECORD}; delete it and run the same again")
    attempt = {"pid": os.getpid(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(work.folder / SETTINGS, identity | place(work.device) | attempt)
    (work.folder / TRACEBACK).unlink(missing_ok=True)


def write_record(work: Work, identity: dict) -> None:
    """Write what made a run whose other files are all there."""
    dataset = work.dataset
    about = ("title", "is_phantom", "val_fraction", "split_seed", "geometry", "blank_text")
    record = identity | {
        "data": {name: getattr(dataset, name) for name in about},
        "facts": work.facts,
        "seconds": round(work.elapsed_s, 3),
        "peak_memory_mib": round(peak_memory_mib(work.device), 1),
        **place(work.device),
        "n_threads": torch.get_num_threads(),
        **software(),
    }
    write_json(work.folder / RECORD, record)


def name_folder(unfinished: Path, folder: Path) -> None:
    """Give a folder with a record its final name, without what only an unfinished run needs."""
    half_written = unfinished.glob(".*")  # by a killed process, see `replace_file`; safetensors has names of its own
    for leftover in [*(unfinished / name for name in (SETTINGS, TRACEBACK, CHECKPOINT)), *half_written]:
        leftover.unlink(missing_ok=True)
    unfinished.replace(folder)


def write_json(path: Path, content: dict) -> None:
    """A dictionary as a file, whole or not at all."""
    replace_file(path, lambda beside: beside.write_text(json.dumps(content, indent=1), encoding="utf-8"))


def read_json(path: Path) -> dict:
    """A dictionary from a file of a run's folder.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no such dictionary, as a failing disk leaves it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor text
        raise ValueError(f"{path} is broken ({error}); delete that folder and run the same again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is broken (no dictionary); delete that folder and run the same again")
    return content
