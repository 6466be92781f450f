"""What was taken out for good: who it was (as a hash), why, and which files it stood in. The next runs honour it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from udrl_pipeline.store.database import Connection
from udrl_pipeline.versioning import canonical, content_hash

Kind = Literal["intent", "row"]


class ForgottenFile(NamedTuple):
    """A published file that held what was forgotten.

    Attributes:
        before: Its sha256.
        after: Its sha256 without it; None: the file was deleted.
        rows: How many rows went; None in tombstones from before they were counted, and of a file that was deleted.
    """

    asset: str
    version: str
    file: str
    before: str
    after: str | None
    rows: int | None = None


@dataclass(frozen=True)
class Tombstone:
    """One act of forgetting.

    Attributes:
        subject: What it was about: the sha256 of a normalised intent, or a row's key.
        row_keys: The rows that were deleted.
        makings: How many rows the table `versions` had then; `files` says nothing of what was made later.
    """

    number: int
    kind: Kind
    subject: str
    reason: str
    row_keys: tuple[str, ...]
    files: tuple[ForgottenFile, ...]
    makings: int
    created_at: datetime


@dataclass(frozen=True)
class Forgotten:
    """What no run may make or take in again."""

    intents: frozenset[str]
    rows: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.intents or self.rows)

    def holds_intent(self, key: str) -> bool:
        return bool(self.intents) and subject_of(key) in self.intents


def forgotten(stones: Sequence[Tombstone]) -> Forgotten:
    """What no run may make or take in again, as these say."""
    subjects = [frozenset(stone.subject for stone in stones if stone.kind == kind) for kind in ("intent", "row")]
    return Forgotten(*subjects)


def about(stones: Sequence[Tombstone], subject: str) -> list[Tombstone]:
    """The tombstones about an idea (by the hash of its key) or a row (by its key), the oldest first; a row can have gone with its idea."""
    return [stone for stone in stones if subject == stone.subject or subject in stone.row_keys]


def subject_of(intent_key: str) -> str:
    """What stands for a normalised intent once the intent itself may not be kept."""
    return hashlib.sha256(intent_key.encode()).hexdigest()


def read(connection: Connection) -> list[Tombstone]:
    """Every tombstone, the oldest first."""
    found = connection.execute(f"SELECT {_COLUMNS} FROM tombstones ORDER BY number").fetchall()
    return [
        Tombstone(number, kind, subject, reason, tuple(json.loads(keys)), tuple(ForgottenFile(*f) for f in json.loads(files)), makings, at)
        for number, kind, subject, reason, keys, files, makings, at in found
    ]


def enter(connection: Connection, kind: Kind, subject: str, reason: str, row_keys: list[str], files: list[ForgottenFile]) -> Tombstone:
    """Enter a tombstone, sealed with the one before it."""
    number, makings = connection.execute(
        "SELECT (SELECT coalesce(max(number), 0) + 1 FROM tombstones), (SELECT count(*) FROM versions)"
    ).fetchall()[0]
    row = [number, kind, subject, reason, canonical(row_keys), canonical([list(file) for file in files]), makings, datetime.now(UTC)]
    connection.execute(
        f"INSERT INTO tombstones ({_COLUMNS}, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [*row, _seal(row, _last_seal(connection))]
    )
    return read(connection)[-1]


def edited(connection: Connection) -> Iterator[int]:
    """The numbers of tombstones that do not carry the seal that they should: they, or the one before, were edited or removed."""
    previous = ""
    for *row, carried in connection.execute(f"SELECT {_COLUMNS}, seal FROM tombstones ORDER BY number").fetchall():
        if carried != _seal(row, previous):
            yield row[0]
        previous = carried


_COLUMNS = "number, kind, subject, reason, row_keys, files, makings, created_at"


def _seal(row: list[object], previous: str) -> str:
    *told, at = row
    assert isinstance(at, datetime)
    return content_hash([previous, *told, at.astimezone(UTC).isoformat()], 64)


def _last_seal(connection: Connection) -> str:
    found = connection.execute("SELECT seal FROM tombstones ORDER BY number DESC LIMIT 1").fetchone()
    return found[0] if found else ""
