"""The tables of published versions: Parquet, in the order of their keys, in groups small enough to find one row quickly."""

from pathlib import Path

import pandas as pd

#: DuckDB reads only the groups whose range of keys can hold the one that it looks for.
GROUP_ROWS = 16_384


def write_table(frame: pd.DataFrame, file: Path) -> None:
    """Write a frame that is sorted by its key; the same frame gives the same bytes."""
    frame.to_parquet(file, compression="zstd", index=False, row_group_size=GROUP_ROWS)
