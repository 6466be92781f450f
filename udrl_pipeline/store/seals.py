"""The chain of the ledger: a version's row is hashed together with its parents, its checks and the seal of the row before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from udrl_pipeline.store.database import Connection
from udrl_pipeline.versioning import content_hash

#: The columns of a row of `versions`, without its seal.
COLUMNS = "asset, version, fingerprint, code_version, rows, verdict, run_id, created_at, params, facts, files"
_PARENTS = "SELECT DISTINCT parent_asset, parent_version FROM parents WHERE asset = ? AND version = ? AND fingerprint = ?"
_CHECKS = "SELECT expectation, passed, blocking, observed FROM quality_results WHERE asset = ? AND version = ? AND run_id = ?"
_START = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Sealed:
    """One row of the ledger: the seal it carries (None in rows from before there were seals), and the one it should carry."""

    asset: str
    version: str
    seal: str | None
    expected: str


def seal(connection: Connection, row: Sequence[Any], previous: str) -> str:
    """The seal of a row (the columns of `versions` without the seal), whose parents and checks have been entered."""
    asset, version, fingerprint, run_id, created_at = row[0], row[1], row[2], row[6], row[7]
    parents = connection.execute(_PARENTS, [asset, version, fingerprint]).fetchall()
    checks = connection.execute(_CHECKS, [asset, version, run_id]).fetchall()
    microseconds = (created_at - _START) // timedelta(microseconds=1)  # the same in every time zone
    sealed = [text for text in row[8:] if text is not None]  # a row from before there was the column `files`
    return content_hash([previous, *row[:7], microseconds, *sealed, sorted(parents), sorted(checks)], 64)


def last_seal(connection: Connection) -> str:
    found = connection.execute("SELECT seal FROM versions ORDER BY rowid DESC LIMIT 1").fetchone()
    return (found[0] if found else None) or ""


def chain(connection: Connection) -> Iterator[Sealed]:
    """Every row of the ledger, in its order."""
    previous = ""
    for *row, carried in connection.execute(f"SELECT {COLUMNS}, seal FROM versions ORDER BY rowid").fetchall():
        yield Sealed(row[0], row[1], carried, seal(connection, row, previous))
        previous = carried or ""
