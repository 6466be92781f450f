"""A version of the library, as Dagster shows it: data version, metadata, asset checks."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.columns import COLUMN_LINEAGE
from assets.plots import IN_PLACE
from assets.store import Step
from udrl_pipeline import metrics
from udrl_pipeline.characters import printable
from udrl_pipeline.pages import page_of
from udrl_pipeline.store.workspace import Expected, Version

#: Facts that are drawn, not listed.
DRAWN = {"speed"}
#: What means something in Markdown within a line; HTML is part of it.
MARKUP = re.compile(r"[\\`*_\[\]<>&!|~$]")
Results = Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]


def results(step: Step, made: Version, show: Callable[[Path], dict[str, Any]], checks: Sequence[dg.AssetCheckSpec] = ()) -> Results:
    """What an asset yields: one result for each of its checks, then the version, unless its verdict is FAIL.

    A version that failed is not published, so nothing is materialised and the steps below do not run.

    Args:
        show: What people want to look at, from the version's folder.
    """
    workspace = step.workspace
    observed = {expected.name: expected for expected in workspace.expectations(made.asset, made.version)} if checks else {}
    for spec in checks:
        yield _check(spec.name, observed.get(spec.name))
    if made.verdict == "PASS":
        folder = workspace.version_folder(made.asset, made.version)
        facts = {name: value for name, value in made.facts.items() if value is not None and name not in DRAWN}
        metadata = {**_links(made, folder), **show(folder), **_of_the_run(step, made), **_listed(facts)}
        metrics.STEP_SECONDS.set(step.usage.seconds, asset=made.asset)
        metrics.STEP_MEMORY.set(step.usage.peak, asset=made.asset)
        yield dg.MaterializeResult(data_version=dg.DataVersion(made.version), metadata=metadata)
    else:
        metrics.FAILURES.add(1, asset=made.asset, cause="check")


def newest_report() -> dict[str, Any]:
    """For an asset's definition: where the newest report is to be read."""
    page = page_of("report")
    return {"newest_report": dg.MetadataValue.url(page)} if page else {}


def _of_the_run(step: Step, made: Version) -> dict[str, Any]:
    parents = {name: dg.MetadataValue.text(version) for name, version in sorted(made.parents.items())}
    return {
        "version": made.version,
        "made_now": made.made_now,
        "dagster/row_count": made.rows,
        "seconds": round(step.usage.seconds, 1),
        "peak_memory_mb": round(step.usage.peak / 2**20),
        **{f"made from {name}": version for name, version in parents.items()},
        **made.work,
    }


def _links(made: Version, folder: Path) -> dict[str, Any]:
    """Where more is to be found: the version's folder, the ledger's answers, and the columns that its own are made from."""
    questions = ", ".join(f"`udrl audit {question} {made.version}`" for question in ("trace", "verify"))
    page = page_of(f"trace/{made.asset}@{made.version}")
    audit = dg.MetadataValue.md(f"[what it was made from]({page}); {questions}" if page else questions)
    lineage = {"dagster/column_lineage": COLUMN_LINEAGE[made.asset]} if made.asset in COLUMN_LINEAGE else {}
    return {"dagster/uri": folder.absolute().as_uri(), "audit": audit, **lineage}


def _listed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as metadata. A number for each task (or the like) is an entry of its own: the UI plots numbers over the runs."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and value and all(isinstance(v, int | float) for v in value.values()):
            found |= {f"{name}/{key}": v for key, v in value.items()}
        else:
            found[name] = _shown(value)
    return found


def _check(name: str, expected: Expected | None) -> dg.AssetCheckResult:
    if expected is None:
        return dg.AssetCheckResult(check_name=name, passed=False, severity=dg.AssetCheckSeverity.WARN, description="was not evaluated")
    severity = dg.AssetCheckSeverity.ERROR if expected.blocking else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=name,
        passed=expected.passed,
        severity=severity,
        description=None if expected.passed else "; ".join(expected.observed.get("first", ())) or None,
        metadata={key: _shown(value) for key, value in expected.observed.items()},
    )


def _shown(value: Any) -> Any:
    """A fact as metadata: numbers stay numbers (the UI plots them over the runs), mappings become a table."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and value and not any(isinstance(v, Mapping | list) for v in value.values()):
        return table(["", ""], value.items())
    return dg.MetadataValue.json(value)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return dg.MetadataValue.md("\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines))


def sample(frame: pd.DataFrame, columns: Sequence[str], rows: int = 9) -> dg.MarkdownMetadataValue:
    """Some rows of a frame, spread evenly over it: as many as the UI shows in place, and at least three."""
    spread = frame.iloc[:: max(1, len(frame) // rows)].head(rows) if len(frame) else frame
    shown = table(columns, spread[list(columns)].itertuples(index=False, name=None))
    return shown if rows <= 3 or len(shown.md_str or "") < IN_PLACE else sample(frame, columns, rows - 1)


def _cell(value: Any) -> str:
    """A cell that shows just this text: nothing in it is a link, a picture or a tag, which the page would fetch or run."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(str(value).split("\n"))))
