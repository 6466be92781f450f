"""Dagster as a team runs it, on a small project in a folder of its own: code server, daemon and (if wanted) webserver, as processes.

Used by `benchmarks/operations` and by the slow tests. Everything that it starts carries a mark in its environment, so that what a run
leaves behind is found wherever it hangs.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import psutil
import yaml
from dagster._core.instance.ref import InstanceRef
from filelock import FileLock, Timeout

from benchmarks.operations.graphql import ask
from benchmarks.torture.pipeline import SMALL, Teacher
from udrl_pipeline.settings import load
from udrl_pipeline.teacher import Request

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "UDRL_OPERATIONS_MARK"
POOLS = ("duckdb", "compute", "teacher")
T = TypeVar("T")


class Endpoint:
    """A teacher behind an OpenAI endpoint that makes its texts up. A context.

    Args:
        seconds: How long it takes to answer.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send({"object": "list", "data": [{"id": "teacher", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(seconds)
                reply = Teacher._answer(Request(body["messages"], max_tokens=40, temperature=0.5, top_p=0.9, repetition_penalty=1.0))
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply.text}}
                usage = {"completion_tokens": reply.tokens, "prompt_tokens": 1, "total_tokens": reply.tokens + 1}
                self._send({"id": "1", "object": "chat.completion", "created": 1, "model": "teacher", "choices": [choice], "usage": usage})

            def _send(self, answer: Any) -> None:
                data = json.dumps(answer).encode()
                with contextlib.suppress(OSError):  # the client was killed
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that were killed
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "Endpoint":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def make_project(folder: Path, url: str) -> None:
    """A project as small as that of `make torture`, whose teacher is behind an endpoint."""
    small = SMALL | {"teacher": {**SMALL["teacher"], "server": {"base_url": url}}}
    values = load(REPOSITORY / "params.yaml", preset="", overrides=small).model_dump(mode="json")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    instance = (REPOSITORY / "dagster.yaml").read_text(encoding="utf-8")
    (folder / "dagster.yaml").write_text(instance.replace("base_dir: .dagster", f"base_dir: {folder}/.dagster"), encoding="utf-8")


class Deployment:
    """A project's Dagster. A context: its processes end with it.

    Args:
        teacher: The address of its teacher.
        webserver: With it `dagster dev` is run, as `make ui` does; without it the daemon alone.
    """

    def __init__(self, folder: Path, teacher: str, *, webserver: bool, environment: Mapping[str, str] | None = None) -> None:
        make_project(folder, teacher)
        self.folder, self.webserver = folder, webserver
        self.mark = uuid.uuid4().hex
        self.environment = {
            **os.environ, "DAGSTER_HOME": str(folder), "UDRL_PARAMS": str(folder / "params.yaml"), "UDRL_PRESET": "",
            "UDRL_MODELS": os.environ.get("UDRL_MODELS", str(REPOSITORY / ".models")), "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_OFFLINE": "1", MARK: self.mark, **(environment or {}),
        }  # fmt: skip
        self.log = folder / "dagster.log"

    def __enter__(self) -> "Deployment":
        self.instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(self.folder)))
        self.instance.get_runs(limit=1)  # before others do: SQLite's tables are made once
        self.instance.event_log_storage.get_concurrency_keys()
        self.instance.all_instigator_state()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        bin = Path(sys.executable).parent
        command = [str(bin / "dagster"), "dev", "--port", str(self.port)] if self.webserver else [str(bin / "dagster-daemon"), "run"]
        command += ["-m", "assets.definitions"]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell's `&` ignores it, Dagster would ignore SIGTERM, too
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        try:
            if self.webserver:
                wait(self._serves, 120, "the webserver")
        except BaseException:
            self.__exit__()
            raise
        self.services = {process.pid for process in self.processes()}
        return self

    def __exit__(self, *_: object) -> None:
        self.instance.dispose()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    # -- what the UI does ---------------------------------------------------------------------------------------------

    def ask(self, query: str, **variables: Any) -> Any:
        """A question of GraphQL, as the UI asks it; its only field."""
        [field] = ask(f"http://127.0.0.1:{self.port}", query, **variables).values()
        return field

    def _serves(self) -> bool:
        assert self.process.poll() is None, f"Dagster ended by itself, see {self.log}"
        try:
            found = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
        except OSError:
            return False
        return bool(found.get("nodes"))

    @property
    def selector(self) -> dict[str, Any]:
        return {"repositoryLocationName": "assets.definitions", "repositoryName": "__repository__"}

    def launch(self, job: str = "__ASSET_JOB", assets: Sequence[str] = (), config: Mapping[str, Any] | None = None) -> str:
        """Launch a run from the launchpad: of a job, or of some assets."""
        selected = {"assetSelection": [{"path": name.split("/")} for name in assets]} if assets else {}
        parameters = {
            "selector": {**self.selector, "pipelineName": job, **selected},
            "runConfigData": {"resources": {"store": {"config": config}}} if config else {},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "dagster/max_retries", "value": "0"}]},
        }
        return self._launched("launchPipelineExecution", "ExecutionParams", parameters)

    def rerun_from_failure(self, run_id: str) -> str:
        parameters = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
        query = """mutation($p: ReexecutionParams!) { launchPipelineReexecution(reexecutionParams: $p) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        return str(self.ask(query, p=parameters)["run"]["runId"])

    def _launched(self, mutation: str, kind: str, parameters: Mapping[str, Any]) -> str:
        query = f"""mutation($p: {kind}!) {{ {mutation}(executionParams: $p) {{ __typename
            ... on LaunchRunSuccess {{ run {{ runId }} }} ... on PythonError {{ message }}
            ... on RunConfigValidationInvalid {{ errors {{ message }} }} }} }}"""
        told = self.ask(query, p=parameters)
        if told["__typename"] != "LaunchRunSuccess":
            raise ValueError(json.dumps(told))
        return str(told["run"]["runId"])

    def cancel(self, run_id: str) -> None:
        """What the button `Terminate` does."""
        told = self.ask("mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)
        assert told["__typename"] == "TerminateRunSuccess", told

    def wipe(self, asset: str) -> None:
        """What the button `Wipe materializations` does: Dagster forgets them; the files and the ledger stay."""
        told = self.ask(
            "mutation($r: [PartitionsByAssetSelector!]!) { wipeAssets(assetPartitionRanges: $r) { __typename } }",
            r=[{"assetKey": {"path": asset.split("/")}}],
        )
        assert told["__typename"] == "AssetWipeSuccess", told

    def turn_on(self, sensor: str) -> None:
        """Turn a sensor on, as `dagster sensor start` does."""
        command = [str(Path(sys.executable).with_name("dagster")), "sensor", "start", sensor, "-m", "assets.definitions"]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    # -- what can be seen ---------------------------------------------------------------------------------------------

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def wait_for_end(self, run_id: str, seconds: float = 400) -> dg.DagsterRunStatus:
        wait(lambda: (run := self.instance.get_run_by_id(run_id)) is not None and run.is_finished, seconds, f"the end of run {run_id}")
        return self.status(run_id)

    def wait_for_step(self, run_id: str, asset: str, seconds: float = 240) -> None:
        def began() -> bool:
            if (run := self.instance.get_run_by_id(run_id)) is not None and run.is_finished:
                raise AssertionError(f"run {run_id} ended before {asset} began: {self.failures(run_id)}")
            logs = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
            return asset.replace("/", "__") in {entry.step_key for entry in logs}

        wait(began, seconds, f"{asset} in run {run_id}")

    def materialised(self, run_id: str) -> dict[str, str]:
        """The data version of each asset that a run has made or found made."""
        found = {}
        for entry in self.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            made = entry.asset_materialization
            assert made is not None
            found[made.asset_key.to_user_string()] = (made.tags or {})["dagster/data_version"]
        return found

    def failures(self, run_id: str) -> list[str]:
        """What went wrong in each step that failed."""
        logs = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        errors = [(entry.step_key, entry.dagster_event.step_failure_data.error) for entry in logs if entry.dagster_event]
        return [f"{step}: {(error.cause or error).message.strip()}" for step, error in errors if error]

    def processes(self) -> list[psutil.Process]:
        """Every process that was started from here, alive."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def of_runs(self) -> list[psutil.Process]:
        """The processes that runs have started, alive: run workers, steps, engines."""
        kept = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.pid not in self.services and "resource_tracker" not in " ".join(process.cmdline()):
                    kept.append(process)
        return kept

    def worker(self, run_id: str) -> psutil.Process:
        """The process that executes a run and starts its steps."""
        for entry in self.instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            found = entry.dagster_event and entry.dagster_event.engine_event_data.metadata.get("pid")
            if found:
                return psutil.Process(int(str(found.value)))
        raise AssertionError(f"no process of run {run_id}")

    def step(self, run_id: str) -> psutil.Process:
        """The process of the step that is under way."""
        steps = [child for child in self.worker(run_id).children() if "spawn_main" in " ".join(child.cmdline())]
        assert steps, f"no step of run {run_id} is under way"
        return steps[0]

    def slots(self) -> dict[str, int]:
        """How many slots of each pool are taken or waited for."""
        storage = self.instance.event_log_storage
        known = storage.get_concurrency_keys()
        infos = {pool: storage.get_concurrency_info(pool) for pool in POOLS if pool in known}
        return {pool: len(info.claimed_slots) + len(info.pending_steps) for pool, info in infos.items()}

    def locks_held(self) -> list[str]:
        """The locks of the store that somebody holds."""
        held = []
        for path in (self.folder / "artifacts" / ".locks").glob("*.lock"):
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                held.append(path.name)
        return held


def wait(until: Callable[[], T], seconds: float, what: str) -> T:
    """Ask until the answer is something, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.3)
    return found
