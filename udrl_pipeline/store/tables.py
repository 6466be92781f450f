"""The tables of published versions: Parquet, in the order of their keys, in groups small enough to find one row quickly."""

from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

if TYPE_CHECKING:  # it takes longer to import than most questions to the ledger take to answer
    import pandas as pd

#: DuckDB reads only the groups whose range of keys can hold one that it looks for: of larger ones it decodes more, of smaller ones it
#: reads more lists of ranges. For the twelve rows of an idea this takes half the time of 16,384, for one row half as much again.
GROUP_ROWS = 8_192
ROWS = "rows.parquet"


def write_table(frame: "pd.DataFrame", file: Path) -> None:
    """Write a frame that is sorted by its key; the same frame gives the same bytes."""
    frame.to_parquet(file, compression="zstd", index=False, row_group_size=GROUP_ROWS)


def holdings(connection: duckdb.DuckDBPyConnection, folder: Path) -> list[tuple[str, str, int]]:
    """How many rows of which source and run a version's folder holds: (source, run, rows); empty where it holds no such table."""
    file = folder / ROWS
    if not file.exists():
        return []
    columns = {name for name, *_ in connection.execute("DESCRIBE FROM read_parquet(?)", [str(file)]).fetchall()}
    if not {"source", "run_id"} <= columns:
        return []
    return connection.execute("SELECT source, run_id, count(*) FROM read_parquet(?) GROUP BY ALL ORDER BY ALL", [str(file)]).fetchall()
