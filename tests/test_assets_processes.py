"""A step's process ends with the process of its run, however that ends. (Runs that lost theirs: tests/test_assets_run.py.)"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from assets.processes import STEP_ENV, end_with_the_run
from conftest import REPOSITORY

#: As Dagster's executor starts a step: a spawned child of the process that executes the run.
RUN = """
import multiprocessing, os, sys, time

def step():
    if sys.argv[1] == "watched":
        from assets.processes import end_with_the_run
        assert end_with_the_run() == os.getppid()
    print(os.getpid(), flush=True)
    time.sleep(30)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=step)
    process.start()
    process.join()
"""


@pytest.mark.parametrize(("how", "ends"), [("watched", True), ("unwatched", False)])
def test_a_step_ends_when_its_run_is_killed_and_would_not_by_itself(tmp_path: Path, how: str, ends: bool) -> None:
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.Popen([sys.executable, "run.py", how], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout
    step = psutil.Process(int(run.stdout.readline()))
    try:
        run.send_signal(signal.SIGKILL)
        run.wait()
        deadline = time.monotonic() + (10 if ends else 0.5)
        while alive(step) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive(step) is not ends
    finally:
        if alive(step):
            step.kill()
        run.stdout.close()


def test_a_step_that_is_a_job_of_its_own_does_not_stand_for_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ends before the run does, which `lost_runs` would take for the run's end."""
    assert end_with_the_run() == os.getpid()
    monkeypatch.setenv(STEP_ENV, "intents")
    assert end_with_the_run() is None


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
