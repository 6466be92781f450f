"""`evaluation_report`: what the students achieve on held-out intents, against their teacher and each other."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.automation import LOOKED_AT, on_new_data
from assets.labeled_dataset import labeled_dataset
from assets.plots import achieved
from assets.results import Results, newest_report, results, sample, table
from assets.store import COMPUTE, OWNERS, Store
from assets.stories import story
from assets.student import students
from assets.teacher_corpus import teacher_corpus
from udrl_pipeline.evaluation import report
from udrl_pipeline.evaluation.figures import MEAN
from udrl_pipeline.pages import page_of
from udrl_pipeline.student.recipes import USUAL
from udrl_pipeline.versioning import code_version


@dg.asset(
    description=story("evaluation_report"),
    kinds={"huggingface", "matplotlib"},
    group_name="verdict",
    owners=OWNERS,
    code_version=code_version(report.SOURCES),
    metadata=newest_report(),
    deps=[teacher_corpus, labeled_dataset, *students],
    output_required=False,
    automation_condition=on_new_data(not_needed=dg.AssetSelection.assets(*students[len(USUAL) :])),
    freshness_policy=LOOKED_AT,
    pool=COMPUTE,
)
def evaluation_report(context: dg.AssetExecutionContext, store: Store) -> Results:
    with store.open(context) as step:
        yield from results(step, report.build(step.workspace), show)


def show(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    student, page = found["headline"]["student"], page_of(f"{report.ASSET}/{folder.name}/report.html")
    columns = ["task", "intent", "words", "reward", "text"]
    texts = pd.read_parquet(folder / "samples.parquet", columns=["part", "system", *columns])
    claims = [(c["verdict"], c["claim"], c["figure"]) for c in found["claims"].values() if c["verdict"] != "not measured"]
    length = {task: measured["lengths"] for task, measured in found["length"].get(student, {}).items()}
    quality = {task: measured["levels"] for task, measured in found["quality"].get(student, {}).items()}
    main = found["systems"][student]["figures"][MEAN]
    return {
        **({"report": dg.MetadataValue.md(f"[open the report]({page})")} if page else {}),
        "report_file": dg.MetadataValue.path(folder / "report.html"),
        "obeyed_length": achieved(length, "commanded words", "achieved words", ideal=True),
        "obeyed_quality": achieved(quality, "commanded quality", "achieved reward"),
        "claims": table(["verdict", "claim", "figure"], claims),
        "sample": sample(texts[(texts.part == "compare") & (texts.system == student)], columns),
        **{name: main[name]["value"] for name in ("relevance", "reward", "spread", "distinct_2", "self_bleu") if name in main},
    }
