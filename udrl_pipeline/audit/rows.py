"""Where rows stand: in which published tables, and in which students' training. Reads only the parts of files that can hold them."""

from collections.abc import Iterable, Sequence

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
    for asset, columns in TOLD.items():
        found |= _look_up(workspace, [key for key in book.versions if key[0] == asset], ROWS, columns, keys)
    return {key: found[key] for key in book.versions if key in found}


def seen(workspace: Workspace, book: Book, keys: Sequence[str]) -> dict[Key, pd.DataFrame]:
    """The students whose own training read rows of these keys: row_key and how many times. See `learned` for their ancestors'."""
    return _look_up(workspace, [key for key in book.versions if key[0].startswith(STUDENTS)], SEEN, ["times"], keys)


def set_aside(workspace: Workspace, keys: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Where rows of these keys were set aside: (asset, version, row_key, reason)."""
    with workspace.database.reader() as connection:
        return connection.execute(
            "SELECT asset, version, item, reason FROM quarantine WHERE list_contains(?, item) ORDER BY rowid", [list(keys)]
        ).fetchall()


def intents_holding(workspace: Workspace, book: Book, intent_key: str) -> list[Key]:
    """The versions of the intents that hold one, the oldest first."""
    found = _look_up(
        workspace, [key for key in book.versions if key[0] == intents.ASSET], INTENTS, ["split"], [intent_key], by="intent_key"
    )
    return [key for key in book.versions if key in found]


def rows_of(workspace: Workspace, student: Version) -> dict[str, int] | None:
    """The rows that a student's own training read: key -> how many times; None if it is no student, or does not tell."""
    file = workspace.version_folder(student.asset, student.version) / SEEN
    if not student.asset.startswith(STUDENTS) or not file.exists():
        return None
    frame = pd.read_parquet(file)
    return dict(zip(frame.row_key, frame.times.tolist(), strict=True))


def _look_up(
    workspace: Workspace, versions: Iterable[Key], name: str, columns: list[str], keys: Sequence[str], by: str = "row_key"
) -> dict[Key, pd.DataFrame]:
    files = {str(file): key for key in versions if (file := workspace.version_folder(*key) / name).exists()}
    if not files or not keys:
        return {}
    wanted = ", ".join("?" * len(keys))
    with duckdb.connect() as connection:
        frame = connection.execute(
            f"""SELECT filename, {by}, {", ".join(columns)} FROM read_parquet(?, filename = true, union_by_name = true)
                WHERE {by} IN ({wanted}) ORDER BY filename, {by}""",
            [list(files), *keys],
        ).df()
    return {files[str(file)]: rows.drop(columns="filename").reset_index(drop=True) for file, rows in frame.groupby("filename", sort=False)}
