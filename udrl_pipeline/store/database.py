"""Short connections to the one DuckDB file: `reader()`, `writer()`.

DuckDB lets one process write, or many read, so no connection is held across generation or training. A second process
waits with a message, then fails with `StoreLocked`; nothing is ever half written, because a writer is one transaction.
"""

import errno
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import duckdb
from filelock import FileLock

from udrl_pipeline.errors import CorruptArtifact, StoreFull, StoreLocked, StoreUnwritable, UdrlError

logger = logging.getLogger(__name__)

#: How DuckDB says what a user can cause. Whole phrases: "lock" alone is also in "block" and in folders' names.
LOCKED = ("Could not set lock on file", "being used by another process")
DAMAGED = (
    "not a valid DuckDB database file", "Corrupt database file", "Corrupt WAL file", "Failure while replaying WAL",
    "Could not read enough bytes", "checksum", "Serialization Error",
)  # fmt: skip
#: The last two are all that torch.save tells of a write that came out short.
FULL = ("No space left on device", "Disk quota exceeded", "disk is full", "PytorchStreamWriter failed writing", ". unexpected pos ")
FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = ("Permission denied", "Read-only file system", "Not a directory", "Is a directory", "File exists")
UNWRITABLE_NUMBERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class Result(Protocol):
    """What a question found."""

    def fetchall(self) -> list[Any]: ...

    def fetchone(self) -> Any: ...

    def df(self) -> Any: ...


class Connection(Protocol):
    """What a reader or a writer gives: SQL that DuckDB and Postgres both understand, with `?` for values."""

    def execute(self, query: str, parameters: Any = None, /) -> Result: ...

    def register(self, name: str, frame: Any, /) -> Any: ...


AConnection = TypeVar("AConnection", bound=Connection)


class Readable(ABC, Generic[AConnection]):
    """What both kinds of store do when they are read.

    Attributes:
        where: The file or the server, as an error names it.
    """

    where: str
    _kept: AConnection | None = None

    @contextmanager
    def reader(self) -> Iterator[AConnection]:
        """A connection that cannot write.

        Raises:
            StoreLocked, CorruptArtifact, RemoteError: Another process writes, the file is damaged, or the server cannot be asked.
        """
        if self._kept is None:
            with self._open_reader() as connection:
                yield connection
        else:
            with typed_errors(self.where):
                yield self._kept

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """What is read in the block is read over one connection: to open one takes as long as some questions. Nothing can be written."""
        with self.reader() as self._kept:
            try:
                yield
            finally:
                self._kept = None

    @abstractmethod
    def _open_reader(self) -> AbstractContextManager[AConnection]:
        """A connection that cannot write, closed at the end of the block."""


