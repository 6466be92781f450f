"""Killed at the worst moments, run twice at once, read while it publishes, on a full disk. `make torture` kills at full length."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.torture import pipeline, store
from benchmarks.torture.moments import CHECKPOINT, PUBLISH, TRANSACTION, UNENTERED, Moment, run_armed
from udrl_pipeline import corpus
from udrl_pipeline.errors import StoreFull
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.teacher import Reply, Request

FIRST, THEN, EXPORT = ["intents", "teacher_corpus"], ["labeled_dataset", "student/udrl"], ["student_export/udrl"]
Tell = Callable[[str], None]
#: Processes are forked from one that has imported everything, as `make torture` does: seconds less for each.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["benchmarks.torture.moments", "transformers.trainer", "sentence_transformers"])


class Child:
    """A process that does something, and tells of it."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self._told, telling = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=work, args=(*arguments, telling.send), daemon=True)
        self.process.start()
        telling.close()

    def told(self) -> Iterator[str]:
        """Each line, until the process has ended."""
        try:
            while True:
                yield self._told.recv()
        except EOFError:
            self.process.join()

    @property
    def ended(self) -> bool:
        return not self.process.is_alive()


def kill_at(moment: Moment, artifacts: Path, steps: Sequence[str]) -> Workspace:
    """Run the steps until the moment; the workspace as it was left."""
    child = Child(run_until, moment, artifacts, steps)
    for line in child.told():
        if moment.point == "in the commit" and line == f"commit {moment.number}":
            child.process.kill()
    assert child.process.exitcode == -signal.SIGKILL
    return pipeline.open_workspace(artifacts)


def run_until(moment: Moment, artifacts: Path, steps: Sequence[str], tell: Tell) -> None:
    run_armed(moment, artifacts, tell, steps)


@pytest.fixture(autouse=True)
def _engine_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "open_engine", corpus.open_engine)


def resume(workspace: Workspace, steps: Sequence[str]) -> dict[str, Any]:
    """Run the steps to their end; what the store then holds."""
    pipeline.run(workspace.folder, lambda line: None, steps)
    return store.contents(workspace)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What the first steps make when nobody disturbs them."""
    return made_in(tmp_path_factory.mktemp("undisturbed"), FIRST)


@pytest.fixture(scope="module")
def trained(undisturbed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What they and the next steps make."""
    return made_in(shutil.copytree(undisturbed.folder, tmp_path_factory.mktemp("trained") / "artifacts"), THEN)


@pytest.fixture(scope="module")
def exported(trained: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """And with the student's export."""
    return made_in(shutil.copytree(trained.folder, tmp_path_factory.mktemp("exported") / "artifacts"), EXPORT)


def made_in(artifacts: Path, steps: Sequence[str]) -> Workspace:
    """A workspace in which the steps have been made."""
    workspace = pipeline.open_workspace(artifacts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "open_engine", corpus.open_engine)
        resume(workspace, steps)
    return workspace


# -- kills --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "orphans", "staged"),
    [
        (Moment(UNENTERED, "teacher_corpus"), 1, 0),
        (Moment(PUBLISH, "teacher_corpus", "half a file", draw=0.5), 0, 1),
        (Moment(PUBLISH, "intents", "half a manifest", draw=0.5), 0, 1),
        (Moment(TRANSACTION, "teacher_corpus", "before the commit", 4), 0, 0),
        (Moment(TRANSACTION, "teacher_corpus", "in the commit", 4), 0, 0),
    ],
    ids=lambda value: f"{value.kind}-{value.point}".replace(" ", "_") if isinstance(value, Moment) else "",
)
def test_a_killed_run_leaves_nothing_unnamed_and_resumes_to_the_same(
    undisturbed: Workspace, tmp_path: Path, moment: Moment, orphans: int, staged: int
) -> None:
    workspace = kill_at(moment, tmp_path / "artifacts", FIRST)
    left = store.examine(workspace)
    assert (len(left.orphans), len(left.staged), left.unnamed, left.faults) == (orphans, staged, [], [])
    resume(workspace, FIRST)
    assert store.compare(workspace, store.contents(undisturbed)) == store.Difference(lost=0, doubled=0, others=[])


def test_a_dataset_and_a_student_killed_in_a_checkpoint_resume_to_the_same_bytes(
    undisturbed: Workspace, trained: Workspace, tmp_path: Path
) -> None:
    artifacts = shutil.copytree(undisturbed.folder, tmp_path / "artifacts")
    # where the loss is told every other step, and a checkpoint asked for every fifth
    workspace = kill_at(Moment(CHECKPOINT, "student/udrl", "half a file", number=3, draw=0.6), artifacts, THEN)
    assert [path.name for path in workspace.folder.glob(".work/student/udrl/*/checkpoints/*")] == ["checkpoint-12"]
    resume(workspace, THEN)
    assert store.compare(workspace, store.contents(trained)) == store.Difference(lost=0, doubled=0, others=[])


