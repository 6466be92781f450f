"""The chain of the ledger: a version's row is hashed together with its parents, its checks, its run and the seal of the row before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from udrl_pipeline.store.database import Connection
from udrl_pipeline.versioning import content_hash

#: The columns of a row of `versions`, without its seal.
COLUMNS = "asset, version, fingerprint, code_version, rows, verdict, run_id, created_at, params, facts, files, manifest"
_PARENTS = "SELECT DISTINCT parent_asset, parent_version FROM parents WHERE asset = ? AND version = ? AND fingerprint = ?"
_CHECKS = "SELECT expectation, passed, blocking, observed FROM quality_results WHERE asset = ? AND version = ? AND run_id = ?"
_RUN = "SELECT seal FROM runs WHERE run_id = ? AND seal IS NOT NULL"
#: The columns of a row of `runs`, without its seal.
RUN_COLUMNS = "run_id, started_at, git_sha, git_dirty, params, packages, host"
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
    run = [sealed for (sealed,) in connection.execute(_RUN, [run_id]).fetchall()]  # none of a run from before they were sealed
    sealed = [text for text in row[8:] if text is not None]  # a row from before there were `files` and `manifest`
    return content_hash([previous, *row[:7], _microseconds(created_at), *sealed, sorted(parents), sorted(checks), *run], 64)


def seal_of_run(row: Sequence[Any]) -> str:
    """The seal of a run (the columns of `runs` without the seal). It is no chain: the versions that the run makes count it."""
    return content_hash([row[0], _microseconds(row[1]), *row[2:]], 64)


def edited_runs(connection: Connection) -> Iterator[str]:
    """The runs whose row is not what was sealed."""
    for *row, carried in connection.execute(f"SELECT {RUN_COLUMNS}, seal FROM runs ORDER BY rowid").fetchall():
        if carried and carried != seal_of_run(row):
            yield row[0]


def _microseconds(at: datetime) -> int:
    """A time as a number that is the same in every time zone."""
    return (at - _START) // timedelta(microseconds=1)


def last_seal(connection: Connection) -> str:
    found = connection.execute("SELECT seal FROM versions ORDER BY rowid DESC LIMIT 1").fetchone()
    return (found[0] if found else None) or ""


def chain(connection: Connection) -> Iterator[Sealed]:
    """Every row of the ledger, in its order."""
    previous = ""
    for *row, carried in connection.execute(f"SELECT {COLUMNS}, seal FROM versions ORDER BY rowid").fetchall():
        yield Sealed(row[0], row[1], carried, seal(connection, row, previous))
        previous = carried or ""
