"""The ledger for other catalogues: as OpenLineage events (openlineage.io), or as JSON of everything that it holds."""

import json
import uuid
from typing import Any

from udrl_pipeline import __version__, corpus
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.history import history
from udrl_pipeline.store.workspace import Expected, Version, Workspace

RUN = ("run_id", "started_at", "git_sha", "git_dirty", "params", "packages", "host")
PRODUCER = f"urn:udrl_pipeline:{__version__}"
#: Run ids that are no UUID become one below this.
RUNS = uuid.UUID("6d0c2f0e-3f6c-5b1e-9a0d-1f5d2c6b7a80")


def as_openlineage(workspace: Workspace, namespace: str) -> list[str]:
    """One event (a line of JSON) for each making of the ledger, the oldest first: a job is an asset, a dataset one of its versions.

    Args:
        namespace: Under which the catalogue files the jobs and datasets.
    """
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import data_quality_assertions_dataset as quality
    from openlineage.client.facet_v2 import dataset_version_dataset, parent_run, set_producer, source_code_location_job
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics
    from openlineage.client.serde import Serde

    set_producer(PRODUCER)

    def version_facet(version: str) -> dict[str, Any]:
        return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)}

    def facets(made: Version) -> dict[str, Any]:
        checks = [_assertion(quality.Assertion, e) for e in workspace.expectations(made.asset, made.version)]
        told = {"dataQualityAssertions": quality.DataQualityAssertionsDatasetFacet(checks)} if checks else {}
        return version_facet(made.version) | told

    commits = {entry.version.run_id: entry.git_sha for entry in history(workspace, Book(workspace).makings)}
    lines = []
    for place, made in enumerate(workspace.ledger()):
        sha = commits.get(made.run_id)
        where: dict[str, Any] = (
            {"sourceCodeLocation": source_code_location_job.SourceCodeLocationJobFacet(type="git", url="", version=sha)} if sha else {}
        )
        parent = parent_run.ParentRunFacet(parent_run.Run(_run_uuid(made.run_id)), parent_run.Job(namespace, "udrl run"))
        counted: dict[str, Any] = {"outputStatistics": statistics.OutputStatisticsOutputDatasetFacet(rowCount=made.rows)}
        passed = made.verdict == "PASS"
        event = RunEvent(
            eventType=RunState.COMPLETE if passed else RunState.FAIL,
            eventTime=made.created_at.isoformat(),
            producer=PRODUCER,
            run=Run(str(uuid.uuid5(RUNS, f"{made.run_id} {made.asset} {place}")), {"parent": parent}),
            job=Job(namespace, made.asset, where),
            inputs=[InputDataset(namespace, asset, facets=version_facet(version)) for asset, version in _inputs(made)],
            outputs=[OutputDataset(namespace, made.asset, counted, facets=facets(made))] if passed else [],
        )
        lines.append(Serde.to_json(event))
    return lines


def _assertion(kind: Any, expected: Expected) -> Any:
    severity = "error" if expected.blocking else "warn"
    return kind(assertion=expected.name, success=expected.passed, severity=severity, actual=json.dumps(expected.observed))


def _inputs(made: Version) -> list[tuple[str, str]]:
    """What a version was made from; for a corpus also the teacher, by its digest."""
    return sorted([*made.made_from, *([("teacher", made.params["source"])] if made.asset == corpus.ASSET else [])])


def _run_uuid(run_id: str) -> str:
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(RUNS, run_id))


def as_json(workspace: Workspace) -> dict[str, Any]:
    """Everything that the ledger holds, but no row of text: runs, versions with their parents and checks,
    tombstones, promotions."""
    book = Book(workspace)
    with workspace.database.reader() as connection:
        found = connection.execute(f"SELECT {', '.join(RUN)} FROM runs ORDER BY rowid").fetchall()
    runs = [dict(zip(RUN, row, strict=True)) for row in found]
    for run in runs:
        run |= {name: json.loads(run[name]) for name in ("params", "packages", "host")} | {"started_at": run["started_at"].isoformat()}
    versions = [
        entry.as_dict() | {"checks": [_check(e) for e in workspace.expectations(entry.version.asset, entry.version.version)]}
        for entry in history(workspace, list(book.versions.values()))
    ]
    stones = [
        {
            "number": s.number,
            "kind": s.kind,
            "subject": s.subject,
            "reason": s.reason,
            "row_keys": s.row_keys,
            "created_at": s.created_at.isoformat(),
        }
        for s in workspace.tombstones()
    ]
    promotions = [entry.as_dict() for entry in workspace.promotions()]
    return {"runs": runs, "versions": versions, "tombstones": stones, "promotions": promotions}


def _check(expected: Expected) -> dict[str, Any]:
    return {"name": expected.name, "passed": expected.passed, "blocking": expected.blocking, "observed": expected.observed}
