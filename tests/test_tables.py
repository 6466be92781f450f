"""The tables of published versions: their order, their groups, and that the same rows are the same bytes."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline.store import tables
from udrl_pipeline.store.tables import holdings, in_order, write_table

ROWS = st.lists(st.tuples(st.text("ab\u00e9\U0001f600", max_size=3), st.integers(0, 2), st.text("xy", max_size=2)), max_size=12)


@given(rows=ROWS, whole=st.booleans())
def test_a_frame_comes_in_the_order_of_its_columns_however_it_was(rows: list[tuple[str, int, str]], whole: bool) -> None:
    frame = pd.DataFrame(sorted(rows) if whole else rows, columns=["idea", "round", "key"]).astype({"idea": str, "key": str})
    assert list(in_order(frame, ["idea", "round", "key"]).itertuples(name=None)) == [(n, *row) for n, row in enumerate(sorted(rows))]


def test_the_same_rows_are_the_same_bytes_whatever_their_order(tmp_path: Path) -> None:
    rows = pd.DataFrame({"row_key": [f"{n:032x}" for n in range(40)], "intent_key": [f"idea {n % 7}" for n in range(40)]})
    write_table(rows, tmp_path / "a.parquet")
    write_table(rows.sample(frac=1, random_state=1), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pd.read_parquet(tmp_path / "a.parquet").intent_key.is_monotonic_increasing


def test_a_table_that_does_not_name_its_ideas_has_smaller_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", 20)
    monkeypatch.setattr(tables, "KEYED_GROUP_ROWS", 8)
    rows = pd.DataFrame({"row_key": [f"{n:032x}" for n in range(40)], "intent_key": "an idea"})
    write_table(rows, tmp_path / "rows.parquet")
    write_table(rows[["row_key"]], tmp_path / "seen.parquet")
    groups = [parquet.ParquetFile(tmp_path / name).num_row_groups for name in ("rows.parquet", "seen.parquet")]
    assert groups == [2, 5]


def test_a_folder_without_rows_or_without_their_sources_holds_nothing(tmp_path: Path) -> None:
    assert holdings(tmp_path) == []
    write_table(pd.DataFrame({"row_key": ["a"]}), tmp_path / "rows.parquet")
    assert holdings(tmp_path) == []
    write_table(pd.DataFrame({"row_key": ["a", "b"], "source": "s", "run_id": "r"}), tmp_path / "rows.parquet")
    assert holdings(tmp_path) == [("s", "r", 2)]
