"""One notebook executed by papermill, and the copy that it leaves."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
import psutil
from nbclient.exceptions import DeadKernelError

from fetal_utils.kernels import UnwatchedKernelManager

START_TIMEOUT_S = 300  # for a kernel on a busy machine, where papermill's own minute may not do
KERNEL_DIED = (
    "its kernel died, as it does when memory is short; lower image_size or a batch size, or close other programs"
)


@dataclass(frozen=True)
class Execution:
    """One notebook with the parameters it is run with.

    Attributes
    ----------
    notebook : str
        File name without ending.
    parameters : dict
        Only those that differ from the notebook's own.
    variant : str
        The values that tell this execution from others of the same notebook; may be empty.
    """

    notebook: str
    parameters: dict
    variant: str

    @property
    def name(self) -> str:
        """Name of the executed copy, without ending."""
        return f"{self.notebook}.{self.variant}" if self.variant else self.notebook

    @property
    def results_dir(self) -> Path:
        """Where its results go."""
        return Path(self.parameters["results_dir"])

    def copy(self, ending: str = "") -> Path:
        """The executed copy: a whole one, or with the ending ``.failed`` or ``.interrupted``."""
        return self.results_dir / "notebooks" / f"{self.name}{ending}.ipynb"


def short_name(name: str, value: object) -> str:
    """A parameter's value for the name of a file or folder: text as it is, numbers after the parameter's name."""
    if isinstance(value, list):
        text = name + "-".join(map(str, value))
    else:
        text = value if isinstance(value, str) else f"{name}{value}"
    return re.sub(r"[^\w.+-]+", "_", text)


def execute(execution: Execution, source: Path, *, listener: object) -> str:
    """Run one notebook; an empty string, or why it failed in one line.

    The copy is called ``NAME.unfinished-HOST-PID.ipynb`` until it is whole. One that failed is kept with its traceback
    as ``NAME.failed.ipynb``, one that was interrupted as ``NAME.interrupted.ipynb``; a later success removes both. A
    whole copy of an earlier call stays until then.

    Parameters
    ----------
    execution : Execution
    source : Path
        The notebook's file.
    listener : file
        What the notebook prints is written to it as well.

    Raises
    ------
    KeyboardInterrupt
        If interrupted.
    OSError
        If the copy can't be written.
    """
    unfinished = execution.copy(f".unfinished-{socket.gethostname()}-{os.getpid()}")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_notebook(source, unfinished, execution.parameters, listener)
    except KeyboardInterrupt:
        keep(unfinished, execution, ".interrupted")
        raise
    except Exception as error:  # also a kernel that died or never started; the other notebooks still run
        reason = failure(unfinished, describe(error))
        keep(unfinished, execution, ".failed")
        return reason
    keep(unfinished, execution, "")
    return ""


def run_notebook(source: Path, target: Path, parameters: dict, listener: object) -> None:
    """Let papermill execute a notebook in a kernel of this Python, from the notebook's own folder."""
    papermill.execute_notebook(
        str(source),
        str(target),
        parameters=parameters,
        kernel_name="python3",
        kernel_manager_class=UnwatchedKernelManager,
        cwd=str(source.parent),
        progress_bar=False,
        stdout_file=listener,
        stderr_file=listener,
        start_timeout=START_TIMEOUT_S,
        # of the kernel, which else warns of its own transport, and of a reply that nobody takes when interrupted
        extra_arguments=["--log-level=CRITICAL"],
    )


def keep(unfinished: Path, execution: Execution, ending: str) -> None:
    """Give a copy its final name; failed and interrupted ones of earlier calls go."""
    if unfinished.exists():
        unfinished.replace(execution.copy(ending))
    for other in {".failed", ".interrupted"} - {ending}:
        execution.copy(other).unlink(missing_ok=True)
    for leftover in unfinished.parent.glob(f"{execution.name}.unfinished-*.ipynb"):
        if not is_being_written(leftover):
            leftover.unlink()


def is_being_written(unfinished: Path) -> bool:
    """Whether the process that writes an unfinished copy lives; one of another machine is taken to."""
    host, _, process = unfinished.stem.partition(".unfinished-")[2].rpartition("-")
    return host != socket.gethostname() or psutil.pid_exists(int(process))


def failure(copy: Path, otherwise: str) -> str:
    """The cell at which a copy ends and the error in it, in one line; or, where it holds none, the cell and another."""
    if not copy.exists():
        return otherwise
    cells = nbformat.read(copy, as_version=4).cells
    for cell in cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"cell {cell.id}: {one_line(output.ename, output.evalue)}"
    started = [cell.id for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    return f"cell {started[-1]}: {otherwise}" if started else otherwise


def describe(error: Exception) -> str:
    """An error that no cell raised, in one line."""
    return KERNEL_DIED if isinstance(error, DeadKernelError) else one_line(type(error).__name__, str(error))


def one_line(kind: str, message: str) -> str:
    """An error's kind with the first and the last line of its message."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"{kind}: {' ... '.join(dict.fromkeys(lines[:1] + lines[-1:]))}" if lines else kind
