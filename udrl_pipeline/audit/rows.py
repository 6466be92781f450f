"""Where rows stand: in which published tables, and in which students' training. Reads only the parts of files that can hold them."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import duckdb

from udrl_pipeline.audit.book import Book, Key
from udrl_pipeline.audit.damage import damage_named
from udrl_pipeline.audit.losses import losses
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.names import CORPUS, DATASET, EXPLORED, INTENTS, INTENTS_FILE, ROW_COLUMNS, ROWS_FILE, SEEN_FILE, STUDENTS
from udrl_pipeline.store.tombstones import Tombstone
from udrl_pipeline.store.workspace import Version, Workspace

if TYPE_CHECKING:
    import pandas as pd

#: The assets that are tables of rows, and what their columns tell of one.
TOLD = {
    CORPUS: ["asked_words"],
    DATASET: ["split", "reward", "quality"],
    EXPLORED: ["split", "reward", "quality", "round"],
}
#: What a table tells of some rows, each by the names of its columns.
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Standing:
    """Where rows stand.

    Attributes:
        tables: The versions of tables that hold any, the oldest first: row_key and the columns of `TOLD`.
        times: The students whose own training read any, and how often it did.
        unknown: The versions whose table is gone, so that nobody can tell.
    """

    tables: dict[Key, Rows]
    times: dict[Key, int]
    unknown: list[Key] = field(default_factory=list)


def standing(workspace: Workspace, book: Book, rows: Mapping[str, str]) -> Standing:
    """Where rows stand.

    Args:
        rows: The intent key of each, by its row key.
    """
    keys, intents = list(rows), sorted(set(rows.values()))

    def tables(asset: str) -> dict[Key, Rows]:
        """Tables are in the order of intents: knowing those of the rows spares most of a table."""
        versions = [key for key in book.versions if key[0] == asset]
        return _look_up(workspace, versions, ROWS_FILE, ["row_key", *TOLD[asset]], {"intent_key": intents, "row_key": keys})

    with ThreadPoolExecutor() as threads:  # most of a look-up is waiting for one core to read the ends of many files
        times = threads.submit(times_read, workspace, book, keys)
        found = {key: rows for of_asset in threads.map(tables, TOLD) for key, rows in of_asset.items()}
    unknown = [
        key for key, made in book.versions.items()
        if key[0] in TOLD and made.verdict == "PASS" and not (workspace.version_folder(*key) / ROWS_FILE).exists()
    ]  # fmt: skip
    return Standing({key: found[key] for key in book.versions if key in found}, times.result(), unknown)


def standing_before(workspace: Workspace, book: Book, stones: Sequence[Tombstone]) -> Standing:
    """Where the rows stood that tombstones took out, and what had read them; the tables tell no more than which they are."""
    keys = sorted({key for stone in stones for key in stone.row_keys})
    tables = [key for key in losses(book, stones) if key[0] in TOLD]
    return Standing({key: [] for key in book.versions if key in tables}, times_read(workspace, book, keys))


def times_read(workspace: Workspace, book: Book, keys: Sequence[str]) -> dict[Key, int]:
    """How often each student's own training read rows of these keys, of those that read any."""
    versions = [key for key in book.versions if key[0].startswith(STUDENTS)]
    found = _look_up(workspace, versions, SEEN_FILE, ["row_key", "times"], {"row_key": keys})
    return {key: sum(row["times"] for row in rows) for key, rows in found.items()}


def rows_where(workspace: Workspace, condition: str, value: str) -> dict[str, str]:
    """The intent key of each row for which a condition with one `?` holds, by its row key, sorted."""
    with workspace.database.reader() as connection:
        return dict(connection.execute(f"SELECT row_key, intent_key FROM rows WHERE {condition} ORDER BY row_key", [value]).fetchall())


def whole_key(workspace: Workspace, digits: str) -> str:
    """The key of the one row, in the store or forgotten, that begins with these digits; the digits themselves where there is none.

    Raises:
        UdrlError: There is more than one.
    """
    with workspace.database.reader() as connection:
        found = connection.execute("SELECT row_key FROM rows WHERE starts_with(row_key, ?) ORDER BY row_key LIMIT 6", [digits]).fetchall()
    gone = (key for stone in workspace.tombstones() for key in stone.row_keys if key.startswith(digits))
    keys = sorted({*(key for (key,) in found), *gone})
    if len(keys) > 1 and digits not in keys:
        told = f"say which: {', '.join(keys[:5])}"
        raise UdrlError(f"{digits!r} is more than one row", where=workspace.database.where, remedy=told)
    return keys[0] if len(keys) == 1 else digits


def as_written(workspace: Workspace, key: str) -> dict[str, Any] | None:
    """A row as the teacher's asset wrote it, by the names of its columns; None if there is none."""
    with workspace.database.reader() as connection:
        found = connection.execute(f"SELECT {', '.join(ROW_COLUMNS)} FROM rows WHERE row_key = ?", [key]).fetchall()
    return dict(zip(ROW_COLUMNS, found[0], strict=True)) if found else None


def set_aside(workspace: Workspace, keys: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Where rows of these keys were set aside: (asset, version, row_key, reason)."""
    with workspace.database.reader() as connection:
        return connection.execute(
            "SELECT asset, version, item, reason FROM quarantine WHERE item = ANY(CAST(? AS VARCHAR[])) ORDER BY rowid", [list(keys)]
        ).fetchall()


def intents_holding(workspace: Workspace, book: Book, intent_key: str) -> list[Key]:
    """The versions of the intents that hold one, the oldest first."""
    versions = [key for key in book.versions if key[0] == INTENTS]
    found = _look_up(workspace, versions, INTENTS_FILE, ["split"], {"intent_key": [intent_key]})
    return [key for key in versions if key in found]


def rows_of(workspace: Workspace, student: Version) -> "pd.DataFrame | None":
    """The rows that a student's own training read: row_key and how many times; None if it is no student, or does not tell."""
    file = workspace.version_folder(student.asset, student.version) / SEEN_FILE
    if not student.asset.startswith(STUDENTS) or not file.exists():
        return None
    import pandas as pd

    with damage_named(workspace, [(student.asset, student.version)]):
        return pd.read_parquet(file)


def _look_up(
    workspace: Workspace, versions: Sequence[Key], name: str, columns: Sequence[str], wanted: Mapping[str, Sequence[str]]
) -> dict[Key, Rows]:
    """Columns of the rows whose values are among the wanted ones, for each version that holds any."""
    files = {str(file): key for key in versions if (file := workspace.version_folder(*key) / name).exists()}
    if not files or not all(wanted.values()):
        return {}
    conditions = " AND ".join(f"{column} IN ({', '.join('?' * len(values))})" for column, values in wanted.items())
    with damage_named(workspace, files.values()), duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT filename, {', '.join(columns)} FROM read_parquet(?, filename = true) WHERE {conditions} ORDER BY ALL",
            [list(files), *(value for values in wanted.values() for value in values)],
        ).fetchall()
    return {
        files[file]: [dict(zip(columns, values, strict=True)) for _, *values in rows]
        for file, rows in groupby(found, key=lambda row: row[0])
    }
