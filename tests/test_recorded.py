"""The rows that ship with the package."""

from pathlib import Path

import pandas as pd
import pytest

from conftest import REPOSITORY
from udrl_pipeline import corpus, recorded
from udrl_pipeline import settings as settings_module
from udrl_pipeline.intents import Intent, collect
from udrl_pipeline.tasks import load_tasks


def intents(count: int, source: str = "builtin:", split: str = "train") -> list[Intent]:
    return [Intent(f"{source} idea {n}", f"idea {n}", ("image",), split, f"{source}{n}") for n in range(count)]  # type: ignore[arg-type]


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "recorded_folder", lambda: tmp_path)
    assert recorded.recorded_rows() == []
    for name in ("rows-2.parquet", "rows-1.parquet", "notes.txt"):
        (tmp_path / name).touch()
    assert recorded.recorded_rows() == [tmp_path / "rows-1.parquet", tmp_path / "rows-2.parquet"]


def test_twenty_built_in_training_intents_are_held_back_in_any_order() -> None:
    built_in = intents(200)
    held = recorded.held_back(built_in)
    assert len(held) == recorded.HELD_BACK == 20
    assert recorded.held_back(built_in[::-1]) == held
    others = [*intents(50, "ideas.csv:"), *intents(50, "builtin:test", "test"), *intents(50, "builtin:validation", "validation")]
    assert recorded.held_back([*others, *built_in]) == held
    of_the_default = intents(recorded.AMONG)
    assert recorded.held_back(intents(recorded.AMONG + 500)) == recorded.held_back(of_the_default)


def test_the_recorded_rows_are_those_that_the_default_run_asks_for() -> None:
    files = recorded.recorded_rows()
    if not files:
        pytest.skip("this copy of the package holds no recorded rows")
    settings = settings_module.load(REPOSITORY / "params.yaml", preset="")
    kept = collect(settings).kept
    planned = {row.row_key: row for row in corpus.plan(kept, load_tasks(settings), settings, corpus.source_digest(settings))}
    frame = pd.concat([pd.read_parquet(file) for file in files]).drop_duplicates("row_key").set_index("row_key")
    unrecorded = {row.intent_key for key, row in planned.items() if key not in frame.index}
    assert len(frame) >= 12_000
    assert recorded.held_back(kept) <= unrecorded
    assert len(unrecorded) < 60
    known = frame[frame.index.isin(planned.keys())]
    assert [(row.task, row.intent, row.asked_words) for row in known.itertuples()] == [
        (planned[key].task, planned[key].intent, planned[key].asked_words) for key in known.index
    ]
    assert set(frame.source) == {settings.teacher.model.sha256}
