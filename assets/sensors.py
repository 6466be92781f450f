"""What starts a run by itself, or tells of one that failed. All but `lost_runs` are off until they are turned on."""

from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from assets.jobs import everything
from assets.processes import close_lost_runs
from assets.store import Store
from udrl_pipeline import hook
from udrl_pipeline.audit.pending import pending
from udrl_pipeline.characters import printable
from udrl_pipeline.errors import IntentsError
from udrl_pipeline.intents import asset
from udrl_pipeline.intents.watch import Look, look, watched_files
from udrl_pipeline.store.workspace import Workspace


@dg.sensor(job=everything, minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.STOPPED)
def new_intents(context: dg.SensorEvaluationContext, store: Store) -> dg.SensorResult:
    """One run for what is new or changed in `intents.folder` and `intents.sources`, once nobody writes to it any more."""
    workspace = store.workspace()
    before = Look.parse(context.cursor)
    seen, new = look(watched_files(workspace.settings), before)
    waiting = f"; waiting until these are at rest: {_named(seen.moving)}" if seen.moving else ""
    if not new:
        return dg.SensorResult(skip_reason=f"no new or changed file{waiting}", cursor=seen.dump())
    names = _named(str(file) for file in new)
    if _known(workspace):
        return dg.SensorResult(skip_reason=f"what they hold is known already: {names}{waiting}", cursor=seen.dump())
    context.log.info(f"new or changed: {names}{waiting}")
    request = dg.RunRequest(run_key=seen.key, tags={"udrl/because": f"new or changed: {names}"})
    return dg.SensorResult(run_requests=[request], cursor=seen.dump())


def _known(workspace: Workspace) -> bool:
    try:
        return pending(workspace, [asset.build]) is None
    except IntentsError:
        return False  # the run that is asked for tells what is wrong, once


def _named(files: Iterable[str]) -> str:
    return ", ".join(printable(Path(file).name) for file in files)


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Closes runs whose process is gone, such as after the machine went down: their slots are free, and they are tried again."""
    lost = close_lost_runs(context.instance)
    return dg.SkipReason(f"closed, because their process is gone: {', '.join(lost)}" if lost else "every run has its process")


@dg.run_failure_sensor(monitor_all_code_locations=False, default_status=dg.DefaultSensorStatus.STOPPED)
def tell_of_failures(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """Calls $UDRL_ON_FAILURE_COMMAND and $UDRL_ON_FAILURE_WEBHOOK with what failed, as JSON. A hook that fails shows in the tick."""
    run = context.dagster_run
    failures = [(event.step_key, event.step_failure_data.error) for event in context.get_step_failure_events()]
    steps = [{"step": step, "error": (error.cause or error).message.strip() if error else ""} for step, error in failures]
    message = {"run_id": run.run_id, "job": run.job_name, "message": context.failure_event.message, "steps": steps, "tags": dict(run.tags)}
    called = hook.tell(message)
    if not called:
        return dg.SkipReason(f"neither {hook.COMMAND_ENV} nor {hook.WEBHOOK_ENV} is set")
    context.log.info("; ".join(called))
    return None
