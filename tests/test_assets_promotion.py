"""The asset `promotion`: what Dagster shows of it, and the check that warns when the newest student was refused."""

import json
from pathlib import Path

import dagster as dg
import pytest

from assets.run import Wish, materialise, open_instance
from test_assets_run import METRICS, Library, by_asset, library, project, write_report
from test_promotion import ratio
from udrl_pipeline import promotion
from udrl_pipeline.evaluation import report
from udrl_pipeline.settings import load
from udrl_pipeline.store.workspace import Version, Workspace, in_role
from udrl_pipeline.student.channel import promoted
from udrl_pipeline.versioning import code_version, content_hash

pytestmark = pytest.mark.usefixtures("kept_open")

__all__ = ["library", "project"]  # fixtures

UDRL = "student/udrl"
WISH = Wish(select=[UDRL, "evaluation_report", "promotion"])
MEASURES = ("reward", "relevance", "spread", "finished")


class Compared:
    """A report that compares the newest student with the one in use; the intervals begin at `low`."""

    low = 1.0

    def build(self, workspace: Workspace) -> Version:
        parents, current = workspace.parents(UDRL), promoted(workspace, UDRL)
        code = code_version(report.SOURCES)
        fingerprint = workspace.fingerprint(report.ASSET, code, {}, parents)
        if made := workspace.reuse(report.ASSET, fingerprint):
            return made
        if current:
            parents[in_role(UDRL, "promoted")] = current.version
        found = {"udrl": {"udrl_promoted": {"mean": {name: ratio(self.low) for name in MEASURES}}}}

        def write(folder: Path) -> None:
            write_report(folder)
            (folder / "metrics.json").write_text(json.dumps(METRICS | {"against": found}), encoding="utf-8")

        return workspace.record(
            report.ASSET, version=content_hash([parents, found]), fingerprint=fingerprint, code_version=code, rows=1, params={},
            parents=parents, facts={}, write=write,
        )  # fmt: skip


@pytest.fixture
def compared(library: Library, project: Path, monkeypatch: pytest.MonkeyPatch) -> Compared:
    compared = Compared()
    monkeypatch.setattr(report, "build", compared.build)
    return compared


def shown() -> tuple[dg.AssetMaterialization, dg.AssetCheckEvaluation]:
    """The newest materialisation, and the newest verdict of the check."""
    key = dg.AssetCheckKey(dg.AssetKey(promotion.ASSET), "candidate_is_not_worse")
    with open_instance() as instance:
        event = instance.get_latest_materialization_event(key.asset_key)
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert event
    assert event.asset_materialization
    assert record.event
    assert record.event.asset_check_evaluation
    return event.asset_materialization, record.event.asset_check_evaluation


def test_a_refused_student_is_a_warning_with_its_reason_and_the_run_goes_well(compared: Compared) -> None:
    run = materialise(Wish())
    first, (made, check) = by_asset(run, "version"), shown()
    assert (run.exit_code, check.passed) == (0, True)
    assert (made.tags or {})["dagster/data_version"] == content_hash({UDRL: first[UDRL]})
    assert "it is the first" in str(made.metadata["decisions"].value)

    compared.low = 0.9
    run = materialise(Wish(WISH.select, {"student.seed": 12}))
    newest, changed = by_asset(run, "version"), by_asset(run, "changed")
    made, check = shown()
    assert (run.exit_code, run.failures, changed[UDRL], changed["promotion"]) == (0, [], True, False)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    reason = "not shown to be as good: reward 92.0% [90.0%, 94.0%] of that of the student in use, not within the margin of 2.0%"
    assert check.description == f"{UDRL} {newest[UDRL]}: {reason}"
    assert made.metadata[f"{UDRL} reward"].value == pytest.approx(0.92)
    decided = str(made.metadata["decisions"].value)
    assert newest[UDRL] in decided
    assert first[UDRL] in decided
    assert str(made.metadata["report_file"].value) == run.report

    again = materialise(Wish(WISH.select, {"student.seed": 12}))
    assert (set(by_asset(again, "changed").values()), len(Workspace(load()).promotions())) == ({False}, 2)
    assert shown()[1].passed is False

    compared.low = 1.0
    run = materialise(Wish(WISH.select, {"student.seed": 13}))
    assert (by_asset(run, "changed")["promotion"], shown()[1].passed) == (True, True)
    current = promoted(Workspace(load()), UDRL)
    assert current
    assert current.version == by_asset(run, "version")[UDRL]
