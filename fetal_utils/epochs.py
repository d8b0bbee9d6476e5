"""Training epoch by epoch: logged, checkpointed, and continued where it was interrupted."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch

from fetal_utils.environment import progress_bar, replace_file, write_table
from fetal_utils.runs import CHECKPOINT, Work

Part = Any  # a module, optimizer or schedule, or a torch.Generator


def run_epochs(
    work: Work, train_epoch: Callable[[int], dict], *, n_epochs: int, parts: Mapping[str, Part], desc: str
) -> pd.DataFrame:
    """Call ``train_epoch`` for each epoch, with a log row and a checkpoint of ``parts`` after each; the log.

    ``train_epoch`` takes the epoch's number from 0 and returns its log row; the log adds ``epoch`` from 1 and
    ``seconds`` since the start. ``parts`` is all that changes while training, random generators included: a checkpoint
    in ``work.folder`` is taken up, its epochs are not trained again, and the rest comes out as it would have.
    """
    rows = load_checkpoint(work, parts)
    show = work.store.progress
    with progress_bar(total=n_epochs, initial=len(rows), desc=desc, unit="epoch", show=show, leave=False) as bar:
        for epoch in range(len(rows), n_epochs):
            row = train_epoch(epoch)
            rows.append({"epoch": epoch + 1, "seconds": round(work.elapsed_s, 3), **row})
            save_checkpoint(work, parts, rows)
            bar.set_postfix({name: f"{value:.3f}" for name, value in row.items() if "loss" in name}, refresh=False)
            bar.update()
    return pd.DataFrame(rows)


def load_checkpoint(work: Work, parts: Mapping[str, Part]) -> list[dict]:
    """Restore the parts from the run's checkpoint; the log rows so far, none without one."""
    path = work.folder / CHECKPOINT
    if not path.exists():
        return []
    state = torch.load(path, weights_only=True, map_location="cpu")
    for name, part in parts.items():
        restore = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
        restore(state["parts"][name])
    work.earlier_s = state["elapsed_s"]
    return state["rows"]


def save_checkpoint(work: Work, parts: Mapping[str, Part], rows: list[dict]) -> None:
    """Write the log so far, then the parts, each whole or not at all: a log may be ahead, and is then overwritten."""
    write_table(pd.DataFrame(rows), work.folder / "log.csv")
    states = {
        name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
        for name, part in parts.items()
    }
    state = {"parts": states, "rows": rows, "elapsed_s": work.elapsed_s}
    replace_file(work.folder / CHECKPOINT, lambda path: torch.save(state, path))
