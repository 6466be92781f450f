"""The store's rows and scores against the newest published tables, whose files are hashed: what was written may not change there."""

from collections.abc import Collection, Iterator
from pathlib import Path

from udrl_pipeline.audit.book import Key
from udrl_pipeline.store.database import Connection, Database
from udrl_pipeline.store.names import CORPUS, DATASET, EXPLORED, ROWS_FILE
from udrl_pipeline.store.workspace import Version, Workspace

#: What a published table and the store both hold of a row.
OF_ROW = ("task", "intent", "text", "source", "run_id")
SHOWN = 3


def stored_otherwise(workspace: Workspace, touched: Collection[Key] = ()) -> Iterator[tuple[Version, str]]:
    """Each newest version whose rows or scores the store has lost or holds otherwise, and what is wrong.

    Args:
        touched: Versions that were changed themselves: they say nothing of the store.
    """
    forgotten = {key for stone in workspace.tombstones() for key in stone.row_keys}
    for asset in (CORPUS, DATASET, EXPLORED):
        made = workspace.current(asset)
        file = workspace.local_folder(asset, made.version) / ROWS_FILE if made else None
        if not made or not file or (asset, made.version) in touched or not file.exists():
            continue
        with workspace.database.reader() as connection:
            if asset != DATASET:  # its rows are among those of the corpus
                published = _published(workspace, connection, file, OF_ROW)
                differing = " OR ".join(f"r.{column} <> p.{column}" for column in OF_ROW)
                yield from ((made, what) for what in _wrong(connection, published, "rows", differing, forgotten))
            if scorer := made.params.get("scorer"):
                published = _published(workspace, connection, file, ["relevance"])
                stored = "(SELECT row_key, relevance FROM scores WHERE scorer_version = ?)"
                yield from ((made, what) for what in _wrong(connection, published, stored, "r.relevance <> p.relevance", forgotten, scorer))


def _published(workspace: Workspace, connection: Connection, file: Path, columns: Collection[str]) -> str:
    """A published table, as the database can be asked for it; DuckDB reads the file itself."""
    if isinstance(workspace.database, Database):
        quoted = str(file).replace("'", "''")
        return f"read_parquet('{quoted}')"
    import pandas as pd

    connection.register("published", pd.read_parquet(file, columns=["row_key", *columns]))
    return "published"


def _wrong(connection: Connection, published: str, stored: str, differing: str, forgotten: set[str], *values: str) -> Iterator[str]:
    """What is to be said of the published rows that the store lacks, and of those that it holds otherwise."""
    found = connection.execute(
        f"""SELECT p.row_key, r.row_key IS NULL FROM {published} AS p LEFT JOIN {stored} AS r ON r.row_key = p.row_key
            WHERE r.row_key IS NULL OR {differing} ORDER BY p.row_key""",
        list(values),
    ).fetchall()
    for what, gone in (("lacks", True), ("holds otherwise", False)):
        if keys := [key for key, is_gone in found if is_gone == gone and key not in forgotten]:
            told = f"{len(keys):,} of its rows" if stored == "rows" else f"the scores of {len(keys):,} of its rows"
            yield f"the store {what} {told}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
