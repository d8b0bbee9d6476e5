"""Presets: the values that a study's notebooks are run with, in short YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from fetal_utils.command_line import UsageError, read_yaml
from fetal_utils.environment import PROJECT_ROOT

PRESET_DIR = PROJECT_ROOT / "notebooks" / "presets"
FORMS = {  # key -> what it holds, and how to say so
    "description": (str, "a text"),
    "parameters": (dict, "a mapping of parameters to values"),
    "grid": (dict, "a mapping of parameters to lists of values"),
    "notebooks": (dict, 'a mapping of notebooks, such as "04", to mappings of parameters to values'),
}


def list_presets() -> list[str]:
    """Names of the study's own presets."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def read_preset(name: str) -> dict:
    """A preset of the study by its name, or a YAML file of one's own by its path.

    ``parameters`` go to every notebook that has a parameter of that name, ``notebooks`` to one notebook, and a notebook
    that has a parameter of ``grid`` is run once for each of its values, unless it has a value of its own.

    Parameters
    ----------
    name : str
        One of `list_presets`, or a path that ends in .yaml or .yml.

    Returns
    -------
    dict
        With all keys of `FORMS`; what the file lacks is empty.

    Raises
    ------
    UsageError
        If there is no such preset, or the file is not of that form.
    """
    if not PRESET_DIR.is_dir():
        raise UsageError(
            f"the study's notebooks are not at {PRESET_DIR.parent}, for only its modules were installed; run the study "
            "in a clone of its repository, installed by 'make setup' or 'pip install -e .'"
        )
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESET_DIR / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(
            f"--preset {name}: no such preset; there are {', '.join(list_presets())}, or give the path of a .yaml file"
        )
    try:
        preset = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    return check_preset(preset, path)


def check_preset(preset: object, path: Path) -> dict:
    """A preset whose form is right, with all keys; a key that stands there without anything is empty.

    Raises
    ------
    UsageError
        With the file, the key, what was found and what was expected.
    """
    if preset is not None and not isinstance(preset, dict):
        raise UsageError(f"{path} holds a {type(preset).__name__}; expected a mapping with some of {list(FORMS)}")
    preset = preset or {}
    if unknown := [key for key in preset if key not in FORMS]:
        raise UsageError(f"{path}: {unknown} are unknown; a preset has some of {list(FORMS)}")
    for key, (form, expected) in FORMS.items():
        if preset.get(key) is not None and not isinstance(preset[key], form):
            raise UsageError(f"{path}: {key} is {preset[key]!r}; expected {expected}")
    preset = {key: preset.get(key) or form() for key, (form, _) in FORMS.items()}
    check_names(preset, path)
    return preset


def check_names(preset: Mapping, path: Path) -> None:
    """Check the lists of the grid and the keys of the notebooks.

    Raises
    ------
    UsageError
        If a grid has something else than a list of different values, or a notebook something else than a mapping.
    """
    for name, values in preset["grid"].items():
        if not isinstance(values, list) or not values or len(set(map(repr, values))) < len(values):
            raise UsageError(f"{path}: grid has {name}: {values!r}; expected a list of different values")
    for notebook, values in preset["notebooks"].items():
        if not isinstance(notebook, str):  # 04 without quotes is 4
            raise UsageError(f'{path}: notebooks has {notebook!r}; write its number in quotes, such as "04"')
        if not isinstance(values, dict):
            raise UsageError(
                f"{path}: notebooks has {notebook}: {values!r}; expected a mapping of parameters to values"
            )
