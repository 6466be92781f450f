"""The files of deploy/: each is checked by the tool that reads it, and the processes that a server runs do run, on a real Postgres."""

import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster._serdes import ConfigurableClassData

from benchmarks.operations.graphql import ask
from conftest import REPOSITORY
from servers import free_port, postgres_server
from udrl_pipeline.cli import main
from udrl_pipeline.settings import load

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
    assert set.union(*map(environment_of, ("dagster.yaml", "workspace.yaml", "ray/dagster.yaml"))) | {"UDRL_PARAMS"} <= named


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
    pools = instance["concurrency"]["pools"]
    assert values["concurrency"]["pools"] == {"defaultLimit": pools["default_limit"], "granularity": pools["granularity"]}
    (code,) = values["dagster-user-deployments"]["deployments"]
    assert not [variable for variable in code["env"] if variable["name"].startswith("OTEL_")]  # metrics are off until asked for
    assert code["dagsterApiGrpcArgs"] == ["--module-name", "assets.definitions"]
    assert {mount["name"] for mount in code["volumeMounts"]} == {volume["name"] for volume in code["volumes"]}


class Sent:
    """In place of Kubernetes' API: keeps what is sent to it."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def create_namespaced_job(self, body: Any, namespace: str, **_: Any) -> None:
        self.jobs.append((namespace, body))


def in_snake_case(value: Any) -> Any:
    """As the chart's helper of this name."""
    if isinstance(value, dict):
        return {re.sub("([A-Z])", lambda found: "_" + found[1].lower(), key): in_snake_case(inner) for key, inner in value.items()}
    return value


def launched_by_the_chart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The Kubernetes Job of a run, with the launcher and the code location as the chart makes them from deploy/helm-values.yaml."""
    kubernetes = pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")
    from dagster_k8s import K8sRunLauncher

    monkeypatch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
    values = read("helm-values.yaml")
    (code,) = values["dagster-user-deployments"]["deployments"]
    launcher_values = values["runLauncher"]["config"]["k8sRunLauncher"]
    config = {
        "load_incluster_config": True, "job_namespace": "udrl", "image_pull_policy": "Always", "service_account_name": "dagster",
        "dagster_home": "/opt/dagster/dagster_home", "instance_config_map": "dagster-instance",
        "postgres_password_secret": "dagster-postgresql-secret", "env_vars": launcher_values["envVars"],
        "run_k8s_config": in_snake_case(launcher_values["runK8sConfig"]),
    }  # fmt: skip
    checked = process_config(K8sRunLauncher.config_type(), config)
    assert checked.success, checked.errors
    context = {
        "image_pull_policy": code["image"]["pullPolicy"], "env": code["env"], "volumes": code["volumes"],
        "volume_mounts": code["volumeMounts"], "env_secrets": [secret["name"] for secret in code["envSecrets"]], "namespace": "udrl",
    }  # fmt: skip
    image = f"{code['image']['repository']}:{code['image']['tag']}"
    pointer = ModuleCodePointer(code["dagsterApiGrpcArgs"][1], "defs", working_directory="/opt/udrl")
    origin = RepositoryPythonOrigin("python", pointer, image, ["dagster"], {"k8s": context})
    sent = Sent()
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        launcher = K8sRunLauncher(**checked.value, k8s_client_batch_api=sent, k8s_client_core_api=sent)
        launcher.register_instance(instance)
        run = dg.DagsterRun("everything", job_code_origin=JobPythonOrigin("everything", origin))
        instance.add_run(run)
        launcher.launch_run(LaunchRunContext(run, None))
    ((namespace, job),) = sent.jobs
    assert namespace == "udrl"
    made: dict[str, Any] = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    return made


def test_the_chart_makes_a_run_a_job_that_kubernetes_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = launched_by_the_chart(tmp_path, monkeypatch)
    accepted_by_kubernetes(job)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.com/udrl:0.1.0"
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert container["resources"] == {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "16Gi"}}
    assert {"name": "UDRL_MODELS", "value": "/data/models"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "udrl-teacher"}}]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts["/opt/udrl/artifacts"] == mounts["/data/models"] == "data"
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "udrl-data"}} in pod["volumes"]


def accepted_by_kubernetes(manifest: dict[str, Any]) -> None:
    """Checked by Kubernetes' own schemas, unknown keys refused."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate").validate
    validate(manifest, "1.32", strict=True)


