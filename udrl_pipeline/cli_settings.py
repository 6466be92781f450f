"""The options that every command has, and the settings that they stand for."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
import yaml

from udrl_pipeline.errors import SettingsError
from udrl_pipeline.settings import Settings, load
from udrl_pipeline.yaml_text import parse_yaml

Function = TypeVar("Function", bound=Callable[..., Any])


def settings_options(command: Function) -> Function:
    """Give a command the options that `read_settings` takes."""
    for option in (
        click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Set one key, such as student.seed=3."),
        click.option("--preset", metavar="NAME", help="presets/NAME.yaml laid over params.yaml.  [default: $UDRL_PRESET, else none]"),
        click.option("--params", metavar="FILE", help="params.yaml to use.  [default: $UDRL_PARAMS, else ./params.yaml]"),
    ):
        command = option(command)
    return command


def read_settings(params: str | None, preset: str | None, overrides: tuple[str, ...]) -> Settings:
    return load(params, preset, parse_overrides(overrides))


def parse_overrides(overrides: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` pairs, the values read as YAML.

    Raises:
        SettingsError: One is no such pair.
    """
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"{override!r} is no KEY=VALUE", where="--set", remedy="for example --set student.seed=3")
        try:
            values[key.strip()] = parse_yaml(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"{text!r} is not valid YAML: {error}", where=f"--set {key}", remedy="quote the value") from None
    return values
