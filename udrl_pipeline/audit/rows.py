"""Where rows stand: in which published tables, and in which students' training. Reads only the parts of files that can hold them."""

from collections.abc import Iterable, Mapping, Sequence

import duckdb
import pandas as pd

from udrl_pipeline import corpus, dataset, exploration
from udrl_pipeline.audit.book import Book, Key
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.store.tables import ROWS
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.training import SEEN, STUDENTS

INTENTS = "intents.parquet"
#: The assets that are tables of rows, and what their columns tell of one.
TOLD = {
    corpus.ASSET: ["asked_words"],
    dataset.ASSET: ["split", "reward", "quality"],
    exploration.ASSET: ["split", "reward", "quality", "round"],
}


def places(workspace: Workspace, book: Book, keys: Sequence[str]) -> dict[Key, pd.DataFrame]:
    """The versions of tables that hold rows of these keys, the oldest first: row_key and the columns of `TOLD`."""
    found: dict[Key, pd.DataFrame] = {}
    wanted = {"intent_key": _intents_of(workspace, keys), "row_key": keys}
    for asset, columns in TOLD.items():
        found |= _look_up(workspace, [key for key in book.versions if key[0] == asset], ROWS, ["row_key", *columns], wanted)
    return {key: found[key] for key in book.versions if key in found}


def _intents_of(workspace: Workspace, keys: Sequence[str]) -> list[str]:
    """The intents that rows are about: tables are in their order, so that knowing them spares most of a table."""
    with workspace.database.reader() as connection:
        found = connection.execute(
            "SELECT DISTINCT intent_key FROM rows WHERE row_key = ANY(CAST(? AS VARCHAR[]))", [list(keys)]
        ).fetchall()
    return [intent for (intent,) in found]


def seen(workspace: Workspace, book: Book, keys: Sequence[str]) -> dict[Key, pd.DataFrame]:
    """The students whose own training read rows of these keys: row_key and how many times."""
    students = [key for key in book.versions if key[0].startswith(STUDENTS)]
    return _look_up(workspace, students, SEEN, ["row_key", "times"], {"row_key": keys})


def set_aside(workspace: Workspace, keys: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Where rows of these keys were set aside: (asset, version, row_key, reason)."""
    with workspace.database.reader() as connection:
        return connection.execute(
            "SELECT asset, version, item, reason FROM quarantine WHERE item = ANY(CAST(? AS VARCHAR[])) ORDER BY rowid", [list(keys)]
        ).fetchall()


def intents_holding(workspace: Workspace, book: Book, intent_key: str) -> list[Key]:
    """The versions of the intents that hold one, the oldest first."""
    versions = [key for key in book.versions if key[0] == intents.ASSET]
    found = _look_up(workspace, versions, INTENTS, ["split"], {"intent_key": [intent_key]})
    return [key for key in versions if key in found]


def rows_of(workspace: Workspace, student: Version) -> pd.DataFrame | None:
    """The rows that a student's own training read: row_key and how many times; None if it is no student, or does not tell."""
    file = workspace.version_folder(student.asset, student.version) / SEEN
    return pd.read_parquet(file) if student.asset.startswith(STUDENTS) and file.exists() else None


def _look_up(
    workspace: Workspace, versions: Iterable[Key], name: str, columns: list[str], wanted: Mapping[str, Sequence[str]]
) -> dict[Key, pd.DataFrame]:
    """Columns of the rows whose values are among the wanted ones, for each version that holds any."""
    files = {str(file): key for key in versions if (file := workspace.version_folder(*key) / name).exists()}
    if not files or not all(wanted.values()):
        return {}
    conditions = " AND ".join(f"{column} IN ({', '.join('?' * len(values))})" for column, values in wanted.items())
    with duckdb.connect() as connection:
        frame = connection.execute(
            f"SELECT filename, {', '.join(columns)} FROM read_parquet(?, filename = true) WHERE {conditions} ORDER BY ALL",
            [list(files), *(value for values in wanted.values() for value in values)],
        ).df()
    return {files[str(file)]: rows.reset_index(drop=True) for file, rows in frame[columns].groupby(frame["filename"], sort=False)}