def test_kubernetes_accepts_the_manifests_beside_the_chart() -> None:
    manifests = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "pages-and-serve.yaml").read_text(encoding="utf-8")))
    for manifest in manifests:
        accepted_by_kubernetes(manifest)
    named = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}
    assert sorted(named) == [
        ("Deployment", "udrl-pages"), ("Deployment", "udrl-serve"), ("PersistentVolumeClaim", "udrl-data"),
        ("Service", "udrl-pages"), ("Service", "udrl-serve"),
    ]  # fmt: skip
    (code,) = read("helm-values.yaml")["dagster-user-deployments"]["deployments"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in code["volumes"]}
    for name in ("udrl-pages", "udrl-serve"):
        deployment, service = named["Deployment", name]["spec"], named["Service", name]["spec"]
        pod = deployment["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"{code['image']['repository']}:{code['image']['tag']}"
        assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"] == service["selector"]
        assert container["ports"][0]["containerPort"] == service["ports"][0]["targetPort"]
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} == claims == {"udrl-data"}
        options = main.commands[container["command"][1]].make_context(name, container["command"][2:]).params  # type: ignore[attr-defined]
        assert (options["host"], options["port"]) == ("0.0.0.0", container["ports"][0]["containerPort"])
    serve = named["Deployment", "udrl-serve"]["spec"]["template"]["spec"]
    assert serve["terminationGracePeriodSeconds"] > load(REPOSITORY / "params.yaml", preset="").serve.drain_s


def test_the_ray_cluster_is_one_that_its_operator_takes() -> None:
    specification = pytest.importorskip("dagster_ray.kuberay.configs", reason="needs the extras `ray` and `kubernetes`").RayClusterSpec
    cluster = read("kubernetes/ray-cluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    known = {re.sub("_([a-z])", lambda found: found[1].upper(), name) for name in specification.model_fields}
    assert set(cluster["spec"]) <= known
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        accepted_by_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": group["template"]["spec"]})
    (required,) = {
        name
        for name in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ray"]
        if name.startswith("ray[")
    }
    assert f">={cluster['spec']['rayVersion'].removesuffix('.0')}," in required


@pytest.mark.parametrize(("module", "executor", "package"), [("on_ray", "ray", "dagster_ray"), ("on_kubernetes", "k8s", "dagster_k8s")])
def test_each_step_may_be_a_job_of_a_cluster(module: str, executor: str, package: str) -> None:
    pytest.importorskip(package)
    found = importlib.import_module(f"assets.{module}").defs
    here = importlib.import_module("assets.definitions").defs
    jobs = found.resolve_all_job_defs()
    assert {job.executor_def.name for job in jobs} == {executor}
    assert {job.name for job in jobs} == {job.name for job in here.resolve_all_job_defs()}
    assert set(found.resolve_all_asset_keys()) == set(here.resolve_all_asset_keys())
    assert dg.validate_run_config(found.resolve_job_def("everything"), {})  # nothing has to be said in the launchpad


def test_the_instance_of_a_ray_cluster_makes_runs_its_jobs_and_is_told_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, server = read("ray/dagster.yaml"), read("dagster.yaml")
    told = ray.pop("run_launcher")
    assert ray == server
    pytest.importorskip("dagster_ray", reason="needs the extra `ray`")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head.example.com:8265")
    launcher = ConfigurableClassData(told["module"], told["class"], yaml.safe_dump(told["config"])).rehydrate()
    assert (type(launcher).__name__, launcher.address, launcher.num_cpus) == ("RayRunLauncher", "http://head.example.com:8265", 1)


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
