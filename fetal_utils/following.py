"""A run that several processes compute together: the first keeps its folder, the others follow."""

from __future__ import annotations

from fetal_utils.ranks import LostProcessError, Ranks, first_line
from fetal_utils.runs import RunsFailedError, RunStore, Work
from fetal_utils.settings import Settings


def compute_together(settings: Settings, store: RunStore, ranks: Ranks) -> None:
    """One run by all processes, unless it is there: the first asks the store for it, and the others follow.

    Parameters
    ----------
    settings : Settings
        Whose ``compute`` names the run to the others once this process may write in its folder, as `Pretrain` does.
    store : RunStore
    ranks : Ranks

    Raises
    ------
    RunsFailedError
        If it fails, or this process was asked for another run.
    LostProcessError
        If it failed in another process.
    """
    if ranks.is_first:
        store.get([settings])
        ranks.say("")  # there is no more to compute
    else:
        follow(settings, store, ranks)


def follow(settings: Settings, store: RunStore, ranks: Ranks) -> None:
    """Compute what the first process names, as often as it does, without a lock and without writing a file."""
    folder = store.folder(settings)
    while name := ranks.hear():
        if name != folder.name:
            raise RunsFailedError(f"the processes were asked for different runs, {name} and {folder.name}")
        work = Work(folder=folder.with_suffix(".partial"), dataset=store.dataset, store=store, device=store.device)
        try:
            settings.compute(work)
        except LostProcessError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise RunsFailedError(f"1 of 1 runs failed:\n  {store.name(settings)}: {reason}") from error
