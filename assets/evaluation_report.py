"""`evaluation_report`: what the students achieve on held-out intents, against their teacher and each other."""

from pathlib import Path
from typing import Any

import dagster as dg

from assets.automation import LOOKED_AT, on_new_data
from assets.labeled_dataset import labeled_dataset
from assets.results import Results, results
from assets.store import COMPUTE, OWNERS, Store
from assets.student import students
from assets.teacher_corpus import teacher_corpus
from udrl_pipeline.evaluation import report
from udrl_pipeline.versioning import code_version


@dg.asset(
    kinds={"huggingface", "matplotlib"},
    group_name="evaluation",
    owners=OWNERS,
    code_version=code_version(report.SOURCES),
    deps=[teacher_corpus, labeled_dataset, *students],
    output_required=False,
    automation_condition=on_new_data(not_needed=dg.AssetSelection.assets(*students[1:])),
    freshness_policy=LOOKED_AT,
    pool=COMPUTE,
)
def evaluation_report(context: dg.AssetExecutionContext, store: Store) -> Results:
    """One page on the students that exist: relevance, diversity, obedience, latency, and the claims. A student that a run
    does not train takes part with its last version, or not at all."""
    workspace = store.open(context)
    yield from results(workspace, report.build(workspace), show)


def show(folder: Path) -> dict[str, Any]:
    return {"report": dg.MetadataValue.path(folder / "report.html")}
