"""Which of the users' intents files are new or changed since the last look. A file counts once nobody writes to it any more:
when two looks in a row find it as it was. What it holds decides, not its name or its time.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from udrl_pipeline.intents import sources
from udrl_pipeline.intents.readers import files_in
from udrl_pipeline.settings import Settings
from udrl_pipeline.versioning import content_hash, file_sha256


@dataclass(frozen=True)
class Look:
    """What was seen, as text that the next look is given.

    Attributes:
        settled: Size, time and sha256 of each file as it was handed on; also of files that are gone since.
        moving: Size and time of each file that is not at rest yet.
        runs: How often files were handed on.
    """

    settled: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    moving: dict[str, tuple[int, int]] = field(default_factory=dict)
    runs: int = 0

    @classmethod
    def parse(cls, text: str | None) -> "Look":
        values: dict[str, Any] = json.loads(text) if text else {"settled": {}, "moving": {}, "runs": 0}
        settled, moving = ({name: tuple(of_it) for name, of_it in values[part].items()} for part in ("settled", "moving"))
        return cls(settled, moving, values["runs"])

    def dump(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def key(self) -> str:
        """What a run for this look is known by: the same look again is no second run, an earlier content again is."""
        return content_hash([sorted((name, digest) for name, (*_, digest) in self.settled.items()), self.runs])


def watched_files(settings: Settings) -> list[Path]:
    """Every file that the intents are read from."""
    return [file for source in sources(settings) for file in (files_in(source) if source.is_dir() else [source])]


def look(files: Iterable[Path], before: Look) -> tuple[Look, list[Path]]:
    """Look at the files again: what the next look needs, and the files at rest that hold something new."""
    settled: dict[str, tuple[int, int, str]] = dict(before.settled)
    moving: dict[str, tuple[int, int]] = {}
    new = []
    for file in files:
        name = str(file)
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        stamp = (stat.st_size, stat.st_mtime_ns)
        if name in settled and settled[name][:2] == stamp:
            continue
        if before.moving.get(name) != stamp:
            moving[name] = stamp
            continue
        digest = _digest(file, stamp)
        if digest not in {known for *_, known in settled.values()}:
            new.append(file)
        settled[name] = (*stamp, digest)
    return Look(settled, moving, before.runs + bool(new)), new


def _digest(file: Path, stamp: tuple[int, int]) -> str:
    try:
        return file_sha256(file)
    except OSError as error:  # handed on like any other: the check of the intents says what is wrong with it
        return f"{error.strerror}, {stamp}"
