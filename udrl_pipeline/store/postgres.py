"""The tables of the store in Postgres, for runs on several machines: the same migrations, the same questions.

As in DuckDB a writer is one transaction, and there is one at a time: an advisory lock keeps the others waiting, so that numbers and
seals follow each other. Readers wait for nobody. Who makes an asset holds a lock of the session, which the server frees when they die.
"""

import io
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from udrl_pipeline.errors import RemoteError, StoreFull, StoreLocked, StoreUnwritable, UdrlError
from udrl_pipeline.store.database import Connection, Readable, migrations, typed_errors
from udrl_pipeline.store.locks import Holder

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

KEY = "params.yaml: store"
#: A schema of its own: the database may be the one that holds Dagster's history.
SCHEMA = "udrl"
#: The key of the lock that a writer holds; those of assets are hashes of their names.
WRITER = 0x7564726C
CONNECT_S = 10
#: What a server that has gone away, and what a client that has, are noticed by.
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
#: Postgres keeps no U+0000, which a teacher can write. Nobody may write either character, so none is taken for the other.
NUL, STAND_IN = "\x00", "\U0010fffe"
#: How DuckDB would give a column to pandas, by the type's number.
DTYPES = {16: "bool", 20: "int64", 23: "int32", 701: "float64", 25: "str", 1043: "str", 1184: "datetime64[us, UTC]"}
#: What the server, or who answers in its place, says when nobody is let in.
REFUSED = ("authentication failed", "no password supplied", "pg_hba.conf", "permission denied for database")
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", NUL: STAND_IN})


