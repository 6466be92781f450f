"""`teacher_corpus`: what the teacher wrote for every intent and task."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.automation import on_new_data
from assets.columns import TEACHER_CORPUS
from assets.intents import intents
from assets.plots import histogram
from assets.results import Results, results, sample
from assets.store import OWNERS, Store, teacher_pool
from udrl_pipeline import corpus
from udrl_pipeline.settings import load
from udrl_pipeline.versioning import code_version


@dg.asset(
    kinds={"huggingface", "duckdb", "parquet"},
    group_name="data",
    owners=OWNERS,
    code_version=code_version(corpus.SOURCES),
    metadata=TEACHER_CORPUS,
    deps=[intents],
    output_required=False,
    automation_condition=on_new_data(),
    pool=teacher_pool(load()),
)
def teacher_corpus(context: dg.AssetExecutionContext, store: Store) -> Results:
    """What the teacher wrote for every intent and task, in several lengths. Only missing rows are generated."""
    workspace = store.open(context)
    yield from results(workspace, corpus.build(workspace), show)


def show(folder: Path) -> dict[str, Any]:
    frame = pd.read_parquet(folder / "rows.parquet")
    frame["words"] = frame.text.str.split().str.len()
    return {"sample": sample(frame, ["task", "intent", "asked_words", "text"]), "words": histogram(frame, "words", "length (words)")}
