"""The sensors: a file is a run once, a failed run is told to the user's hook; both off until they are turned on."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.definitions import defs
from assets.processes import process_tag
from assets.sensors import lost_runs, new_intents, tell_of_failures
from assets.store import Store
from udrl_pipeline.errors import HookError
from udrl_pipeline.intents import asset
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace


class Sensor:
    """The sensor on the intents of a project, tick by tick, as the daemon evaluates it."""

    def __init__(self, params: Path, instance: dg.DagsterInstance) -> None:
        self.params, self.instance, self.cursor = params, instance, None
        self.overrides: dict[str, Any] = {}
        self.folder = params.parent / "intents"
        self.folder.mkdir()

    def drop(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def tick(self) -> Any:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        found = new_intents(context, store=Store(params=str(self.params), overrides=self.overrides))
        assert isinstance(found, dg.SensorResult)
        self.cursor = found.cursor  # type: ignore[assignment]
        return found

    def ticks(self, number: int) -> list[str]:
        """What each of so many ticks says: the runs that it asks for, or why there is none."""
        told = []
        for _ in range(number):
            found = self.tick()
            told.append(found.run_requests[0].tags["udrl/because"] if found.run_requests else str(found.skip_reason.skip_message))
        return told


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def sensor(params: Path, instance: dg.DagsterInstance, workspace: Workspace) -> Sensor:
    asset.build(workspace)
    return Sensor(params, instance)


def test_a_dropped_file_is_one_run_once_it_is_at_rest(sensor: Sensor) -> None:
    sensor.drop("ideas.csv", "intent\nred kite over the moor\n")
    assert sensor.ticks(4) == [
        "no new or changed file; waiting until these are at rest: ideas.csv",
        "new or changed: ideas.csv",
        "no new or changed file",
        "no new or changed file",
    ]


def test_the_same_file_dropped_again_starts_nothing(sensor: Sensor, settings: Settings) -> None:
    sensor.drop("ideas.csv", "intent\nred kite over the moor\n")
    sensor.ticks(2)
    asset.build(Workspace(settings))
    sensor.drop("ideas.csv", "intent\nred kite over the moor\n")
    sensor.drop("again.csv", "intent\nred kite over the moor\n")
    assert all(told.startswith("no new or changed file") for told in sensor.ticks(3))


def test_ideas_that_are_known_already_start_nothing(sensor: Sensor, settings: Settings) -> None:
    sensor.drop("ideas.csv", "intent\nred kite over the moor\n")
    asset.build(Workspace(settings))  # by a run from the terminal, before the sensor was turned on
    sensor.drop("more.csv", "intent\nred  kite over the moor\n")
    assert sensor.ticks(2)[1] == "what they hold is known already: ideas.csv, more.csv"


def test_a_bad_file_is_one_run_whose_check_names_file_line_and_reason(sensor: Sensor, settings: Settings) -> None:
    sensor.drop("good.csv", "intent\nred kite over the moor\n\x07\n")
    sensor.drop("bad.csv", "thought\nblue heron\n")
    sensor.drop("broken.parquet", "no parquet")
    assert sensor.ticks(2)[1] == "new or changed: bad.csv, broken.parquet, good.csv"
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey("intents")],
        run_config={"resources": {"store": {"config": {"params": str(sensor.params)}}}},
        instance=sensor.instance,
    )
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    told = str(checks["lines_are_usable"].description)
    assert not checks["lines_are_usable"].passed
    assert "intents/bad.csv:1: the file has no column `intent` (columns: thought)" in told
    assert "intents/broken.parquet: the file is no readable Parquet file" in told
    assert "intents/good.csv:3: control characters" in told
    kept = [intent.key for intent in asset.read_intents(Workspace(settings), Workspace(settings).parents("intents")["intents"])]
    assert "red kite over the moor" in kept
    assert sensor.ticks(3) == ["no new or changed file"] * 3


def test_a_named_source_that_cannot_be_read_is_one_run_that_tells_why_and_no_loop(sensor: Sensor) -> None:
    (sensor.params.parent / "own.csv").write_text("thought\nblue heron\n", encoding="utf-8")
    sensor.overrides = {"intents.sources": ["own.csv"]}
    assert sensor.ticks(4)[1:] == ["new or changed: own.csv", "no new or changed file", "no new or changed file"]


def test_a_tick_that_is_repeated_asks_for_the_same_run(sensor: Sensor) -> None:
    sensor.drop("ideas.csv", "intent\nred kite over the moor\n")
    sensor.tick()
    cursor = sensor.cursor
    first = sensor.tick().run_requests[0].run_key
    sensor.cursor = cursor
    assert sensor.tick().run_requests[0].run_key == first


def test_the_sensors_that_start_or_tell_something_are_off_until_they_are_turned_on() -> None:
    sensors = {sensor.name: sensor for sensor in defs.get_repository_def().sensor_defs}
    off = dict.fromkeys(("new_intents", "tell_of_failures", "by_data_version"), dg.DefaultSensorStatus.STOPPED)
    assert {name: sensor.default_status for name, sensor in sensors.items()} == off | {"lost_runs": dg.DefaultSensorStatus.RUNNING}
    assert sensors["new_intents"].job_name == "everything"


def test_a_run_whose_process_is_gone_is_closed() -> None:
    with dg.instance_for_test() as instance:
        ended = subprocess.Popen(["true"])
        ended.wait()
        instance.add_run(dg.DagsterRun("everything", run_id="r1", status=dg.DagsterRunStatus.STARTED, tags=process_tag("r1", ended.pid)))
        context = dg.build_sensor_context(instance=instance)
        told = [str(lost_runs(context).skip_message) for _ in range(2)]
        run = instance.get_run_by_id("r1")
    assert told == ["closed, because their process is gone: r1", "every run has its process"]
    assert run
    assert run.status == dg.DagsterRunStatus.FAILURE


@pytest.fixture
def failed(instance: dg.DagsterInstance) -> Callable[[], Any]:
    """The sensor on failures, told of a run whose step failed."""

    @dg.op
    def break_down() -> None:
        raise ValueError("the teacher is gone")

    @dg.job
    def everything() -> None:
        break_down()

    result = everything.execute_in_process(instance=instance, raise_on_error=False)
    [event] = [event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE]
    context = dg.build_run_status_sensor_context("tell_of_failures", event, instance, result.dagster_run).for_run_failure()
    return lambda: tell_of_failures(context)


def test_a_failed_run_is_told_to_the_command(failed: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    monkeypatch.setenv("UDRL_ON_FAILURE_COMMAND", f'{sys.executable} -c "{script}" {tmp_path}/told.json')
    assert failed() is None
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert (told["job"], told["steps"][0]["step"]) == ("everything", "break_down")
    assert "the teacher is gone" in told["steps"][0]["error"]


def test_a_hook_that_fails_fails_the_tick(failed: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRL_ON_FAILURE_COMMAND", "false")
    with pytest.raises(HookError, match="UDRL_ON_FAILURE_COMMAND: the hook ended with exit code 1"):
        failed()


def test_without_a_hook_the_tick_says_so(failed: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UDRL_ON_FAILURE_COMMAND", "UDRL_ON_FAILURE_WEBHOOK"):
        monkeypatch.delenv(name, raising=False)
    assert failed().skip_message == "neither UDRL_ON_FAILURE_COMMAND nor UDRL_ON_FAILURE_WEBHOOK is set"
