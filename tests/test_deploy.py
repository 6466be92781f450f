"""The files of deploy/: each is checked by the tool that reads it, and the processes that a server runs do run, on a real Postgres."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.workspace.load import location_origins_from_yaml_paths

from benchmarks.operations.graphql import ask
from conftest import REPOSITORY
from servers import free_port, postgres_server

DEPLOY = REPOSITORY / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Postgres server of its own, as the environment that deploy/dagster.yaml reads."""
    pytest.importorskip("dagster_postgres")
    with postgres_server(tmp_path_factory.mktemp("postgres")) as port:
        yield {
            "UDRL_POSTGRES_HOST": "127.0.0.1", "UDRL_POSTGRES_PORT": str(port), "UDRL_POSTGRES_USER": "udrl",
            "UDRL_POSTGRES_PASSWORD": "unused", "UDRL_POSTGRES_DB": "udrl",
        }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("UDRL_DAGSTER_FILES", str(tmp_path / "files"))
    return tmp_path


def test_the_instance_on_postgres_loads(home: Path, postgres: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in postgres.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
        assert type(instance.schedule_storage).__name__ == "PostgresScheduleStorage"
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"
        assert instance.event_log_storage.get_pool_config().default_pool_limit == 1
        assert instance.run_monitoring_enabled is True
        assert instance.run_retries_enabled is True
        assert instance.telemetry_enabled is False
        assert instance.get_runs() == []


def test_what_both_instances_are_told_about_runs_is_the_same(home: Path) -> None:
    local, server = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8")), read("dagster.yaml")
    assert InstanceRef.from_dir(str(home)).settings["run_monitoring"] == local["run_monitoring"]
    for key in ("run_monitoring", "run_retries", "python_logs", "freshness", "telemetry", "nux"):
        assert server[key] == local[key], key
    assert server["concurrency"]["pools"] == local["concurrency"]["pools"]


def test_the_workspace_names_one_code_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRL_CODE_HOST", "code.example.com")
    monkeypatch.setenv("UDRL_CODE_PORT", "4000")
    (origin,) = location_origins_from_yaml_paths([str(DEPLOY / "workspace.yaml")])
    assert (origin.host, origin.port, origin.location_name) == ("code.example.com", 4000, "udrl")  # type: ignore[attr-defined]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd here")
    text = unit.read_text(encoding="utf-8")
    program = tmp_path / ".venv" / "bin" / text.split("/opt/udrl/.venv/bin/")[1].split()[0]
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/opt/udrl", str(tmp_path)), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert unit.name not in done.stderr
    assert done.returncode == 0, done.stderr


def test_compose_accepts_its_file() -> None:
    command = ["docker", "compose"] if shutil.which("docker") else []
    if not command or subprocess.run([*command, "version"], capture_output=True).returncode:
        if not shutil.which("docker-compose"):
            pytest.skip("there is no Docker Compose here")
        command = ["docker-compose"]
    environment = os.environ | {"UDRL_POSTGRES_PASSWORD": "secret"}
    done = subprocess.run([*command, "-f", str(DEPLOY / "compose.yaml"), "config"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert sorted(services) == ["code", "daemon", "pages", "postgres", "serve", "webserver"]
    told = services["code"]["environment"]
    assert {name for name in told if name.startswith("UDRL_POSTGRES")} == environment_of("dagster.yaml") - {"UDRL_DAGSTER_FILES"}
    assert environment_of("workspace.yaml") < set(told)
    del environment["UDRL_POSTGRES_PASSWORD"]
    refused = subprocess.run([*command, "-f", str(DEPLOY / "compose.yaml"), "config"], capture_output=True, text=True, env=environment)
    assert refused.returncode != 0
    assert "set it in deploy/.env" in refused.stderr


def environment_of(name: str) -> set[str]:
    """The variables that a file of Dagster's reads."""

    def found(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if set(value) == {"env"}:
                yield value["env"]
            for inner in value.values():
                yield from found(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from found(inner)

    return set(found(read(name)))


def test_the_example_of_the_environment_names_every_variable() -> None:
    lines = (DEPLOY / "env.example").read_text(encoding="utf-8").splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert environment_of("dagster.yaml") | environment_of("workspace.yaml") <= named


def test_the_image_holds_what_the_commands_need() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in text.splitlines() if line.startswith("COPY") for name in line.split()[2:-1]}
    assert all((REPOSITORY / name).exists() for name in copied)
    assert {"pyproject.toml", "constraints.txt", "udrl_pipeline", "assets", "params.yaml", "presets", "deploy"} <= copied


def test_the_values_for_the_chart_tell_it_what_the_other_files_tell() -> None:
    values, instance = read("helm-values.yaml"), read("dagster.yaml")
    daemon = values["dagsterDaemon"]
    assert daemon["runRetries"]["retryOnAssetOrOpFailure"] is instance["run_retries"]["retry_on_asset_or_op_failure"]
    assert daemon["runRetries"]["maxRetries"] == instance["run_retries"]["max_retries"]
    assert values["pythonLogs"]["managedPythonLoggers"] == instance["python_logs"]["managed_python_loggers"]
    (code,) = values["dagster-user-deployments"]["deployments"]
    assert code["dagsterApiGrpcArgs"] == ["--module-name", "assets.definitions"]
    assert {mount["name"] for mount in code["volumeMounts"]} == {volume["name"] for volume in code["volumes"]}


def test_the_collector_adds_up_what_the_steps_push() -> None:
    collector = read("otel-collector.yaml")
    (pipeline,) = collector["service"]["pipelines"].values()
    assert pipeline == {"receivers": ["otlp"], "processors": ["deltatocumulative"], "exporters": ["prometheus"]}
    assert all(name in collector[kind] for kind, names in pipeline.items() for name in names)


LAUNCH = """mutation($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, runConfigData: "{}"}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_processes_of_a_server_make_an_asset(home: Path, params: Path, postgres: dict[str, str]) -> None:
    """Code location, webserver and daemon as three processes, on Postgres: a run is queued, made, and in the history."""
    code, web = free_port(), free_port()
    environment = os.environ | postgres | {
        "PYTHONPATH": str(REPOSITORY), "DAGSTER_HOME": str(home), "UDRL_DAGSTER_FILES": str(home / "files"),
        "UDRL_PARAMS": str(params), "UDRL_CODE_HOST": "127.0.0.1", "UDRL_CODE_PORT": str(code),
    }  # fmt: skip
    workspace, url = str(DEPLOY / "workspace.yaml"), f"http://127.0.0.1:{web}"
    commands = {
        "code": ["dagster", "code-server", "start", "--module-name", "assets.definitions", "--host", "127.0.0.1", "--port", str(code)],
        "webserver": ["dagster_webserver", "--host", "127.0.0.1", "--port", str(web), "--workspace", workspace],
        "daemon": ["dagster._daemon", "run", "--workspace", workspace],
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def until(true: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, process in processes.items():
                assert process.poll() is None, (home / f"{name}.log").read_text(encoding="utf-8")[-2000:]
            try:
                if found := true():
                    return found
            except OSError:
                pass
            time.sleep(0.5)
        raise AssertionError({name: (home / f"{name}.log").read_text(encoding="utf-8")[-1500:] for name in processes})

    try:
        for name, command in commands.items():
            with (home / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *command], cwd=params.parent, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            if name == "code":
                until(lambda: socket.create_connection(("127.0.0.1", code), timeout=1).close() is None)
        until(lambda: urllib.request.urlopen(f"{url}/server_info", timeout=5))
        locations = "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"
        until(lambda: ask(url, locations)["workspaceOrError"]["locationEntries"][0]["locationOrLoadError"])
        assert ask(url, locations)["workspaceOrError"]["locationEntries"] == [
            {"name": "udrl", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
        ]
        selector = {
            "repositoryLocationName": "udrl", "repositoryName": "__repository__", "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": ["intents"]}],
        }  # fmt: skip
        launched = ask(url, LAUNCH, selector=selector)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        state = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
        ended = until(
            lambda: (status := ask(url, state, id=launched["run"]["runId"])["runOrError"]["status"]) in ("SUCCESS", "FAILURE") and status
        )
        assert ended == "SUCCESS"
        health = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy } } } }"
        statuses = until(
            lambda: all(s["healthy"] for s in ask(url, health)["instance"]["daemonHealth"]["allDaemonStatuses"] if s["required"])
        )
        assert statuses
    finally:
        for process in processes.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes.values():
            process.wait(timeout=60)
