"""The jobs, and the schedule: runs when the policy says so, otherwise skips and says why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets import jobs
from assets.definitions import defs
from assets.store import Store
from test_assets_run import write_student
from udrl_pipeline import corpus
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("kept_open")


@pytest.fixture
def tick(params: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """One evaluation of the schedule, over the two assets that need no model."""
    monkeypatch.setattr(jobs, "BUILDS", [intents.build, corpus.build])
    monkeypatch.setattr(jobs, "DEFAULT", jobs.DATA[:2])

    def tick(overrides: dict[str, Any] | None = None, under_way: dg.DagsterRun | None = None) -> Any:
        with dg.instance_for_test() as instance, dg.build_schedule_context(instance) as context:
            if under_way:
                instance.add_run(under_way)
            return jobs.retraining(context, store=Store(params=str(params), overrides=overrides or {}))

    return tick


@pytest.fixture
def made(settings: Settings, teacher: Any) -> Workspace:
    workspace = Workspace(settings)
    intents.build(workspace)
    corpus.build(workspace)
    return workspace


@pytest.fixture
def trained(made: Workspace) -> Workspace:
    corpus_version = made.parents("teacher_corpus")
    for asset, parents in (("labeled_dataset", corpus_version), ("student/udrl", {"labeled_dataset": "d1"})):
        made.record(
            asset, version="d1", fingerprint="f", code_version="c", rows=1, params={}, parents=parents,
            facts={"mean_reward": {"image": 1.0}}, write=lambda folder: None,
        )  # fmt: skip
    return made


def test_it_runs_when_nothing_was_made_yet(tick: Callable[..., Any]) -> None:
    assert tick().tags["udrl/because"] == "missing: intents: has no version yet"


def test_it_skips_with_the_versions_that_stay(tick: Callable[..., Any], made: Workspace) -> None:
    skipped = tick()
    assert isinstance(skipped, dg.SkipReason)
    versions = made.parents("intents", "teacher_corpus")
    assert skipped.skip_message == f"nothing is new: intents {versions['intents']}, teacher_corpus {versions['teacher_corpus']}"


def test_it_skips_with_the_figures_when_too_little_is_new(tick: Callable[..., Any], trained: Workspace) -> None:
    skipped = tick({"intents.builtin": 7})
    assert isinstance(skipped, dg.SkipReason)
    assert str(skipped.skip_message).startswith(
        "intents: settings have changed: builtin, but not enough: 3 rows that student/udrl d1 has not been trained on, of 200; "
        "mean rewards not moved; 0.0 days old"
    )


def test_it_runs_by_the_rule_that_holds_and_generates_nothing_to_find_out(
    tick: Callable[..., Any], trained: Workspace, teacher: Any
) -> None:
    rows = teacher.rows
    request = tick({"intents.builtin": 7, "schedule.new_rows": 3})
    assert request.tags["udrl/because"] == "new rows: 3 rows that student/udrl d1 has not been trained on, of 3"
    assert teacher.rows == rows


def test_it_runs_for_a_file_in_the_folder_of_intents(tick: Callable[..., Any], trained: Workspace, params: Path) -> None:
    (params.parent / "intents").mkdir()
    (params.parent / "intents" / "ideas.csv").write_text("intent\nred kite over the moor\n", encoding="utf-8")
    assert tick({"schedule.new_rows": 3}).tags["udrl/because"].startswith("new rows: 3 rows")


def test_it_waits_for_the_run_that_is_under_way(tick: Callable[..., Any]) -> None:
    run = dg.DagsterRun("everything", run_id="r1", status=dg.DagsterRunStatus.STARTED)
    assert tick(under_way=run).skip_message == "run r1 is under way"
    ended = dg.DagsterRun("everything", run_id="r1", status=dg.DagsterRunStatus.FAILURE)
    assert isinstance(tick(under_way=ended), dg.RunRequest)


def test_it_is_off_until_it_is_switched_on_and_looks_when_the_settings_say() -> None:
    [schedule] = defs.get_repository_def().schedule_defs
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert (schedule.cron_schedule, schedule.execution_timezone, schedule.job_name) == ("0 3 * * *", "UTC", "everything")


def test_retrain_only_names_its_recipes_in_the_launchpad() -> None:
    job = defs.resolve_job_def("retrain_only")
    assert job.run_config == {"resources": {"store": {"config": {"recipes": ["udrl", "sft"]}}}}


def test_a_run_trains_the_recipes_that_it_names_and_no_other(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def build(workspace: Workspace, recipe: str) -> Any:
        trained.append(recipe)
        return workspace.record(
            f"student/{recipe}", version="v", fingerprint="f", code_version="c", rows=1, params={}, parents={}, facts={},
            write=write_student,
        )  # fmt: skip

    def export(workspace: Workspace, recipe: str) -> Any:
        return workspace.record(
            f"student_export/{recipe}", version="v", fingerprint="f", code_version="c", rows=1, params={},
            parents={f"student/{recipe}": "v"}, facts={}, write=lambda folder: (folder / "export.json").write_text("{}"),
        )  # fmt: skip

    monkeypatch.setattr("udrl_pipeline.student.training.build", build)
    monkeypatch.setattr("udrl_pipeline.student.export.build", export)
    for recipes in (["sft"], None):
        trained.clear()
        config = {"params": str(params), "recipes": recipes} if recipes else {"params": str(params)}
        result = defs.resolve_job_def("retrain_only").execute_in_process(
            run_config={"resources": {"store": {"config": config}}}, instance=dg.DagsterInstance.ephemeral()
        )
        made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
        wanted = set(recipes or [name for name in RECIPES if name != "udrl-rounds"])
        assert made == {f"{kind}/{name}" for kind in ("student", "student_export") for name in wanted}
        assert set(trained) == wanted
