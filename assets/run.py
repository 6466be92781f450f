"""What `udrl run` hands over to: materialise assets in this process, keep Dagster's history, and tell how it went.

    python -m assets.run '{"select": ["labeled_dataset"], "as_json": true}'

The keys are those of `Wish`; params.yaml, preset and DAGSTER_HOME come from the environment.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.events import DagsterEvent
from dagster._core.instance.ref import InstanceRef
from dagster._core.utils import make_new_run_id
from dagster_shared.error import SerializableErrorInfo

from assets.processes import close_lost_runs, process_tag
from udrl_pipeline import errors
from udrl_pipeline.cli_copy import copy_version
from udrl_pipeline.cli_output import Failure, Outcome, Run, announce, progress_to_stderr, show_run
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.settings import load
from udrl_pipeline.store.database import translate
from udrl_pipeline.store.workspace import Workspace

REPORT = "evaluation_report"

#: This process has a terminal, so nothing redirects its output; and it waits at the store's own locks, which an operating
#: system frees when their holder is killed. A slot of a pool would stay taken.
IN_THIS_PROCESS = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"},
    "concurrency": {"pools": {"default_limit": 1, "granularity": "run"}},
}


@dataclass(frozen=True)
class Wish:
    """What `udrl run` was asked for: assets (default: those of the job `everything`), single settings, and what to do with the results."""

    select: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    as_json: bool = False
    copy_to: str | None = None


def main(wish: Wish) -> int:
    """Exit code: 0; 1 a blocking check failed; 2 an input is at fault; 130 interrupted."""
    progress_to_stderr()
    try:
        with stdout_kept_for_results():
            run = materialise(wish)
    except KeyboardInterrupt:
        run = Run(interrupted=True)
    except Exception as error:
        told = translate(error, Path(os.environ["DAGSTER_HOME"]))  # Dagster's history may meet a full disk, too
        if not isinstance(told, UdrlError):
            raise
        run = Run(failures=[Failure("", "input", type(told).__name__, str(told))])
    show_run(run, wish.as_json)
    return run.exit_code


@contextmanager
def stdout_kept_for_results() -> Iterator[None]:
    """Whatever a library or a child process prints meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def materialise(wish: Wish) -> Run:
    """Materialise the assets, and copy the report (and, if so wished, their versions) to where people find them.

    Raises:
        UdrlError: A setting or the name of an asset is wrong. What goes wrong in a step is in the result.
    """
    settings = load(overrides=wish.overrides)
    workspace = Workspace(settings)
    from assets.definitions import defs  # after the settings were read: the schedule is made from them

    steps = {asset.op.name: asset.key for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition)}
    keys = selected(wish.select, list(steps.values()))
    before = {name: found.version for key in keys if (found := workspace.current(name := key.to_user_string()))}
    with open_instance() as instance:
        close_lost_runs(instance)
        run_id = make_new_run_id()
        wanted, begun = [name for name, key in steps.items() if key in keys], list[str]()
        instance.add_event_listener(run_id, lambda entry: _announce(entry.dagster_event, wanted, begun))
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=keys,
            instance=instance,
            run_id=run_id,
            run_config={
                "resources": {"store": {"config": {"overrides": wish.overrides}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            tags=process_tag(run_id, os.getpid()),
            raise_on_error=False,
        )
    run = account(result.all_events, {name: steps[name].to_user_string() for name in wanted}, before)
    for outcome in run.outcomes:
        folder = workspace.version_folder(outcome.asset, outcome.version)
        if wish.copy_to:
            copy_version(folder, Path(wish.copy_to) / outcome.asset)
        if outcome.asset == REPORT:
            run.report = str(folder / "report.html")
            shutil.copyfile(run.report, settings.root / "report.html")
    return run


def selected(names: list[str], known: list[dg.AssetKey]) -> list[dg.AssetKey]:
    """The assets of these names.

    Raises:
        UdrlError: There is no such asset.
    """
    from assets.jobs import DEFAULT

    by_name = {key.to_user_string(): key for key in known}
    if unknown := [name for name in names if name not in by_name and name != "all"]:
        raise UdrlError(f"unknown asset {unknown[0]!r}", where="--select", remedy=f"assets: {', '.join(by_name)}, all")
    if "all" in names:
        return known
    return [by_name[name] for name in names] or [asset.key for asset in DEFAULT]


def open_instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(os.environ["DAGSTER_HOME"], overrides=IN_THIS_PROCESS))


def _announce(event: DagsterEvent | None, wanted: list[str], begun: list[str]) -> None:
    if event and event.is_step_start and event.step_key in wanted:
        begun.append(event.step_key)
        announce(event.step_key.replace("__", "/"), len(begun), len(wanted))


def account(events: Sequence[DagsterEvent], steps: Mapping[str, str], before: Mapping[str, str]) -> Run:
    """What a run's events say, by asset. `steps` maps step keys to assets, `before` assets to the versions before the run."""
    run, made = Run(), {}
    for event in events:
        asset = steps.get(event.step_key or "", "")
        if event.is_step_materialization:
            made[asset] = event.step_materialization_data.materialization
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
                observed = {name: value.value for name, value in check.metadata.items()}
                cause: Literal["check", "books"] = "check" if check.blocking else "books"
                told = check.description or f"observed {json.dumps(observed, default=str)}"
                run.failures.append(Failure(check.asset_key.to_user_string(), cause, check.check_name, told))
        elif event.is_step_success and asset in made:
            run.outcomes.append(_outcome(asset, made[asset], event.step_success_data.duration_ms / 1000, before.get(asset)))
        elif event.is_step_failure:
            _add_failure(run, asset, event.step_failure_data.error)
    ended = {outcome.asset for outcome in run.outcomes} | {failure.asset for failure in run.failures}
    run.not_run = [asset for asset in steps.values() if asset not in ended]
    return run


def _outcome(asset: str, made: dg.AssetMaterialization, seconds: float, before: str | None) -> Outcome:
    version = (made.tags or {})[DATA_VERSION_TAG]
    work = {name: value.value for name, value in made.metadata.items()}
    rows, tokens, steps = (int(str(work.get(name, 0))) for name in ("teacher_rows", "teacher_tokens", "train_steps"))
    return Outcome(asset, version, version != before, round(seconds, 1), rows, tokens, steps)


def _add_failure(run: Run, asset: str, error: SerializableErrorInfo | None) -> None:
    """A step's failure by its cause: an interrupt, a failed check (reported by itself), an error of the input, or of the program."""
    cause = error and (error.cause or error)
    if cause is None or cause.cls_name == "DagsterAssetCheckFailedError":
        return
    if cause.cls_name == "DagsterExecutionInterruptedError":
        run.interrupted = True
    elif isinstance(kind := getattr(errors, cause.cls_name or "", None), type) and issubclass(kind, UdrlError):
        run.failures.append(Failure(asset, "input", kind.__name__, cause.message.partition(": ")[2].strip()))
    else:
        run.failures.append(Failure(asset, "program", cause.cls_name or "", cause.to_string().strip()))


if __name__ == "__main__":
    code = main(Wish(**json.loads(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking torch and DuckDB apart takes seconds, and DuckDB's binding complains about what others still hold
