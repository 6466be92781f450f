"""Rounds: the student's own texts join the pool like the teacher's, and the next student goes on from there."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import DETAILS, FakeEngine, small_params
from test_student_training import TINY, labelled
from udrl_pipeline import exploration, settings
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import StudentError, UdrlError
from udrl_pipeline.evaluation.rounds import rounds
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.decoding import Guidance
from udrl_pipeline.student.generation import Generated, Student

pytestmark = pytest.mark.usefixtures("kept_open")

ROUNDS: dict[str, object] = {**TINY, "commands.quality_bins": 5, "rounds.intents": 9, "rounds.epochs": 0.5, "quality.max_quarantined": 1.0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """What the student was asked for; it answers with the intent and details, as long as asked."""
    commands: list[Command] = []

    def generate(self: Student, given: Sequence[Command], **sampling: Any) -> list[Generated]:
        if "guidance" not in sampling:  # not the sweep
            commands.extend(given)
        return [Generated(c, Guidance(2.0), text := _text(c), len(text.split()), 30, True, ()) for c in given]

    monkeypatch.setattr(Student, "generate", generate)
    return commands


def _text(command: Command) -> str:
    draw = repr(command).encode()
    details = sorted(DETAILS, key=lambda detail: hashlib.sha256(draw + detail.encode()).digest())
    return " ".join([command.intent, *details[: max(1, (command.words or 12) - len(command.intent.split()))]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml and artifacts: a dataset and its trained student."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("udrl_pipeline.corpus.open_engine", lambda *_, **__: FakeEngine())
        workspace = labelled(settings.load(small_params(folder), preset="", overrides=ROUNDS))
        training.build(workspace, "udrl")
    return folder


@pytest.fixture
def workspace(trained: Path, tmp_path: Path, load: Callable[..., Settings], asked: list[Command]) -> Workspace:
    shutil.copytree(trained / "artifacts", tmp_path / "artifacts")
    workspace = Workspace(load(ROUNDS))
    workspace.begin_run()
    return workspace


def at_round(workspace: Workspace, number: int, load: Callable[..., Settings]) -> Workspace:
    return Workspace(load({**ROUNDS, "rounds.number": number}), workspace.run_id)


def pool(workspace: Workspace, made: Version) -> pd.DataFrame:
    return exploration.read_pool(workspace, made.version)


def test_a_round_adds_what_the_student_wrote_to_the_rows_of_the_dataset(workspace: Workspace, asked: list[Command]) -> None:
    made = exploration.build(workspace)
    rows, dataset = pool(workspace, made), workspace.parents("labeled_dataset")["labeled_dataset"]
    student = workspace.parents("student/udrl")["student/udrl"]
    assert len(asked) == 27
    assert made.parents == {"labeled_dataset": dataset, "student/udrl": student}
    assert rows.columns.tolist() == exploration.COLUMNS
    assert (rows["round"] == 0).sum() == workspace.manifest("labeled_dataset", dataset)["rows"]
    new = rows[rows["round"] == 1]
    assert len(new) == made.facts["kept"] > 20
    assert new.source.unique().tolist() == [f"student/udrl@{student}"]
    assert new.split.unique().tolist() == ["train"]
    assert new.relevance.between(-1, 1).all()


def test_a_student_is_asked_for_its_best_at_lengths_that_its_rows_have(workspace: Workspace, asked: list[Command]) -> None:
    exploration.build(workspace)
    space = CommandSpace.load(workspace.version_folder("student/udrl", workspace.parents("student/udrl")["student/udrl"]))
    assert {(c.task, c.quality) for c in asked} == set(space.best.items())
    assert all(space.covered[c.task][0] <= (c.words or 0) <= space.covered[c.task][1] for c in asked)
    assert len({c.words for c in asked}) > 5


def test_only_training_intents_are_explored(workspace: Workspace, asked: list[Command]) -> None:
    rows = pool(workspace, exploration.build(workspace))
    assert not {c.intent for c in asked} & set(rows[rows.split != "train"].intent)


def test_a_second_build_samples_nothing_and_keeps_the_version(workspace: Workspace, asked: list[Command]) -> None:
    first = exploration.build(workspace)
    asked.clear()
    second = exploration.build(workspace)
    assert (second.version, second.made_now, asked) == (first.version, False, [])


def test_a_killed_round_goes_on_where_it_stopped(workspace: Workspace, asked: list[Command], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploration, "CHUNK", 10)
    answering = Student.generate

    def dies(self: Student, given: Sequence[Command], **sampling: Any) -> list[Generated]:
        if len(asked) >= 20:
            raise KeyboardInterrupt
        return answering(self, given, **sampling)

    monkeypatch.setattr(Student, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        exploration.build(workspace)
    asked.clear()
    monkeypatch.setattr(Student, "generate", answering)
    made = exploration.build(workspace)
    assert (len(asked), made.facts["sampled"], made.work["sampled_texts"]) == (7, 27, 7)


def test_the_bins_are_cut_anew_over_the_pool(workspace: Workspace) -> None:
    made = exploration.build(workspace)
    rows = pool(workspace, made)
    for task, of_task in rows[rows.split == "train"].groupby("task"):
        edges = made.facts["edges"][task]
        assert edges == [round(float(edge), 4) for edge in of_task.reward.quantile([0.2, 0.4, 0.6, 0.8])]
        assert of_task.quality.tolist() == [1 + sum(reward >= edge for edge in edges) for reward in of_task.reward]


def test_a_text_that_the_teacher_wrote_too_is_set_aside(
    workspace: Workspace, asked: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = {(r.task, r.intent): r.text for r in pool(workspace, exploration.build(workspace)).query("round == 0").itertuples()}

    def parrot(self: Student, given: Sequence[Command], **_: Any) -> list[Generated]:
        return [Generated(c, Guidance(2.0), taught[c.task, c.intent], 9, 30, True, ()) for c in given]

    monkeypatch.setattr(Student, "generate", parrot)
    again = Workspace(workspace.settings.model_copy(update={"rounds": workspace.settings.rounds.model_copy(update={"samples": 2})}))
    again.begin_run()
    made = exploration.build(again)
    assert made.facts["kept"] < made.facts["sampled"] / 2 + 1
    assert set(pool(again, made).query("round == 0").text) == set(taught.values())


def test_the_next_student_goes_on_from_the_one_that_was_sampled(workspace: Workspace) -> None:
    explored = exploration.build(workspace)
    made = training.build(workspace, "udrl-rounds")
    student = workspace.parents("student/udrl")["student/udrl"]
    assert made.parents == {"explored_rows": explored.version, "student/udrl": student}
    assert made.facts["start"] == {"init_from": "previous", "version": student, "new_tokens": 0}
    assert (made.facts["round"], made.facts["sequences"]) == (1, round(0.5 * (pool(workspace, explored).split == "train").sum()))


def test_a_second_round_samples_the_student_of_the_first_and_keeps_its_texts(
    workspace: Workspace, load: Callable[..., Settings], asked: list[Command]
) -> None:
    first = exploration.build(workspace)
    student = training.build(workspace, "udrl-rounds")
    later = at_round(workspace, 2, load)
    second = exploration.build(later)
    assert second.parents == {
        "labeled_dataset": first.parents["labeled_dataset"], "student/udrl-rounds": student.version, "explored_rows": first.version,
    }  # fmt: skip
    rounds = pool(later, second)["round"].value_counts()
    assert (rounds[1], rounds[2]) == (first.facts["kept"], second.facts["kept"])
    assert training.build(later, "udrl-rounds").facts["round"] == 2
    asked.clear()
    assert exploration.build(later).version == second.version
    assert asked == []


def test_the_report_tells_what_each_round_brought_and_cost(workspace: Workspace, load: Callable[..., Settings]) -> None:
    explored, made = [], []
    for number in (1, 2):
        later = at_round(workspace, number, load)
        explored.append(exploration.build(later))
        made.append(training.build(later, "udrl-rounds"))
    sampled = [f"student/udrl@{made[0].parents['student/udrl']}", f"student/udrl-rounds@{made[0].version}"]
    assert rounds(workspace, {"udrl-rounds": made[1]}) == [
        {
            "round": number, "student": student.version, "pool": pool.version, "sampled_from": source, "sampled": 27,
            "kept": pool.facts["kept"], "mean_reward": pool.facts["mean_reward"], "mean_reward_before": pool.facts["mean_reward_before"],
            "sampling_seconds": pool.facts["sampling_seconds"], "sequences": student.facts["sequences"],
        }
        for number, student, pool, source in zip((1, 2), made, explored, sampled, strict=True)
    ]  # fmt: skip
    student = workspace.current("student/udrl")
    assert student is not None
    assert rounds(workspace, {"udrl": student}) == []


def test_rounds_draw_different_intents(workspace: Workspace, load: Callable[..., Settings]) -> None:
    student = workspace.current("student/udrl")
    assert student is not None
    rows = pool(workspace, exploration.build(workspace)).query("round == 0")
    first, second = (
        {p.intent_key for p in exploration.plan(at_round(workspace, number, load), student, rows) if p.command.task == "image"}
        for number in (1, 2)
    )
    assert len(first) == len(second) == 9
    assert first != second


def test_a_round_without_the_one_before_is_a_typed_error(workspace: Workspace, load: Callable[..., Settings]) -> None:
    with pytest.raises(StudentError, match="round 2 has not been trained yet"):
        exploration.build(at_round(workspace, 3, load))


def test_a_round_without_a_student_is_a_typed_error(load: Callable[..., Settings], use_engine: Callable[[FakeEngine], FakeEngine]) -> None:
    use_engine(FakeEngine())
    with pytest.raises(UdrlError, match="no student to sample yet"):
        exploration.build(labelled(load(ROUNDS)))
