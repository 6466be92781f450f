"""`intents`: users' short ideas, built in or from files."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.automation import on_new_data
from assets.columns import INTENTS
from assets.plots import histogram
from assets.results import Results, results, sample
from assets.store import DUCKDB, OWNERS, Store
from assets.stories import story
from udrl_pipeline.intents import asset
from udrl_pipeline.versioning import code_version

CHECKS = [
    dg.AssetCheckSpec("no_intent_on_two_sides", asset=asset.ASSET, blocking=True, description="Every intent is in one split"),
    dg.AssetCheckSpec("lines_are_usable", asset=asset.ASSET, description="No line of the users' files had to be set aside"),
]


@dg.asset(
    description=story("intents"),
    kinds={"python", "parquet"},
    group_name="data",
    owners=OWNERS,
    code_version=code_version(asset.SOURCES),
    metadata=INTENTS,
    check_specs=CHECKS,
    output_required=False,
    automation_condition=on_new_data(),
    pool=DUCKDB,
)
def intents(context: dg.AssetExecutionContext, store: Store) -> Results:
    with store.open(context) as step:
        yield from results(step, asset.build(step.workspace), show, CHECKS)


def show(folder: Path) -> dict[str, Any]:
    frame = pd.read_parquet(folder / "intents.parquet")
    return {
        "sample": sample(frame, ["intent", "tasks", "split", "source"]),
        "words": histogram(frame.assign(words=frame.intent.str.split().str.len()), "words", "length (words)", by="split"),
    }