class Database(Readable[duckdb.DuckDBPyConnection]):
    """The pipeline's DuckDB file; made, and brought to the newest schema, on first use. Several processes may read it at a time."""

    def __init__(self, path: Path, wait_s: float = 60.0) -> None:
        self.path, self.wait_s = path, wait_s
        self.where = str(path)
        self._migrated = False

    def hold(self, asset: str, run_id: str, wait_s: float) -> AbstractContextManager[None]:
        """Nothing: who shares a file shares a folder, and the lock is there (`locks.hold`)."""
        return nullcontext()

    def holders(self) -> list[Any]:
        return []

    @contextmanager
    def writer(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction: committed at the end of the block, rolled back if the block raises.

        Raises:
            StoreLocked, StoreFull, StoreUnwritable, CorruptArtifact: What stands in the way; nothing was written.
        """
        self._make()
        with typed_errors(self.path), closing(self._connect(read_only=False)) as connection:
            connection.begin()
            try:
                yield connection
            except BaseException:
                with suppress(duckdb.Error):  # an error such as a full disk has ended the transaction already
                    connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def _open_reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with typed_errors(self.path), closing(self._opened()) as connection:
            yield connection

    def compact(self) -> None:
        """Write the file anew, so that nothing of what was deleted is left in its free blocks.

        Raises:
            StoreLocked, StoreFull, StoreUnwritable: What stands in the way; the file is as it was.
        """
        staged = self.path.with_name(f".{self.path.name}.new")
        with typed_errors(self.path), FileLock(self.path.with_name(f".{self.path.name}.lock")):
            try:
                staged.unlink(missing_ok=True)
                with closing(self._connect(read_only=False)) as connection:
                    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
                    connection.execute("CHECKPOINT")
                    quoted = str(staged).replace("'", "''")
                    connection.execute(f"ATTACH '{quoted}' AS fresh")
                    connection.execute(f'COPY FROM DATABASE "{self.path.stem}" TO fresh')
                    connection.execute("CHECKPOINT fresh")  # or its rows would stay behind in a log of its own
                    connection.execute("DETACH fresh")
                    staged.rename(self.path)  # while this connection still keeps others out
            finally:
                staged.unlink(missing_ok=True)

    def _make(self) -> None:
        """Make the file if there is none, and bring it to the newest schema."""
        if self._migrated and self.path.exists():
            return
        with typed_errors(self.path):
            if not self._is_there():
                self._create()
            else:
                with closing(self._connect(read_only=False)) as connection:
                    _migrate(connection)
        self._migrated = True

    def _opened(self) -> duckdb.DuckDBPyConnection:
        """A read-only connection; in UTC, since of another zone DuckDB asks pytz, which then reads the names of them all."""
        if self._migrated or not self._is_there():
            self._make()
            connection = self._connect(read_only=True)
        else:
            connection = self._connect(read_only=True)
            if not set(migrations()) <= _applied(connection):
                connection.close()
                self._make()
                connection = self._connect(read_only=True)
            self._migrated = True
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    def _is_there(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0  # an empty file is what is left when making it failed

    def _create(self) -> None:
        """Make the file aside and rename it, so that a kill or a full disk leaves no half of one behind."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staged = self.path.with_name(f".{self.path.name}.new")
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            if self._is_there():
                return  # another process was first
            try:
                for left in (staged, staged.with_name(f"{staged.name}.wal")):
                    left.unlink(missing_ok=True)
                with closing(duckdb.connect(str(staged))) as connection:
                    _migrate(connection)
                staged.rename(self.path)
            finally:
                staged.unlink(missing_ok=True)

    def _connect(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        deadline, told = time.monotonic() + self.wait_s, False
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only)
            except duckdb.Error as error:
                if not _says(error, LOCKED) or time.monotonic() > deadline:
                    raise
                if not told:
                    logger.warning("%s is in use by another process; waiting up to %.0f s", self.path, self.wait_s)
                    told = True
                time.sleep(0.2)


@contextmanager
def typed_errors(path: Path | str) -> Iterator[None]:
    """Raise what the block raises; in its typed form, where a user can cause it."""
    try:
        yield
    except Exception as error:
        typed = translate(error, path)
        if typed is error:
            raise
        raise typed from error


def _says(error: Exception, phrases: tuple[str, ...]) -> bool:
    return any(phrase in str(error) for phrase in phrases)


def translate(error: Exception, path: Path | str) -> Exception:
    """The typed error behind a database's or the operating system's, or the error itself where it is a programming fault."""
    if isinstance(error, UdrlError):
        return error
    if type(error).__module__.startswith("psycopg2"):
        from udrl_pipeline.store import postgres

        return postgres.translate(error, path)
    number, first_line = getattr(error, "errno", None), (str(error).splitlines() or [""])[0]
    from_duckdb = isinstance(error, duckdb.Error)
    if number in FULL_NUMBERS or _says(error, FULL):  # some writers (safetensors) pass on the words only
        return StoreFull("the disk is full", where=str(path), remedy="free some space and run again: everything committed is kept")
    if number in UNWRITABLE_NUMBERS or (from_duckdb and _says(error, UNWRITABLE)):
        return StoreUnwritable(
            f"cannot be written ({first_line})", where=str(path), remedy="set `artifacts` in params.yaml to a folder that you may write to"
        )
    if from_duckdb and _says(error, LOCKED):
        return StoreLocked(
            f"another process holds the file ({first_line})",
            where=str(path),
            remedy="wait for the other run to end, or close the program (a DuckDB shell, a notebook) that has it open",
        )
    if from_duckdb and _says(error, DAMAGED):
        return CorruptArtifact(
            f"the DuckDB file is damaged ({first_line})",
            where=str(path),
            remedy="restore it from a backup, or move it away: published versions stay in their folders",
        )
    return error


def _applied(connection: duckdb.DuckDBPyConnection) -> set[str]:
    exists = connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'migrations'").fetchall()[0][0]
    return {name for (name,) in connection.execute("SELECT name FROM migrations").fetchall()} if exists else set()


def migrations() -> dict[str, str]:
    """The SQL of each numbered migration by its name, in their order; both databases understand it."""
    folder = files("udrl_pipeline.store") / "migrations"
    return {f.name: f.read_text(encoding="utf-8") for f in sorted(folder.iterdir(), key=lambda f: f.name) if f.name.endswith(".sql")}


def _migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Apply each numbered migration that is not recorded yet, in the transaction that records it."""
    done = _applied(connection)
    for name, sql in migrations().items():
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
