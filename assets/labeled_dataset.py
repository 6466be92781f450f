"""`labeled_dataset`: the corpus, scored, judged and binned."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.automation import on_new_data
from assets.columns import LABELED_DATASET
from assets.intents import intents
from assets.plots import histogram
from assets.results import Results, results, sample
from assets.store import COMPUTE, OWNERS, Store
from assets.stories import story
from assets.teacher_corpus import teacher_corpus
from udrl_pipeline import dataset
from udrl_pipeline.versioning import code_version

CHECKS = [
    dg.AssetCheckSpec(spec.name, asset=dataset.ASSET, blocking=spec.blocking, description=spec.description) for spec in dataset.EXPECTATIONS
]


@dg.asset(
    description=story("labeled_dataset"),
    kinds={"greatexpectations", "duckdb", "parquet"},
    group_name="data",
    owners=OWNERS,
    code_version=code_version(dataset.SOURCES),
    metadata=LABELED_DATASET,
    deps=[intents, teacher_corpus],
    check_specs=CHECKS,
    output_required=False,
    automation_condition=on_new_data(),
    pool=COMPUTE,
)
def labeled_dataset(context: dg.AssetExecutionContext, store: Store) -> Results:
    with store.open(context) as step:
        yield from results(step, dataset.build(step.workspace), show, CHECKS)


def show(folder: Path) -> dict[str, Any]:
    columns = ["task", "split", "intent", "words", "reward", "quality", "text"]
    frame = pd.read_parquet(folder / "rows.parquet", columns=columns)
    shares = frame.task.value_counts(normalize=True).sort_index()
    return {
        "sample": sample(frame, columns),
        "rewards": histogram(frame, "reward", "reward"),
        **{f"share/{task}": round(float(share), 4) for task, share in shares.items()},
        **{f"reward_spread/{task}": round(float(rows.reward.std(ddof=0)), 4) for task, rows in frame[["task", "reward"]].groupby("task")},
    }
