"""A version of the library, as Dagster shows it: data version, metadata, asset checks."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from assets.columns import COLUMN_LINEAGE
from udrl_pipeline.characters import printable
from udrl_pipeline.store.workspace import Expected, Version, Workspace

#: What means something in Markdown within a line; HTML is part of it.
MARKUP = re.compile(r"[\\`*_\[\]<>&!|~$]")
Results = Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]


def results(
    workspace: Workspace, made: Version, show: Callable[[Path], dict[str, Any]], checks: Sequence[dg.AssetCheckSpec] = ()
) -> Results:
    """What an asset yields: one result for each of its checks, then the version, unless its verdict is FAIL.

    A version that failed is not published, so nothing is materialised and the steps below do not run.

    Args:
        show: What people want to look at, from the version's folder.
    """
    observed = {expected.name: expected for expected in workspace.expectations(made.asset, made.version)} if checks else {}
    for spec in checks:
        yield _check(spec.name, observed.get(spec.name))
    if made.verdict == "PASS":
        folder = workspace.version_folder(made.asset, made.version)
        facts = {name: _shown(value) for name, value in made.facts.items() if value is not None}
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(made.version),
            metadata={**facts, **_of_the_run(made), **show(folder), **_links(made, folder)},
        )


def _of_the_run(made: Version) -> dict[str, Any]:
    parents = {name: dg.MetadataValue.text(version) for name, version in sorted(made.parents.items())}
    return {
        "version": made.version,
        "made_now": made.made_now,
        "dagster/row_count": made.rows,
        "seconds": round(made.seconds, 1),
        **{f"made from {name}": version for name, version in parents.items()},
        **made.work,
    }


def _links(made: Version, folder: Path) -> dict[str, Any]:
    """Where more is to be found: the version's folder, the ledger's answers, and the columns that its own are made from."""
    questions = [f"`udrl audit {question} {made.version}`" for question in ("trace", "verify")]
    lineage = {"dagster/column_lineage": COLUMN_LINEAGE[made.asset]} if made.asset in COLUMN_LINEAGE else {}
    return {"dagster/uri": folder.absolute().as_uri(), "audit": dg.MetadataValue.md(", ".join(questions)), **lineage}


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
    """A fact as metadata: numbers stay numbers (the UI plots them over time), mappings become a table."""
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
    """Some rows of a frame, spread evenly over it."""
    spread = frame.iloc[:: max(1, len(frame) // rows)].head(rows) if len(frame) else frame
    return table(columns, spread[list(columns)].itertuples(index=False, name=None))


def _cell(value: Any) -> str:
    """A cell that shows just this text: nothing in it is a link, a picture or a tag, which the page would fetch or run."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(str(value).split("\n"))))
