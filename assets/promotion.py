"""`promotion`: which student of each recipe is in use."""

from typing import Any

import dagster as dg

from assets.automation import on_new_data
from assets.evaluation_report import evaluation_report
from assets.results import Results, results, table
from assets.store import DUCKDB, OWNERS, Store
from assets.stories import story
from udrl_pipeline import promotion as gate
from udrl_pipeline.pages import page_of
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.versioning import code_version

CHECK = dg.AssetCheckSpec(
    "candidate_is_not_worse", asset=gate.ASSET, description="The newest student of each recipe is in use, or was not refused by the gate"
)


@dg.asset(
    description=story("promotion"),
    kinds={"duckdb"},
    group_name="verdict",
    owners=OWNERS,
    code_version=code_version(gate.SOURCES),
    deps=[evaluation_report],
    check_specs=[CHECK],
    output_required=False,
    automation_condition=on_new_data(),
    pool=DUCKDB,
)
def promotion(context: dg.AssetExecutionContext, store: Store) -> Results:
    with store.open(context) as step:
        made, refused = gate.build(step.workspace), gate.refused(step.workspace)
        yield dg.AssetCheckResult(
            check_name=CHECK.name,
            passed=not refused,
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(f"{asset} {entry.version}: {entry.reason}" for asset, entry in refused.items()) or None,
            metadata={"refused": dg.MetadataValue.json({asset: entry.as_dict() for asset, entry in refused.items()})},
        )
        yield from results(step, made, lambda _: show(step.workspace, made.parents[evaluation_report.key.to_user_string()]))


def show(workspace: Workspace, report: str) -> dict[str, Any]:
    """The last decision about each recipe, its intervals, and the report that it was read from."""
    last = {entry.asset: entry for entry in workspace.promotions()}
    decided = [(name, e.action, e.version, e.in_use or "", e.decided_by, e.reason) for name, e in sorted(last.items())]
    measured = [
        (name, measure, *(figure[end] for end in ("value", "low", "high")))
        for name, e in sorted(last.items())
        for measure, figure in e.figures.get("measures", {}).items()
    ]
    asset = evaluation_report.key.to_user_string()
    page = page_of(f"{asset}/{report}/report.html")
    return {
        "decisions": table(["recipe", "decision", "student", "in use", "by", "because"], decided),
        "against the one in use": table(["recipe", "measure", "share", "low", "high"], measured),
        **({"report": dg.MetadataValue.md(f"[open the report]({page})")} if page else {}),
        "report_file": dg.MetadataValue.path(workspace.version_folder(asset, report) / "report.html"),
        **{f"{name} {measure}": float(value) for name, measure, value, *_ in measured},
    }
