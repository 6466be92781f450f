"""Settings that differ between two versions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from udrl_pipeline.versioning import canonical


@dataclass(frozen=True, slots=True)
class Change:
    """One setting (dotted name) before and after; None where it was not there."""

    name: str
    before: Any
    after: Any


def changed_settings(before: Any, after: Any, name: str = "") -> Iterator[Change]:
    """The settings that two versions of one asset were made with and that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from changed_settings(before.get(key), after.get(key), f"{name}.{key}" if name else str(key))
    elif canonical(before) != canonical(after):
        yield Change(name, before, after)
