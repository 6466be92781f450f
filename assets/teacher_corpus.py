"""`teacher_corpus`: what the teacher wrote for every intent and task."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.automation import on_new_data
from assets.columns import TEACHER_CORPUS
from assets.intents import intents
from assets.plots import histogram, throughput
from assets.results import Results, results, sample
from assets.store import OWNERS, Store, teacher_pool
from assets.stories import story
from udrl_pipeline import corpus
from udrl_pipeline.settings import load
from udrl_pipeline.versioning import code_version

#: Between the rows of one chunk less time passes, between two chunks more.
PAUSE_S = 0.5


@dg.asset(
    description=story("teacher_corpus"),
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
    with store.open(context) as step:
        yield from results(step, corpus.build(step.workspace), show)


def show(folder: Path) -> dict[str, Any]:
    frame = pd.read_parquet(folder / "rows.parquet")
    frame["words"] = frame.text.str.split().str.len()
    return {
        "sample": sample(frame, ["task", "intent", "asked_words", "text"]),
        "words": histogram(frame, "words", "length (words)"),
        "throughput": throughput(rows_per_second(frame), "minutes since the first rows", "teacher rows/s"),
        **{f"share/{task}": round(float(share), 4) for task, share in frame.task.value_counts(normalize=True).sort_index().items()},
    }


def rows_per_second(frame: pd.DataFrame) -> list[tuple[float, float]]:
    """How fast the last run that asked the teacher got rows: (minutes since its first chunk, rows/s of each later chunk). The rows of
    a chunk are entered at once, so a pause tells where the next one begins."""
    written = frame[~frame.recorded].sort_values("created_at")
    if written.empty:
        return []
    entered = written[written.run_id == written.run_id.iloc[-1]].created_at
    chunks = entered.groupby((entered.diff().dt.total_seconds() > PAUSE_S).cumsum()).agg(["max", "size"])
    seconds = (chunks["max"] - chunks["max"].iloc[0]).dt.total_seconds().tolist()
    return [(now / 60, n / (now - before)) for before, now, n in zip(seconds, seconds[1:], chunks["size"].iloc[1:], strict=False)]
