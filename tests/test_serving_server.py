"""The server as a process sees it: its address, its end, and `udrl serve`."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from serving_fake import running, wait_until
from student_fake import SPACE, FakeStudent, record_student
from udrl_pipeline.cli import main
from udrl_pipeline.errors import SettingsError
from udrl_pipeline.serving import server as server_module
from udrl_pipeline.serving.batching import LATEST_S
from udrl_pipeline.serving.server import bind
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.generation import Student

Load = Callable[..., Settings]
TERMINATED = 15


def test_told_to_end_it_answers_what_is_there_and_refuses_what_is_new(load: Load) -> None:
    settings = load({"serve.max_wait_ms": 0})
    with running(settings) as (server, student, url), ThreadPoolExecutor() as threads, httpx.Client(base_url=url) as kept:
        student.gate.clear()
        assert kept.get("/ready").status_code == 200
        asked = [threads.submit(httpx.post, f"{url}/generate", json={"idea": f"idea {n} of three"}) for n in "abc"]
        wait_until(lambda: server._served.batcher.waiting == 2)
        server.handle_exit(TERMINATED, None)
        for path in ("kept", "new"):
            refused = (kept.post if path == "kept" else httpx.post)(f"{url}/generate", json={"idea": path})
            assert (refused.status_code, refused.json()["error"]["code"], refused.headers["Retry-After"]) == (503, "shutting_down", "1")
            assert refused.headers["Connection"] == "close"
        assert httpx.get(f"{url}/ready").status_code == 503
        student.gate.set()
        assert [answer.result().status_code for answer in asked] == [200, 200, 200]
        wait_until(lambda: server.should_exit or not server.servers[0].is_serving())
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.parametrize("twice", [False, True])
def test_what_is_not_done_in_time_is_told_so(load: Load, twice: bool) -> None:
    settings = load({"serve.drain_s": 30 if twice else 0.05, "serve.max_wait_ms": 0})
    with running(settings) as (server, student, url), ThreadPoolExecutor() as threads:
        student.gate.clear()
        asked = [threads.submit(httpx.post, f"{url}/generate", json={"idea": f"idea {n} of two"}) for n in "ab"]
        wait_until(lambda: server._served.batcher.waiting == 1)
        for _ in range(1 + twice):
            server.handle_exit(TERMINATED, None)
        answers = [answer.result() for answer in asked]
        student.gate.set()
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(503, "shutting_down")] * 2


def test_a_client_that_hangs_up_leaves_the_queue(load: Load) -> None:
    with running(load({"serve.max_wait_ms": 0})) as (server, student, url), ThreadPoolExecutor() as threads:
        student.gate.clear()
        first = threads.submit(httpx.post, f"{url}/generate", json={"idea": "first"})
        wait_until(lambda: student.calls)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/generate", json={"idea": "second"}, timeout=0.05)
        wait_until(lambda: server._served.batcher.waiting == 0)
        with (
            pytest.raises(httpx.ReadTimeout),
            httpx.stream(
                "POST", f"{url}/v1/completions", json={"model": "udrl", "prompt": "third", "stream": True}, timeout=0.05
            ) as stream,
        ):
            stream.read()
        wait_until(lambda: server._served.batcher.waiting == 0)
        student.gate.set()
        assert first.result().status_code == 200
    assert student.calls == [["first"]]


def test_an_address_that_cannot_be_taken_is_a_typed_error() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(SettingsError, match=r"127\.0\.0\.1:\d+ cannot be served \(Address already in use\)"):
        bind("127.0.0.1", taken.getsockname()[1])
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(SettingsError, match="cannot be served"):
            bind(host, 0)


# -- the command ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(params: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`udrl serve`, which ends instead of serving; `.served` tells what it would have served."""
    monkeypatch.chdir(params.parent)
    monkeypatch.setattr(Student, "load", lambda folder: FakeStudent())
    served: list[tuple[Any, socket.socket]] = []
    monkeypatch.setattr(server_module, "run", lambda serve, bound: served.append((serve, bound.getsockname()[0])))

    def invoke(*arguments: object) -> Any:
        result = CliRunner().invoke(main, ["serve", "--port", "0", *map(str, arguments)], catch_exceptions=False)
        result.served = served  # type: ignore[attr-defined]
        return result

    return invoke


def test_it_listens_to_this_machine_alone_and_says_where(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    SPACE.save(tmp_path / "mine")
    result = command("--student", tmp_path / "mine")
    assert result.exit_code == 0
    assert "the student on http://127.0.0.1:" in result.stderr
    assert "warning" not in result.stderr
    ((serve, host),) = result.served
    assert (host, serve.students.now.version) == ("127.0.0.1", "mine")


def test_an_open_door_without_a_key_is_told(command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--student", tmp_path, "--host", "0.0.0.0")
    assert "everybody who reaches 0.0.0.0 can ask: UDRL_SERVE_API_KEY sets no key" in command(*asked).stderr
    monkeypatch.setenv("UDRL_SERVE_API_KEY", "s3cret")
    result = command(*asked)
    assert "warning" not in result.stderr
    assert "s3cret" not in result.stderr


def test_a_student_that_is_not_there_yet_is_waited_for(command: Callable[..., Any]) -> None:
    result = command()
    assert result.exit_code == 0
    assert "waiting" in result.stderr
    assert "there is no student of recipe udrl yet" in result.stderr
    assert result.served[0][0].students.now is None


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--recipe", "dpo"], "unknown recipe 'dpo'"),
        (["--host", "192.0.2.1"], "cannot be served"),
        (["--set", "serve.batch_texts=0"], "serve.batch_texts = 0"),
        (["--set", "serve.batch=1"], "unknown key serve.batch"),
    ],
)
def test_what_cannot_be_served_ends_with_2(command: Callable[..., Any], arguments: list[str], what: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert what in result.stderr
    assert result.served == []


def test_a_damaged_student_ends_with_2(command: Callable[..., Any], workspace: Workspace) -> None:
    record_student(workspace, "v1")
    (workspace.version_folder("student/udrl", "v1") / "commands.json").write_text("{}", encoding="utf-8")
    result = command()
    assert result.exit_code == 2
    assert "commands.json (changed)" in result.stderr


def test_an_idle_connection_outlives_the_longest_time_that_a_client_is_told_to_stay_away() -> None:
    assert server_module.KEEP_ALIVE_S > 1.5 * LATEST_S
