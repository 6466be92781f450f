"""Runs and the processes behind them: a step ends with its run, and a run whose process is gone is closed."""

import multiprocessing
import os
import socket
import threading

import dagster as dg

#: The host and the process that execute a run, and the first digits of that run.
PROCESS_TAG = "udrl/process"
#: Set by executors that start each step as a job of a cluster, and look after it themselves (dagster-ray, dagster-k8s).
STEP_ENV = "DAGSTER_RUN_STEP_KEY"
THREAD = "end with the run"


def process_tag(run_id: str, pid: int) -> dict[str, str]:
    return {PROCESS_TAG: f"{socket.gethostname()}/{pid}/{run_id[:8]}"}


def process_of(run: dg.DagsterRun) -> tuple[str, int] | None:
    """The host and the process that execute a run; None as long as no step of it has told.

    A run that is tried again begins with the tags of the one before it. Its process is told by the tag that names the run itself.
    """
    host, process, of = [*run.tags.get(PROCESS_TAG, "").split("/"), "", "", ""][:3]
    return (host, int(process)) if of and run.run_id.startswith(of) else None


def end_with_the_run() -> int | None:
    """A step whose run was killed ends at once, and with it the engine that it started; by itself it would work on, unseen.

    Dagster tells its step processes of a cancelled run, not of a killed one. Returns the process that executes the run; None where each
    step is a job of its own, whose end is not that of the run.
    """
    run = multiprocessing.parent_process()
    if run is None:
        return None if STEP_ENV in os.environ else os.getpid()

    def wait() -> None:
        run.join()
        os._exit(1)

    if not any(thread.name == THREAD for thread in threading.enumerate()):
        threading.Thread(target=wait, name=THREAD, daemon=True).start()
    return run.pid or os.getpid()


def close_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """A run whose process is gone (killed in a terminal, or with the machine) still counts as started in Dagster's history, and
    holds its slot: enter that it ended. Runs of other hosts are left alone. Returns what was closed."""
    lost = []
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])):
        if is_gone(run):
            instance.report_run_failed(run, "the process of this run is gone; the next run resumes its work")
            lost.append(run.run_id)
    return lost


def is_gone(run: dg.DagsterRun) -> bool:
    """Whether the process that executed a run on this host has ended."""
    told = process_of(run)
    return told is not None and told[0] == socket.gethostname() and not _lives(told[1])


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
