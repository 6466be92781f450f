"""What `udrl status` hands over to: how the store stands, with what Dagster's history knows of its runs.

python -m assets.status '{"as_json": true}'
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from assets.processes import is_gone, process_of
from assets.run import account, open_instance
from udrl_pipeline import cli_output
from udrl_pipeline.cli_status import show_status
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.settings import load
from udrl_pipeline.status import Failed, Running, status
from udrl_pipeline.steps import BUILDS
from udrl_pipeline.store.workspace import Workspace

#: How many of the last failed runs are looked into.
LAST = 5
#: Dagster's names of the steps.
STEPS = {asset.replace("/", "__").replace("-", "_"): asset for asset in BUILDS}
WAITING = (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)
GOING = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


@dataclass(frozen=True)
class Wish:
    """What `udrl status` was asked for."""

    overrides: dict[str, Any] = field(default_factory=dict)
    as_json: bool = False


def main(wish: Wish) -> int:
    """Exit code: 0; 2 the settings or the store cannot be read."""
    try:
        workspace = Workspace(load(overrides=wish.overrides))
        with open_instance() as instance:
            running, killed = going_on(instance)
            failed = list(unmended(instance))
        show_status(status(workspace, running, [*killed, *failed]), wish.as_json)
    except UdrlError as error:
        cli_output.error(str(error))
        return 2
    return 0


def going_on(instance: dg.DagsterInstance) -> tuple[list[Running], list[Failed]]:
    """The runs that have not ended, and those of them whose process was killed."""
    running, killed = [], []
    for record in instance.get_run_records(dg.RunsFilter(statuses=[*GOING, *WAITING])):
        run, since = record.dagster_run, _time(record.start_time)
        told = process_of(run)
        if is_gone(run):
            killed.append(Failed("", since, "killed", "the process of this run was killed; the next run resumes", run.run_id))
        else:
            running.append(Running(run.run_id, "", since, "queued" if run.status in WAITING else "running", told[1] if told else None))
    return running, killed


def unmended(instance: dg.DagsterInstance) -> Iterator[Failed]:
    """The last failures of assets that were not materialised since, and of runs that ended outside of a step with none since."""
    good = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]), limit=1)
    last_good = (good[0].end_time or 0) if good else 0
    told: set[str] = set()
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=LAST):
        run_id, ended = record.dagster_run.run_id, record.end_time or 0
        events = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]
        failures: list[tuple[str, str, str]] = [
            (f.asset, f.cause, _short(f.message, f.name)) for f in account(events, STEPS, {}).failures if f.cause != "books"
        ]
        if not failures and ended > last_good:
            message = next((e.message or "" for e in reversed(events) if e.event_type == dg.DagsterEventType.RUN_FAILURE), "")
            failures = [("", "run", _short(message))]
        for asset, cause, message in failures:
            if asset not in told and ended > _made(instance, asset):
                told.add(asset)
                yield Failed(asset, _time(ended), cause, message, run_id)


def _made(instance: dg.DagsterInstance, asset: str) -> float:
    """When an asset was last materialised."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset.split("/"))) if asset else None
    return event.timestamp if event else 0.0


def _short(message: str, name: str = "") -> str:
    """The first line of a message, of a traceback the error; with the name of what failed before it."""
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")[:300]
    return first if not name or first.startswith(name) else f"{name}: {first}"


def _time(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


if __name__ == "__main__":
    try:
        code = main(Wish(**json.loads(sys.argv[1])))
        sys.stdout.flush()
    except BrokenPipeError:  # `udrl status | head` has read enough
        code = 1
    sys.stderr.flush()
    os._exit(code)  # as in assets/run.py: taking the libraries apart takes longer than the answer
