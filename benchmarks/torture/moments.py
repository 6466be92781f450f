"""The moments at which a run is killed. They are patches of the run's own process: production code knows of none.

Where a file is to be half written, the process writes it whole, cuts it (and removes what it wrote after it), and dies at once:
what is left on the disk is what a kill in the middle of the writing leaves.
"""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.torture.pipeline import STEPS, run
from udrl_pipeline.store.database import Database
from udrl_pipeline.store.workspace import Version, Workspace

ANYWHERE, UNENTERED, PUBLISH, CHECKPOINT, TRANSACTION = "anywhere", "unentered", "publish", "checkpoint", "transaction"
#: What a kill finds, by kind.
POINTS = {
    UNENTERED: ("renamed, not in the ledger",),
    PUBLISH: ("nothing written", "half a file", "no manifest", "half a manifest", "not renamed"),
    CHECKPOINT: ("half a file", "written, not renamed", "renamed, the one before still there"),
    TRANSACTION: ("before the commit", "in the commit"),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment.

    Attributes:
        kind: ANYWHERE, UNENTERED, PUBLISH, CHECKPOINT or TRANSACTION.
        where: The asset of which a step, a version or a checkpoint is made.
        point: One of the kind's points.
        number: Which checkpoint or which transaction of the run, from 1.
        draw: In [0, 1): how far into the step, the file or the commit.
    """

    kind: str
    where: str = ""
    point: str = ""
    number: int = 1
    draw: float = 0.0


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives on")


def tear(folder: Path, draw: float) -> None:
    """Leave a folder as a kill in the middle of one of its files would."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.stat().st_mtime_ns, path))
    torn = int(draw * len(files))
    for file in files[torn + 1 :]:
        file.unlink()
    if files:
        os.truncate(files[torn], int((draw * len(files) - torn) * files[torn].stat().st_size))


def arm(moment: Moment, tell: Callable[[str], None]) -> None:
    """Patch this process, so that it dies at the moment; or tells it, where the kill comes from outside."""
    _count_transactions(moment, tell)
    if moment.kind in (ANYWHERE, CHECKPOINT):
        _count_checkpoints(moment, tell)
    if moment.kind == UNENTERED:
        _arm_unentered(moment)
    if moment.kind == PUBLISH:
        _arm_publish(moment)


def run_armed(moment: Moment, artifacts: Path, tell: Callable[[str], None], steps: Sequence[str] = tuple(STEPS)) -> None:
    """Run the steps in this process, which dies at the moment."""
    arm(moment, tell)
    run(artifacts, tell, steps)


def _arm_unentered(moment: Moment) -> None:
    insert = Workspace._insert_version

    def dying(self: Workspace, made: Version, *others: Any) -> None:
        if made.asset == moment.where:
            die()
        insert(self, made, *others)

    Workspace._insert_version = dying  # type: ignore[method-assign]


def _arm_publish(moment: Moment) -> None:
    publish, rename = Workspace._publish, Path.rename

    def dying(self: Workspace, made: Version, write: Callable[[Path], None]) -> Version:
        def writing(folder: Path) -> None:
            if moment.point == "nothing written":
                die()
            write(folder)
            if moment.point == "half a file":
                tear(folder, moment.draw)
            if moment.point in ("half a file", "no manifest"):
                die()

        return publish(self, made, writing if made.asset == moment.where else write)

    def renaming(self: Path, target: Path) -> Path:
        if self.name.startswith(".") and self.parent.as_posix().endswith(f"/{moment.where}"):
            if moment.point == "half a manifest":
                file = self / "manifest.json"
                os.truncate(file, int(moment.draw * file.stat().st_size))
            die()
        return rename(self, target)

    Workspace._publish = dying  # type: ignore[method-assign]
    Path.rename = renaming  # type: ignore[method-assign]


def _count_checkpoints(moment: Moment, tell: Callable[[str], None]) -> None:
    import transformers.trainer

    written, rename = 0, Path.rename
    last = "renamed, the one before still there"

    def rotate(output_dir: str, **_: Any) -> None:  # what the Trainer does last
        nonlocal written
        written += 1
        tell(f"checkpoint {written}")
        if (moment.kind, moment.number) == (CHECKPOINT, written):
            if moment.point == "half a file":
                tear(max(Path(output_dir).glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-")[1])), moment.draw)
            if moment.point != last:
                die()

    def renaming(self: Path, target: Path) -> Path:
        found = rename(self, target)
        if self.name.startswith("checkpoint-") and (moment.kind, moment.number, moment.point) == (CHECKPOINT, written, last):
            die()
        return found

    transformers.trainer.rotate_checkpoints = rotate
    Path.rename = renaming  # type: ignore[method-assign]


class _Told:
    """A connection that tells when its transaction is committed, or dies before."""

    def __init__(self, connection: Any, number: int, tell: Callable[[str], None], dies: bool) -> None:
        self._connection, self._number, self._tell, self._dies = connection, number, tell, dies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        if self._dies:
            die()
        self._tell(f"commit {self._number}")
        self._connection.commit()

    def close(self) -> None:  # writes the log into the file
        self._connection.close()
        self._tell(f"committed {self._number}")


def _count_transactions(moment: Moment, tell: Callable[[str], None]) -> None:
    connect, opened = Database._connect, 0

    def connecting(self: Database, read_only: bool) -> Any:
        nonlocal opened
        connection = connect(self, read_only)
        if read_only:
            return connection
        opened += 1
        dies = (moment.kind, moment.point, moment.number) == (TRANSACTION, "before the commit", opened)
        return _Told(connection, opened, tell, dies)

    Database._connect = connecting  # type: ignore[assignment, method-assign]
