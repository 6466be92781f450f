"""Short connections to the one DuckDB file: `reader()`, `writer()`.

DuckDB lets one process write, or many read, so no connection is held across generation or training. A second process
waits with a message, then fails with `StoreLocked`; nothing is ever half written, because a writer is one transaction.
"""

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import duckdb

from udrl_pipeline.errors import CorruptArtifact, StoreFull, StoreLocked

logger = logging.getLogger(__name__)


class Database:
    """The pipeline's DuckDB file; made, and brought to the newest schema, on first use."""

    def __init__(self, path: Path, wait_s: float = 60.0) -> None:
        self.path, self.wait_s = path, wait_s
        self._migrated = False

    @contextmanager
    def writer(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: committed at the end of the block, rolled back if the block raises."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = self._connect(read_only=False)
        try:
            if not self._migrated:
                _migrate(connection)
                self._migrated = True
            connection.begin()
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
        except (duckdb.Error, OSError) as error:
            raise translate(error, self.path) from error
        finally:
            connection.close()

    @contextmanager
    def reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; several processes may hold one at a time."""
        if not self._migrated:
            if not self.path.exists() or _schema_is_old(self._connect(read_only=True)):
                with self.writer():
                    pass
            self._migrated = True
        connection = self._connect(read_only=True)
        try:
            yield connection
        finally:
            connection.close()

    def _connect(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        deadline, told = time.monotonic() + self.wait_s, False
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only)
            except duckdb.Error as error:
                if "lock" not in str(error).lower() or time.monotonic() > deadline:
                    raise translate(error, self.path) from error
                if not told:
                    logger.warning("%s is in use by another process; waiting up to %.0f s", self.path, self.wait_s)
                    told = True
                time.sleep(0.2)


def translate(error: Exception, path: Path) -> Exception:
    """The typed error behind a DuckDB or operating-system error, or the error itself where it is a programming fault."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text or "disk is full" in text.lower():
        return StoreFull(
            "the disk is full", where=str(path), remedy="free some space and run again: everything committed is kept"
        )
    if isinstance(error, duckdb.Error) and "lock" in text.lower():
        return StoreLocked(
            f"another process holds the file ({text.splitlines()[0]})",
            where=str(path),
            remedy="wait for the other run to end, or close the program (a DuckDB shell, a notebook) that has it open",
        )
    broken = "not a valid DuckDB database file", "Corrupt", "checksum", "Serialization"
    if isinstance(error, duckdb.Error) and any(word in text for word in broken):
        return CorruptArtifact(
            f"the DuckDB file is damaged ({text.splitlines()[0]})",
            where=str(path),
            remedy="restore it from a backup, or move it away: published versions stay in their folders",
        )
    return error


def _applied(connection: duckdb.DuckDBPyConnection) -> set[str]:
    exists = connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'migrations'").fetchall()[0][0]
    return {name for (name,) in connection.execute("SELECT name FROM migrations").fetchall()} if exists else set()


def _migrations() -> dict[str, str]:
    folder = files("udrl_pipeline.store") / "migrations"
    return {f.name: f.read_text(encoding="utf-8") for f in sorted(folder.iterdir(), key=lambda f: f.name) if f.name.endswith(".sql")}


def _schema_is_old(connection: duckdb.DuckDBPyConnection) -> bool:
    try:
        return not set(_migrations()) <= _applied(connection)
    finally:
        connection.close()


def _migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Apply each numbered migration that is not recorded yet, in the transaction that records it."""
    done = _applied(connection)
    for name, sql in _migrations().items():
        if name in done:
            continue
        connection.begin()
        try:
            connection.execute("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL)")
            connection.execute(sql)
            connection.execute("INSERT INTO migrations VALUES (?, ?)", [name, datetime.now(UTC)])
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
