"""When to train again: each rule with what it counts, and the answer when none holds."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from udrl_pipeline import corpus
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.policy import Decision, Drift, decide, reward_drift, unseen_rows
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import training

pytestmark = pytest.mark.usefixtures("kept_open")

BUILDS: list[Callable[[Workspace], Version]] = [intents.build, corpus.build]
Load = Callable[..., Settings]


def label(workspace: Workspace, version: str, mean: float) -> Version:
    """A labelled dataset of the current corpus."""
    return record(workspace, "labeled_dataset", version, {"teacher_corpus": current(workspace, "teacher_corpus").version}, mean)


def record(workspace: Workspace, asset: str, version: str, parents: dict[str, str], mean: float = 0.0) -> Version:
    return workspace.record(
        asset, version=version, fingerprint=version, code_version="c", rows=1, params={}, parents=parents,
        facts={"mean_reward": {"image": mean, "search": 0.5}}, write=lambda folder: None,
    )  # fmt: skip


def current(workspace: Workspace, asset: str) -> Version:
    found = workspace.current(asset)
    assert found
    return found


@pytest.fixture
def trained(workspace: Workspace, teacher: Any) -> Workspace:
    """A store with a student; its six ideas are eighteen rows."""
    for build in BUILDS:
        build(workspace)
    label(workspace, "d1", 1.0)
    record(workspace, "student/udrl", "s1", {"labeled_dataset": "d1"})
    return workspace


@pytest.fixture
def with_ideas(load: Load, params: Path) -> Callable[..., Workspace]:
    """The workspace after so many ideas were dropped into the folder `intents`."""

    def drop(number: int, **overrides: Any) -> Workspace:
        (params.parent / "intents").mkdir(exist_ok=True)
        lines = "".join(f"red kite number {'x' * n}\n" for n in range(1, number + 1))
        (params.parent / "intents" / "ideas.csv").write_text(f"intent\n{lines}", encoding="utf-8")
        return Workspace(load(overrides))

    return drop


def test_nothing_new_is_no_reason_however_old_the_student_is(trained: Workspace) -> None:
    later = current(trained, "student/udrl").created_at + timedelta(days=400)
    assert decide(trained, BUILDS, later) == Decision(False, "nothing new", "nothing is new")


def test_without_a_student_it_is_time(workspace: Workspace) -> None:
    assert decide(workspace, BUILDS) == Decision(True, "missing", "intents: has no version yet")


def test_enough_new_rows_are_a_reason_and_too_few_are_not(trained: Workspace, with_ideas: Callable[..., Workspace]) -> None:
    assert decide(with_ideas(2, **{"schedule.new_rows": 6}), BUILDS) == Decision(
        True, "new rows", "6 rows that student/udrl s1 has not been trained on, of 6"
    )
    assert decide(with_ideas(2, **{"schedule.new_rows": 7}), BUILDS, current(trained, "student/udrl").created_at) == Decision(
        False,
        "not yet",
        "intents: its input has changed, but not enough: 6 rows that student/udrl s1 has not been trained on, of 7; "
        "mean rewards not moved; 0.0 days old, of 30",
    )


def test_rows_count_against_the_student_not_against_the_newest_corpus(trained: Workspace, with_ideas: Callable[..., Workspace]) -> None:
    workspace = with_ideas(2)
    for build in BUILDS:
        build(workspace)  # somebody has refreshed the corpus since
    assert unseen_rows(workspace, current(workspace, "student/udrl")) == 6
    label(workspace, "d2", 1.0)
    record(workspace, "student/udrl", "s2", {"labeled_dataset": "d2"})
    assert unseen_rows(workspace, current(workspace, "student/udrl")) == 0


def test_another_teacher_setting_makes_every_row_new(trained: Workspace, load: Load) -> None:
    assert unseen_rows(Workspace(load({"teacher.temperature": 0.9})), current(trained, "student/udrl")) == 18


def test_rows_that_the_teacher_refused_are_not_new(workspace: Workspace, use_engine: Any, with_ideas: Callable[..., Workspace]) -> None:
    from conftest import FakeEngine

    use_engine(FakeEngine(refuses=("xx",)))
    workspace = with_ideas(2)
    for build in BUILDS:
        build(workspace)
    label(workspace, "d1", 1.0)
    student = record(workspace, "student/udrl", "s1", {"labeled_dataset": "d1"})
    assert unseen_rows(workspace, student) == 0


def test_a_student_whose_corpus_is_gone_has_seen_nothing(trained: Workspace) -> None:
    student = record(trained, "student/udrl", "s2", {"labeled_dataset": "unknown"})
    assert unseen_rows(trained, student) == 18


def test_moved_rewards_are_a_reason(trained: Workspace, with_ideas: Callable[..., Workspace]) -> None:
    label(trained, "d2", 1.04)
    assert reward_drift(trained, current(trained, "student/udrl")) == Drift("image", 0.04)
    assert decide(with_ideas(1), BUILDS).rule == "not yet"
    assert decide(with_ideas(1, **{"schedule.drift": 0.04}), BUILDS) == Decision(
        True, "drift", "mean reward of image moved by 0.040, of 0.04"
    )


def test_age_is_a_reason_once_anything_is_new(trained: Workspace, with_ideas: Callable[..., Workspace]) -> None:
    made = current(trained, "student/udrl").created_at
    assert decide(with_ideas(1), BUILDS, made + timedelta(days=29)).rule == "not yet"
    assert decide(with_ideas(1), BUILDS, made + timedelta(days=30)) == Decision(True, "age", "30.0 days old, of 30")


def test_a_changed_setting_of_the_training_is_a_reason_beside_too_few_rows(
    trained: Workspace, with_ideas: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(workspace: Workspace, seed: int) -> Version:
        params = {"seed": workspace.settings.student.seed}
        made = workspace.reuse("student/udrl", workspace.fingerprint("student/udrl", "c", params, {"labeled_dataset": "d1"}))
        assert made
        return made

    fingerprint = trained.fingerprint("student/udrl", "c", {"seed": 11}, {"labeled_dataset": "d1"})
    trained.record(
        "student/udrl", version="s2", fingerprint=fingerprint, code_version="c", rows=1, params={"seed": 11},
        parents={"labeled_dataset": "d1"}, facts={}, write=lambda folder: None,
    )  # fmt: skip
    builds = [*BUILDS, partial(build, seed=0)]
    assert decide(with_ideas(1), builds).rule == "not yet"
    assert decide(with_ideas(1, **{"student.seed": 3}), builds) == Decision(True, "changes", "student/udrl: settings have changed: seed")
    assert decide(with_ideas(1, **{"student.seed": 3, "schedule.changes": False}), builds).rule == "not yet"


def test_what_was_forgotten_is_a_reason(trained: Workspace, with_ideas: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "has_learned_forgotten", lambda workspace, student: student.version == "s1")
    assert decide(with_ideas(1), BUILDS) == Decision(True, "forgotten", "student/udrl s1 has learned from rows that were forgotten since")


def test_deciding_generates_and_writes_nothing(trained: Workspace, teacher: Any, with_ideas: Callable[..., Workspace]) -> None:
    rows, versions = teacher.rows, len(trained.ledger())
    decide(with_ideas(3), BUILDS)
    assert (teacher.rows, len(trained.ledger())) == (rows, versions)
    assert not (trained.folder / ".locks" / "student-udrl.lock").exists()
