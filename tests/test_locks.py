"""One process at a time makes an asset, and it is told which."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from udrl_pipeline.errors import StoreLocked
from udrl_pipeline.store.workspace import Workspace


def test_one_process_at_a_time_makes_an_asset_and_a_dead_one_frees_it(workspace: Workspace) -> None:
    script = f"""
from pathlib import Path
from filelock import FileLock
import time
path = Path({str(workspace.folder)!r}) / ".locks" / "student-udrl.lock"
path.parent.mkdir(parents=True)
with FileLock(path):
    print("held", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(StoreLocked) as caught, workspace.lock("student/udrl", wait_s=0.2):
        pass
    assert caught.value.what == "another process is making student/udrl"
    assert caught.value.where.endswith("student-udrl.lock")
    with workspace.lock("student/sft", wait_s=0.2):
        pass
    child.kill()
    child.communicate()
    with workspace.lock("student/udrl", wait_s=5):
        pass


def test_a_lock_is_freed_when_its_block_raises(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError), workspace.lock("corpus"):
        raise ZeroDivisionError
    with workspace.lock("corpus", wait_s=0.2):
        pass


def test_who_makes_an_asset_is_told_without_waiting(workspace: Workspace) -> None:
    with workspace.lock("student/udrl"):
        [holder] = Workspace(workspace.settings).holders()
        assert (holder.asset, holder.run_id, holder.process, holder.lives) == ("student/udrl", "run-1", os.getpid(), True)
        assert datetime.now(UTC) - holder.since < timedelta(minutes=1)
    assert workspace.holders() == []


def test_who_was_killed_while_making_an_asset_is_told_until_it_is_made(workspace: Workspace) -> None:
    with workspace.lock("corpus"):
        left = (workspace.folder / ".locks" / "corpus.holder.json").read_text()
    (workspace.folder / ".locks" / "corpus.holder.json").write_text(left)
    assert [(holder.asset, holder.lives) for holder in workspace.holders()] == [("corpus", False)]
    (workspace.folder / ".locks" / "other.holder.json").write_text("{")  # of one that has just begun to write it
    with workspace.lock("corpus"):
        pass
    assert workspace.holders() == []
