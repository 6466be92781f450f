"""Rows that ship with the package: the default teacher's own answers, recorded by this very pipeline.

The files under recorded/ are written by `udrl corpus export --recorded`. They leave out the rows of `HELD_BACK` built-in
intents, so that the default run always asks the real teacher for some.
"""

from importlib.resources import files
from pathlib import Path

from udrl_pipeline.intents import Intent
from udrl_pipeline.versioning import unit_draw

#: Built-in training intents whose rows are never recorded.
HELD_BACK = 20
#: They are among so many first built-in ones: a run that takes more of them holds back the same.
AMONG = 4320


def recorded_folder() -> Path:
    return Path(str(files("udrl_pipeline") / "recorded"))


def recorded_rows() -> list[Path]:
    """The recorded Parquet files, in the order of their names."""
    return sorted(recorded_folder().glob("rows*.parquet"))


def held_back(intents: list[Intent]) -> set[str]:
    """The keys of the intents whose rows are not recorded."""
    built_in = [i for i in intents if i.split == "train" and i.source.startswith("builtin:")]
    keys = [i.key for i in built_in if int(i.source.removeprefix("builtin:")) < AMONG]
    return set(sorted(keys, key=lambda key: unit_draw("held back", key))[:HELD_BACK])
