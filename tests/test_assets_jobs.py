"""The daily retraining: runs when something is new, otherwise skips and says what stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets import jobs
from assets.definitions import defs
from assets.store import Store
from udrl_pipeline import corpus
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace


@pytest.fixture
def tick(params: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """One evaluation of the schedule, over the two assets that need no model."""
    monkeypatch.setattr(jobs, "BUILDS", [intents.build, corpus.build])
    monkeypatch.setattr(jobs, "DEFAULT", jobs.DATA[:2])

    def tick(overrides: dict[str, Any] | None = None) -> Any:
        with dg.DagsterInstance.ephemeral() as instance, dg.build_schedule_context(instance) as context:
            return jobs.daily_retraining(context, store=Store(params=str(params), overrides=overrides or {}))

    return tick


@pytest.fixture
def made(settings: Settings, teacher: Any) -> Workspace:
    workspace = Workspace(settings)
    intents.build(workspace)
    corpus.build(workspace)
    return workspace


def test_it_runs_when_nothing_was_made_yet(tick: Callable[..., Any]) -> None:
    assert tick().tags["udrl/new"] == "intents"


def test_it_skips_with_the_versions_that_stay(tick: Callable[..., Any], made: Workspace) -> None:
    skipped = tick()
    assert isinstance(skipped, dg.SkipReason)
    versions = made.parents("intents", "teacher_corpus")
    assert skipped.skip_message == f"nothing is new: intents {versions['intents']}, teacher_corpus {versions['teacher_corpus']}"


def test_it_generates_nothing_to_find_out(tick: Callable[..., Any], made: Workspace, teacher: Any) -> None:
    rows = teacher.rows
    assert tick({"intents.builtin": 7}).tags["udrl/new"] == "intents"
    assert teacher.rows == rows


def test_it_runs_for_a_new_line_in_an_intents_file(tick: Callable[..., Any], made: Workspace, tmp_path: Path) -> None:
    (tmp_path / "ideas.csv").write_text("intent\nred kite over the moor\n", encoding="utf-8")
    assert tick({"intents.sources": ["ideas.csv"]}).tags["udrl/new"] == "intents"


def test_it_runs_for_a_changed_setting(tick: Callable[..., Any], made: Workspace) -> None:
    assert tick({"teacher.temperature": 0.9}).tags["udrl/new"] == "teacher_corpus"


def test_it_is_off_until_it_is_switched_on() -> None:
    [schedule] = defs.get_repository_def().schedule_defs
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "UTC")
