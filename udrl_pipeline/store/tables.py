"""The tables of published versions: Parquet, in the order of ideas and keys, in groups small enough to find one row quickly."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from udrl_pipeline.store.names import ROWS_FILE

if TYPE_CHECKING:  # it takes longer to import than most questions to the ledger take to answer
    import pandas as pd

#: DuckDB reads only the groups whose range of keys can hold the one that it looks for.
GROUP_ROWS = 16_384
#: A table that does not name its ideas is searched by keys alone, of which each stands in another group.
KEYED_GROUP_ROWS = 4_096
#: The columns that rows are in the order of. All rows of an idea stand together, so that they are found in one group.
ORDER = ("intent_key", "row_key")
#: Columns in which no value stands twice: a dictionary of them would only take room.
UNIQUE = ("row_key",)


def write_table(frame: "pd.DataFrame", file: Path) -> None:
    """Write a frame; the same rows give the same bytes, whatever their order."""
    frame = in_order(frame, [column for column in ORDER if column in frame])
    group = GROUP_ROWS if ORDER[0] in frame else KEYED_GROUP_ROWS
    alone = [column for column in UNIQUE if column in frame]
    frame.to_parquet(
        file, compression="zstd", index=False, row_group_size=group,
        use_dictionary=[column for column in frame if column not in alone], column_encoding=dict.fromkeys(alone, "DELTA_BYTE_ARRAY"),
    )  # fmt: skip


def in_order(frame: "pd.DataFrame", columns: Sequence[str]) -> "pd.DataFrame":
    """The frame in the order of these columns. Most are already, and to see that takes next to nothing of the time of sorting."""
    import numpy as np

    tied, falls = np.ones(max(len(frame) - 1, 0), dtype=bool), False
    for column in columns:
        values = frame[column].array
        falls = falls or bool((tied & np.asarray(values[1:] < values[:-1])).any())
        tied &= np.asarray(values[1:] == values[:-1])
    return frame.sort_values(list(columns), ignore_index=True) if falls else frame.reset_index(drop=True)


def holdings(folder: Path) -> list[tuple[str, str, int]]:
    """How many rows of which source and run a version's folder holds: (source, run, rows); empty where it holds no such table."""
    file = folder / ROWS_FILE
    if not file.exists():
        return []
    with duckdb.connect() as connection:
        columns = {name for name, *_ in connection.execute("DESCRIBE FROM read_parquet(?)", [str(file)]).fetchall()}
        if not {"source", "run_id"} <= columns:
            return []
        return connection.execute("SELECT source, run_id, count(*) FROM read_parquet(?) GROUP BY ALL ORDER BY ALL", [str(file)]).fetchall()
