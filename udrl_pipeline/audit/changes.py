"""Settings that differ between two versions."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from udrl_pipeline.versioning import canonical


@dataclass(frozen=True, slots=True)
class Change:
    """One setting (dotted name) before and after; None where it was not there."""

    name: str
    before: Any
    after: Any


def in_yaml(value: Any) -> str:
    """A value as params.yaml could hold it, in one line; `none` where there is none."""
    if value is None:
        return "none"
    dumped = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, sort_keys=False, allow_unicode=True)
    return dumped.removesuffix("...\n").strip()


def changed_settings(before: Any, after: Any, name: str = "") -> Iterator[Change]:
    """The settings that two versions of one asset were made with and that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from changed_settings(before.get(key), after.get(key), f"{name}.{key}" if name else str(key))
    elif canonical(before) != canonical(after):
        yield Change(name, before, after)