@pytest.mark.parametrize(
    ("moment", "orphans", "staged"),
    [
        (Moment(UNENTERED, *EXPORT), 1, 2),
        (Moment(PUBLISH, *EXPORT, "half a file", draw=0.5), 0, 3),
    ],
    ids=lambda value: f"{value.kind}-{value.point}".replace(" ", "_") if isinstance(value, Moment) else "",
)
def test_a_killed_export_is_made_again_to_the_same_bytes(
    trained: Workspace, exported: Workspace, tmp_path: Path, moment: Moment, orphans: int, staged: int
) -> None:
    workspace = kill_at(moment, shutil.copytree(trained.folder, tmp_path / "artifacts"), EXPORT)
    left = store.examine(workspace)
    assert (len(left.orphans), len(left.staged), left.unnamed, left.faults) == (orphans, staged, [], [])
    resume(workspace, EXPORT)
    assert store.compare(workspace, store.contents(exported)) == store.Difference(lost=0, doubled=0, others=[])


# -- others at the same time --------------------------------------------------------------------------------------------


def run_slowly(artifacts: Path, tell: Tell) -> None:
    """Run the first steps, and tell of each row that the teacher is asked for."""
    answer = pipeline.Teacher._answer

    def slowly(request: Request) -> Reply:
        tell("a row")
        time.sleep(0.01)
        return answer(request)

    pipeline.Teacher._answer = staticmethod(slowly)  # type: ignore[method-assign]
    pipeline.run(artifacts, lambda line: None, FIRST)


def test_two_runs_at_once_make_what_one_makes_and_ask_for_no_row_twice(undisturbed: Workspace, tmp_path: Path) -> None:
    children = [Child(run_slowly, tmp_path) for _ in range(2)]
    answered = [len(list(child.told())) for child in children]
    assert [child.process.exitcode for child in children] == [0, 0]
    assert sorted(answered) == [0, 120]
    assert store.compare(pipeline.open_workspace(tmp_path), store.contents(undisturbed)) == store.Difference(0, 0, [])


def publish(artifacts: Path, enough: Path, tell: Tell) -> None:
    """Publish one version after the other until that is enough, and tell of each."""
    workspace = pipeline.open_workspace(artifacts)

    def write(folder: Path) -> None:
        for part in range(5):
            pd.DataFrame({"row": range(20_000)}).to_parquet(folder / f"{part}.parquet")

    for number in itertools.count():
        made = workspace.record(
            "corpus", version=f"v{number:04}", fingerprint=str(number), code_version="c", rows=100_000, params={}, parents={}, facts={},
            write=write,
        )  # fmt: skip
        tell(made.version)
        if enough.exists():
            break


def test_a_reader_sees_every_version_whole_while_others_are_published(tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    child, seen, workspace = Child(publish, tmp_path / "artifacts", enough), [], pipeline.open_workspace(tmp_path / "artifacts")
    while True:
        ended = child.ended
        for folder in (workspace.folder / "corpus").glob("[!.]*"):
            workspace.check_files("corpus", folder.name)
        if version := workspace.current("corpus"):
            folder = workspace.version_folder("corpus", version.version)
            assert sum(len(pd.read_parquet(file)) for file in folder.glob("*.parquet")) == version.rows
            seen.append(version.version)
        if len(set(seen)) == 4:
            enough.touch()
        if ended:
            break
    published = list(child.told())
    assert child.process.exitcode == 0
    assert seen == sorted(seen)
    assert set(seen) <= set(published)
    assert seen[-1] == published[-1]


# -- a full disk --------------------------------------------------------------------------------------------------------


class Filler:
    """Takes the space of a disk, but for some bytes."""

    def __init__(self, disk: Path) -> None:
        self.file = disk / "filler"

    def fill(self, but: int = 0) -> None:
        with self.file.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        os.truncate(self.file, self.file.stat().st_size - but)

    def free(self) -> None:
        self.file.unlink()


def test_a_disk_that_is_full_stops_every_step_with_nothing_half_published_and_each_goes_on(
    small_disk: Path, undisturbed: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    filler, workspace, publish = Filler(small_disk), pipeline.open_workspace(small_disk / "artifacts"), Workspace._publish

    def publish_on_a_full_disk(self: Workspace, made: Any, write: Any) -> Any:
        def full(folder: Path) -> None:
            filler.fill()
            write(folder)

        return publish(self, made, full)

    made: list[str] = []
    for step in pipeline.STEPS:
        if step == "student/udrl":  # whose first checkpoint needs more: torch has words of its own for that
            filler.fill(but=300_000)
            with pytest.raises(StoreFull):
                resume(workspace, [step])
            filler.free()
        with monkeypatch.context() as patch:
            patch.setattr(Workspace, "_publish", publish_on_a_full_disk)
            with pytest.raises(StoreFull) as caught:
                resume(workspace, [step])
        assert caught.value.where.startswith(str(workspace.folder / step))
        assert caught.value.remedy == "free some space and run again: everything committed is kept"
        left = store.examine(workspace)
        assert (left.orphans, left.unnamed, left.faults) == ([], [], [])
        assert [name for name in left.staged if not name.startswith(".work/")] == []
        filler.free()
        made = [asset for asset, *_ in resume(workspace, [step])["versions"]]
    assert sorted(made) == sorted(pipeline.STEPS)
    found, expected = store.contents(workspace), store.contents(undisturbed)
    assert found["rows"] == expected["rows"]
    assert store.leftovers(workspace) == []
