"""`explored_rows`: what a student wrote at its best commands, beside the rows that it learned from."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.columns import EXPLORED_ROWS
from assets.labeled_dataset import labeled_dataset
from assets.plots import histogram
from assets.results import Results, results, sample
from assets.store import COMPUTE, OWNERS, Store
from assets.stories import story
from udrl_pipeline import exploration
from udrl_pipeline.quality import ROW_EXPECTATIONS
from udrl_pipeline.versioning import code_version

CHECKS = [
    dg.AssetCheckSpec(spec.name, asset=exploration.ASSET, blocking=spec.blocking, description=spec.description) for spec in ROW_EXPECTATIONS
]


@dg.asset(
    description=story("explored_rows"),
    kinds={"pytorch", "greatexpectations", "duckdb", "parquet"},
    group_name="students",
    owners=OWNERS,
    code_version=code_version(exploration.SOURCES),
    metadata=EXPLORED_ROWS,
    deps=[labeled_dataset, dg.AssetKey(exploration.FIRST.split("/"))],
    check_specs=CHECKS,
    output_required=False,
    pool=COMPUTE,
)
def explored_rows(context: dg.AssetExecutionContext, store: Store) -> Results:
    with store.open(context) as step:
        yield from results(step, exploration.build(step.workspace), show, CHECKS)


def show(folder: Path) -> dict[str, Any]:
    frame = pd.read_parquet(folder / "rows.parquet")
    newest = frame[frame["round"] == frame["round"].max()]
    return {
        "sample": sample(newest, ["task", "intent", "words", "reward", "quality", "text"]),
        "rewards": histogram(newest, "reward", "reward"),
    }