class PostgresDatabase(Readable[Connection]):
    """The pipeline's tables on a Postgres server; made, and brought to the newest schema, on first use.

    Args:
        url: As libpq reads it, without a password: that stands in PGPASSWORD or ~/.pgpass.
    """

    def __init__(self, url: str, wait_s: float = 60.0) -> None:
        self._url, self.wait_s = url, wait_s
        parts = urlsplit(url)
        self.where = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._migrated = False

    @contextmanager
    def writer(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back if the block raises.

        Raises:
            RemoteError, StoreLocked, StoreFull, StoreUnwritable: What stands in the way; nothing was written.
        """
        self._make()
        with self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(?)", [WRITER])
            yield connection

    @contextmanager
    def _open_reader(self) -> Iterator[Connection]:
        """Everything as it stands now, whoever writes meanwhile."""
        self._make()
        with self._transaction("REPEATABLE READ") as connection:
            yield connection

    def compact(self) -> None:
        """Write the tables that held texts anew, so that nothing of what was deleted is left in their files.

        Raises:
            RemoteError, StoreLocked, StoreFull, StoreUnwritable: What stands in the way; the tables are as they were.
        """
        with typed_errors(self.where), closing(self._connect()) as raw:
            raw.autocommit = True
            connection = PostgresConnection(raw)
            connection.execute(f"SET lock_timeout = {round(1000 * self.wait_s)}")
            for table in ("rows", "scores", "quarantine"):
                connection.execute(f"VACUUM (FULL) {SCHEMA}.{table}")

    # -- who makes an asset -----------------------------------------------------------------------------------------

    @contextmanager
    def hold(self, asset: str, run_id: str, wait_s: float) -> Iterator[None]:
        """Keep the processes of other machines from making an asset. A connection is held open meanwhile; the server frees the lock when it
        ends.

        Raises:
            StoreLocked: Another process makes it, and still does after `wait_s` seconds.
        """
        self._make()
        with typed_errors(self.where), closing(self._connect()) as raw:
            raw.autocommit = True
            connection = PostgresConnection(raw)
            for name, seconds in KEEPALIVE.items():
                connection.execute(f"SET tcp_{name} = {seconds}")
            connection.execute(f"SET lock_timeout = {max(round(1000 * wait_s), 1)}")
            try:
                connection.execute("SELECT pg_advisory_lock(hashtextextended(?, 0))", [_named(asset)])
            except Exception as error:
                if getattr(error, "pgcode", None) != "55P03":
                    raise
                raise self._held(asset) from None
            with self.writer() as told:
                told.execute("DELETE FROM holders WHERE asset = ?", [asset])
                told.execute(
                    "INSERT INTO holders (asset, run_id, process, host, since) VALUES (?, ?, ?, ?, ?)",
                    [asset, run_id, os.getpid(), socket.gethostname(), datetime.now(UTC)],
                )
            try:
                yield
            finally:
                try:
                    with self.writer() as told:
                        told.execute("DELETE FROM holders WHERE asset = ? AND run_id = ?", [asset, run_id])
                except UdrlError as error:  # what was made is made; who looks is told that this run was killed
                    logger.warning("`udrl status` will not be told that the making of %s has ended: %s", asset, error)

    def holders(self) -> list[Holder]:
        """Who makes an asset now on whatever machine, and who was killed while making one that nobody has made since."""
        with self.reader() as connection:
            found = connection.execute("SELECT asset, run_id, process, since FROM holders ORDER BY asset").fetchall()
            # a lock that can be had at once is nobody's; it is given back with the transaction
            free = {
                asset: connection.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(?, 0))", [_named(asset)]).fetchall()[0][0]
                for asset, *_ in found
            }
        return [Holder(asset, run_id, process, since, not free[asset]) for asset, run_id, process, since in found]

    def _held(self, asset: str) -> StoreLocked:
        with self.reader() as connection:
            found = connection.execute("SELECT run_id, process, host FROM holders WHERE asset = ?", [asset]).fetchone()
        who = f" (run {found[0]}, process {found[1]} on {found[2]})" if found else ""
        return StoreLocked(f"another process is making {asset}{who}", where=self.where, remedy="wait until that run has ended")

    # -- connections ------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, isolation: str = "READ COMMITTED") -> Iterator["PostgresConnection"]:
        with typed_errors(self.where), closing(self._connect()) as raw:
            connection = PostgresConnection(raw)
            try:
                # for this transaction alone: behind a pooler the connection is another's afterwards
                connection.execute(
                    f"SET TRANSACTION ISOLATION LEVEL {isolation}; SET LOCAL search_path TO {SCHEMA}; SET LOCAL TIME ZONE 'UTC'; "
                    f"SET LOCAL lock_timeout = {max(round(1000 * self.wait_s), 1)}"
                )
                yield connection
            except BaseException:
                with suppress(Exception):  # a lost connection has ended the transaction already
                    raw.rollback()
                raise
            raw.commit()

    def _connect(self) -> Any:
        try:
            import psycopg2
        except ImportError as error:
            raise RemoteError(
                f"needs a package that is not installed ({error})", where=KEY, remedy="pip install 'udrl_pipeline[postgres]'"
            ) from error
        patience = {} if "connect_timeout" in self._url else {"connect_timeout": CONNECT_S}
        return psycopg2.connect(self._url, application_name="udrl", **KEEPALIVE, **patience)

    def _make(self) -> None:
        """Make the tables if there are none, and bring them to the newest schema."""
        if self._migrated:
            return
        with self._transaction() as connection:
            if not set(migrations()) <= _applied(connection):
                connection.execute("SELECT pg_advisory_xact_lock(?)", [WRITER])
                _migrate(connection)
        self._migrated = True


class PostgresConnection:
    """A connection that takes what DuckDB's takes: `?` for a value, a data frame as a table."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def execute(self, query: str, parameters: Sequence[Any] | None = None, /) -> "PostgresResult":
        from psycopg2.extensions import new_type, register_type

        cursor = self._raw.cursor()
        register_type(new_type((25, 1043), "TEXT", lambda text, _: text and text.replace(STAND_IN, NUL)), cursor)
        if parameters is None:
            cursor.execute(query)
        else:
            values = [value.replace(NUL, STAND_IN) if isinstance(value, str) else value for value in parameters]
            cursor.execute(query.replace("%", "%%").replace("?", "%s"), values)
        return PostgresResult(cursor)

    def register(self, name: str, frame: "pd.DataFrame", /) -> None:
        """A table of this transaction with the rows of a frame."""
        columns = ", ".join(f'"{column}" {_type_of(frame[column])}' for column in frame)
        lines = io.StringIO()
        for row in frame.itertuples(index=False, name=None):
            lines.write("\t".join(map(_field, row)) + "\n")
        lines.seek(0)
        with self._raw.cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS pg_temp.{name}; CREATE TEMPORARY TABLE {name} ({columns}) ON COMMIT DROP")
            cursor.copy_expert(f"COPY pg_temp.{name} FROM STDIN", lines)
            cursor.execute(f"ANALYZE pg_temp.{name}")


class PostgresResult:
    """What a question found."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def fetchall(self) -> list[Any]:
        return list(self._cursor.fetchall())

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def df(self) -> "pd.DataFrame":
        """As DuckDB gives it, so that the same rows make the same files."""
        import pandas as pd

        columns = self._cursor.description
        frame = pd.DataFrame(self._cursor.fetchall(), columns=[column.name for column in columns])
        return frame.astype({column.name: DTYPES[column.type_code] for column in columns})


def _named(asset: str) -> str:
    return f"{SCHEMA} {asset}"


def _type_of(column: "pd.Series") -> str:
    kinds = {"b": "BOOLEAN", "i": "BIGINT", "u": "BIGINT", "f": "DOUBLE PRECISION", "M": "TIMESTAMPTZ"}
    return kinds.get(column.dtype.kind, 'VARCHAR COLLATE "C"')


def _field(value: Any) -> str:
    """A value as COPY reads it; what pandas holds for nothing is nothing."""
    if value is None or value != value:
        return "\\N"
    return str(value).translate(_ESCAPED)


def _applied(connection: PostgresConnection) -> set[str]:
    exists = connection.execute("SELECT to_regclass(?) IS NOT NULL", [f"{SCHEMA}.migrations"]).fetchall()[0][0]
    return {name for (name,) in connection.execute(f"SELECT name FROM {SCHEMA}.migrations").fetchall()} if exists else set()


def _migrate(connection: PostgresConnection) -> None:
    """Apply each numbered migration that is not recorded yet, all in one transaction.

    Text is compared byte by byte, as in DuckDB, whatever the server's language; and each table counts its rows as DuckDB does.
    """
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name VARCHAR PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL)")
    connection.execute(
        """CREATE TABLE IF NOT EXISTS holders (asset VARCHAR PRIMARY KEY, run_id VARCHAR NOT NULL, process BIGINT NOT NULL,
           host VARCHAR NOT NULL, since TIMESTAMPTZ NOT NULL)"""
    )
    done = _applied(connection)
    for name, sql in migrations().items():
        if name not in done:
            connection.execute(re.sub(r"\bDOUBLE\b", "DOUBLE PRECISION", re.sub(r"\bVARCHAR\b", 'VARCHAR COLLATE "C"', sql)))
            connection.execute("INSERT INTO migrations VALUES (?, ?)", [name, datetime.now(UTC)])
    uncounted = connection.execute(
        """SELECT table_name FROM information_schema.tables WHERE table_schema = ? AND table_name NOT IN ('migrations', 'holders')
           AND table_name NOT IN (SELECT table_name FROM information_schema.columns WHERE table_schema = ? AND column_name = 'rowid')""",
        [SCHEMA, SCHEMA],
    )
    for (table,) in uncounted.fetchall():
        connection.execute(f"ALTER TABLE {table} ADD COLUMN rowid BIGINT GENERATED ALWAYS AS IDENTITY")


def translate(error: Exception, where: str | Path) -> Exception:
    """The typed error behind one of psycopg2's, or the error itself where it is a programming fault."""
    import psycopg2

    code, line = getattr(error, "pgcode", None), " ".join(str(error).split("\n")[0].split())
    if code == "55P03":
        return StoreLocked(f"another process writes ({line})", where=str(where), remedy="wait for the other run to end")
    if code == "53100":
        return StoreFull(
            "the server's disk is full", where=str(where), remedy="free some space and run again: everything committed is kept"
        )
    if code in ("42501", "25006"):
        return StoreUnwritable(
            f"may not be written ({line})", where=str(where),
            remedy=f"let the user own the schema {SCHEMA}: GRANT CREATE, TEMPORARY ON DATABASE ... TO ...",
        )  # fmt: skip
    if any(phrase in str(error) for phrase in REFUSED) or re.search(r'role ".*" does not exist', str(error)):
        return RemoteError(
            f"the database refuses ({line})", where=f"{where} ({KEY})",
            remedy="set PGPASSWORD, or write the password to ~/.pgpass; the user's name stands in the URL",
        )  # fmt: skip
    if re.search(r'database ".*" does not exist', str(error)):
        return RemoteError(
            f"there is no such database ({line})", where=f"{where} ({KEY})", remedy="make it with `createdb`, or correct the URL"
        )
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return RemoteError(
            f"the database cannot be reached ({line})", where=f"{where} ({KEY})",
            remedy="check the host, the port and the server; what was committed is kept, run again",
        )  # fmt: skip
    return error
