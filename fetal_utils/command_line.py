"""Values typed on a command line or in a YAML file: read as YAML, of the type that is expected."""

from __future__ import annotations

import argparse
import re

import yaml


class UsageError(ValueError):
    """A command line or preset that can't be run; shown without a traceback."""


class NumberLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, with ``1e-3`` a number, which YAML 1.2 and everybody else means by it."""


EXPONENTIAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
NumberLoader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENTIAL, list("-+.0123456789"))


def read_yaml(text: str) -> object:
    """What a YAML text holds, plain values only.

    Raises
    ------
    yaml.YAMLError
        If it is not YAML.
    """
    return yaml.load(text, NumberLoader)


def parse_value(text: str) -> object:
    """A value from the command line, read as YAML; ``1e-3`` is a number too, also in a list.

    Raises
    ------
    UsageError
        If it is not YAML.
    """
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"-p: {text!r} is not YAML ({reason})") from None


def check_type(name: str, value: object, default: object) -> object:
    """The value as the default's type, a whole number also as a float; the same for each value of a list.

    Raises
    ------
    UsageError
        If it is of another type.
    """
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UsageError(
            f"parameter {name}={value!r} is of type {type(value).__name__}; "
            f"expected {type(default).__name__}, as the default {default!r}"
        )
    # an empty list as default does not say what its values are
    return [check_type(name, one, default[0]) for one in value] if isinstance(value, list) and default else value


def add_parameters(parser: argparse.ArgumentParser, *, help: str) -> None:
    """The option ``-p NAME VALUE``, any number of times; the pairs are ``options.parameters``."""
    metavar = ("NAME", "VALUE")
    parser.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=metavar, help=help)
