"""Killed at the worst moments, run twice at once, read while it publishes, on a full disk. `make torture` kills at full length."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.torture import pipeline, store
from benchmarks.torture.moments import CHECKPOINT, PUBLISH, TRANSACTION, UNENTERED, Moment
from conftest import REPOSITORY
from udrl_pipeline import corpus
from udrl_pipeline.errors import StoreFull
from udrl_pipeline.store.workspace import Workspace

FIRST, WITH_STUDENT = list(pipeline.STEPS)[:2], list(pipeline.STEPS)[:4]
KILLED = """
import json, sys
from pathlib import Path
from benchmarks.torture.moments import Moment, arm
from benchmarks.torture.pipeline import run
def tell(line):
    print(line, flush=True)
arm(Moment(**json.loads(sys.argv[2])), tell)
run(Path(sys.argv[1]), tell, json.loads(sys.argv[3]))
"""


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def kill_at(moment: Moment, artifacts: Path, steps: Sequence[str]) -> Workspace:
    """Run the steps until the moment; the workspace as it was left."""
    fields = {name: getattr(moment, name) for name in Moment.__slots__}
    child = start(KILLED, artifacts, json.dumps(fields), json.dumps(steps))
    assert child.stdout is not None
    for line in child.stdout:
        if moment.point == "in the commit" and line == f"commit {moment.number}\n":
            child.kill()
    assert child.wait() == -signal.SIGKILL
    return pipeline.open_workspace(artifacts)


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
    workspace = pipeline.open_workspace(tmp_path_factory.mktemp("undisturbed"))
    engine = corpus.open_engine
    resume(workspace, FIRST)
    corpus.open_engine = engine
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


def test_a_student_killed_in_a_checkpoint_resumes_to_the_same_bytes(undisturbed: Workspace, tmp_path: Path) -> None:
    whole = Workspace(undisturbed.settings.model_copy(update={"artifacts": str(tmp_path / "whole")}))
    shutil.copytree(undisturbed.folder, whole.folder)
    resume(whole, WITH_STUDENT[:3])
    killed = shutil.copytree(whole.folder, tmp_path / "killed")
    expected = resume(whole, WITH_STUDENT)
    # where the loss is told every other step, and a checkpoint asked for every fifth
    workspace = kill_at(Moment(CHECKPOINT, "student/udrl", "half a file", number=3, draw=0.6), killed, WITH_STUDENT)
    assert [path.name for path in workspace.folder.glob(".work/student/udrl/*/checkpoints/*")] == ["checkpoint-12"]
    assert resume(workspace, WITH_STUDENT) == expected
    assert store.leftovers(workspace) == []


# -- others at the same time --------------------------------------------------------------------------------------------

TWO = """
import sys, time
from pathlib import Path
from benchmarks.torture import pipeline
answered, answer = 0, pipeline.Teacher._answer
def slowly(request):
    global answered
    answered += 1
    time.sleep(0.01)
    return answer(request)
pipeline.Teacher._answer = staticmethod(slowly)
pipeline.run(Path(sys.argv[1]), lambda line: None, ["intents", "teacher_corpus"])
print(answered)
"""


def test_two_runs_at_once_make_what_one_makes_and_ask_for_no_row_twice(undisturbed: Workspace, tmp_path: Path) -> None:
    children = [start(TWO, tmp_path) for _ in range(2)]
    answered = [int(child.communicate()[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(answered) == [0, 120]
    assert store.compare(pipeline.open_workspace(tmp_path), store.contents(undisturbed)) == store.Difference(0, 0, [])


PUBLISHING = """
import itertools, sys
from pathlib import Path
import pandas as pd
from benchmarks.torture.pipeline import open_workspace
workspace = open_workspace(Path(sys.argv[1]))
def write(folder):
    for part in range(5):
        pd.DataFrame({"row": range(20_000)}).to_parquet(folder / f"{part}.parquet")
for number in itertools.count():
    workspace.record("corpus", version=f"v{number:04}", fingerprint=str(number), code_version="c", rows=100_000, params={}, parents={},
                     facts={}, write=write)
    print(f"v{number:04}", flush=True)
    if Path(sys.argv[2]).exists():
        break
"""


def test_a_reader_sees_every_version_whole_while_others_are_published(tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    child, seen, workspace = start(PUBLISHING, tmp_path / "artifacts", enough), [], pipeline.open_workspace(tmp_path / "artifacts")
    while True:
        ended = child.poll() is not None
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
    published = child.communicate()[0].split()
    assert child.returncode == 0
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
        assert [name for name in left.staged if "checkpoint" not in name] == []
        filler.free()
        made = [asset for asset, *_ in resume(workspace, [step])["versions"]]
    assert sorted(made) == sorted(pipeline.STEPS)
    found, expected = store.contents(workspace), store.contents(undisturbed)
    assert found["rows"] == expected["rows"]
    assert store.leftovers(workspace) == []
