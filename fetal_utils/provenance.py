"""What a study was made with: data, settings, versions, commits and devices, gathered from the records of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fetal_utils.files import replace_file

AXES = frozenset({"kind", "task", "strategy", "label_fraction", "draw", "seed"})  # what a study varies
FILE_NAME = "settings.json"


def gather_provenance(results_dir: str | Path) -> dict | None:
    """What the finished runs of a results folder were made with, or what was written of them when they were there.

    Parameters
    ----------
    results_dir : path
        With ``runs/``, or a ``settings.json`` that `write_provenance` left.

    Returns
    -------
    dict or None
        ``data`` (a record for each data set), ``versions`` (package to its versions), ``commits``, ``devices`` and
        ``n_threads`` (each a list of what occurs), and ``kinds``: for each kind of run ``n_runs``, ``hours``,
        ``peak_memory_mib`` (the largest) and ``settings`` (name to the values that occur). None without either.
    """
    records = list(read_records(results_dir))
    if records:
        return summarise_records(records)
    path = Path(results_dir) / FILE_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_records(results_dir: str | Path) -> Iterator[dict]:
    """The records of all finished runs, by the order of their folders."""
    for path in sorted(Path(results_dir, "runs").glob("*/*/record.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def summarise_records(records: Sequence[Mapping]) -> dict:
    """See `gather_provenance`."""
    kinds: dict[str, list[Mapping]] = {}
    for record in records:
        kinds.setdefault(record["settings"]["kind"], []).append(record)
    names = dict.fromkeys(name for record in records for name in record["versions"])
    return {
        "data": distinct(record["data"] | {"data_key": record["data_key"]} for record in records),
        "versions": {name: distinct(record["versions"].get(name, "") for record in records) for name in names},
        "commits": distinct(record["commit"] for record in records),
        "devices": distinct(record["device"] for record in records),
        "n_threads": distinct(record["n_threads"] for record in records),
        "kinds": {kind: summarise_kind(group) for kind, group in kinds.items()},
    }


def summarise_kind(records: Sequence[Mapping]) -> dict:
    """Number, hours, largest memory and settings of the runs of one kind."""
    flat = [dict(plain_settings(record["settings"])) for record in records]
    names = dict.fromkeys(name for settings in flat for name in settings)
    return {
        "n_runs": len(records),
        "hours": round(sum(record["seconds"] for record in records) / 3600, 3),
        "peak_memory_mib": max(record["peak_memory_mib"] for record in records),
        "settings": {name: distinct(own[name] for own in flat if name in own) for name in names},
    }


def plain_settings(settings: Mapping) -> Iterator[tuple[str, object]]:
    """Names and values of a run's settings without `AXES`; of a run that it starts from nothing, as that is a kind."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if "kind" not in value:  # first weights: a backbone and where they come from
                yield from plain_settings(value)
        elif name not in AXES:
            yield name, value


def distinct(values: Iterator) -> list:
    """What occurs, once each, in an order that does not depend on which run came first."""
    return [json.loads(text) for text in sorted({json.dumps(value, sort_keys=True) for value in values})]


def write_provenance(results_dir: str | Path, provenance: Mapping) -> Path:
    """Leave ``<results_dir>/settings.json``, so that tables whose runs are gone still say what made them."""
    path = Path(results_dir) / FILE_NAME
    text = json.dumps(provenance, indent=1) + "\n"
    replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return path
