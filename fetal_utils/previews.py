"""What a study would do, shown before it does it: ``--list`` and ``--dry-run``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import pandas as pd

from fetal_utils.environment import pick_device
from fetal_utils.estimates import N_ROUNDS, count_runs, estimate
from fetal_utils.executions import Execution
from fetal_utils.plans import asked_runs, read_parameters
from fetal_utils.presets import list_presets, read_preset

WIDTH = 118


def show_list(executions: list[Execution]) -> None:
    """Print the presets, and each notebook with the parameters it would be run with; nothing is computed."""
    print("presets, for --preset:")
    for name in list_presets():
        print(wrap(f"{name}: {' '.join(read_preset(name)['description'].split())}"))
    print("\nnotebooks, in order, each with the parameters it would be run with:")
    for execution in executions:
        print(f"\n{execution.name}")
        defaults = read_parameters(execution.notebook)
        rest = {name: value for name, value in defaults.items() if name not in execution.parameters}
        print(wrap(f"set: {spell(execution.parameters)}"))
        print(wrap(f"its own: {spell(rest)}"))


def spell(parameters: Mapping[str, object]) -> str:
    """Names and values on one line."""
    return ", ".join(f"{name}={value!r}" for name, value in parameters.items())


def wrap(text: str) -> str:
    """A text in lines of `WIDTH`, indented."""
    indents = {"initial_indent": "  ", "subsequent_indent": "    "}
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False, **indents)


def show_estimate(executions: list[Execution]) -> None:
    """Print what is there, what is still to be computed, and how long that would take here; nothing is trained."""
    print(list_copies(executions).to_string(index=False))
    asked = {execution.name: runs for execution in executions if (runs := asked_runs(execution))}
    runs = count_runs(asked)
    if runs.empty:
        print("\n0 runs, 0 of them finished: these notebooks train nothing.")
        return
    device = pick_device(next((store.requested_device for store, _ in asked.values()), "auto"))
    table = estimate(runs, device)
    print(f"\n{table.to_string(index=False, formatters={'hours': '{:.2f}'.format})}")
    to_do = table[["optimiser_steps", "views_seen", "hours"]].sum()
    print(
        f"{len(runs)} runs, {runs['done'].sum()} of them finished. To do: {to_do['optimiser_steps']:,.0f} optimiser "
        f"steps, {to_do['views_seen']:,.0f} views."
    )
    print(
        f"About {to_do['hours']:.1f} hours on this machine's {device}, one run after another, by {N_ROUNDS} timed "
        "steps of each network; drawing and reading of images, tables and figures come on top."
    )


def list_copies(executions: list[Execution]) -> pd.DataFrame:
    """The notebooks that would run, and when each was executed before, if its copy is there."""
    rows = []
    for execution in executions:
        copy = execution.copy()
        then = f"{pd.Timestamp.fromtimestamp(copy.stat().st_mtime):%Y-%m-%d %H:%M}" if copy.exists() else "not yet"
        rows.append({"notebook": execution.name, "executed": then, "results_dir": execution.results_dir})
    return pd.DataFrame(rows)
