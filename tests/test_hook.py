"""The hook for failed runs: no shell, a time limit, and no secret in what it tells."""

import json
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from udrl_pipeline.errors import HookError
from udrl_pipeline.hook import tell

MESSAGE = {"run_id": "r1", "message": "$(touch hacked); `touch hacked`"}


@pytest.fixture
def endpoint() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))  # type: ignore[attr-defined]
            self.send_response(server.status)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    server.bodies, server.status = [], 200
    server.address = f"http://127.0.0.1:{server.server_port}/hooks/s3cret"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()


def test_nothing_is_called_where_nothing_is_named() -> None:
    assert tell(MESSAGE, {"UDRL_ON_FAILURE_COMMAND": " "}) == []


def test_a_command_gets_the_message_on_its_standard_input_and_no_shell_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    command = f'{sys.executable} -c "{script}" "$(touch hacked); told"'
    assert tell(MESSAGE, {"UDRL_ON_FAILURE_COMMAND": command}) == ["UDRL_ON_FAILURE_COMMAND: exit code 0"]
    assert [file.name for file in tmp_path.iterdir()] == ["$(touch hacked); told"]
    assert json.loads((tmp_path / "$(touch hacked); told").read_text()) == MESSAGE


def test_a_webhook_gets_the_message_as_json(endpoint: Any) -> None:
    assert tell(MESSAGE, {"UDRL_ON_FAILURE_WEBHOOK": endpoint.address}) == ["UDRL_ON_FAILURE_WEBHOOK: answered 200"]
    assert endpoint.bodies == [MESSAGE]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/nowhere/s3cret", "cannot be started: No such file or directory"),
        ("sh -c 'echo s3cret; exit 3'", "ended with exit code 3"),
        ("echo 's3cret", "cannot be taken apart: No closing quotation"),
    ],
)
def test_a_command_that_fails_is_told_without_its_words(command: str, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HookError) as caught:
        tell(MESSAGE, {"UDRL_ON_FAILURE_COMMAND": command})
    assert caught.value.what == f"the hook {told}"
    assert caught.value.where == "UDRL_ON_FAILURE_COMMAND"
    assert "s3cret" not in str(caught.value) + "".join(capfd.readouterr())


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    script = tmp_path / "hook.sh"
    script.write_text(f"(sleep 0.6; touch {tmp_path}/late) & sleep 20\n", encoding="utf-8")
    began = time.monotonic()
    with pytest.raises(HookError, match=r"took longer than 0.2 s and was ended"):
        tell(MESSAGE, {"UDRL_ON_FAILURE_COMMAND": f"sh {script}"}, timeout_s=0.2)
    assert time.monotonic() - began < 5
    time.sleep(0.6)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:1/s3cret", "does not answer (URLError)"),
        ("http://s3cret host/", "does not answer"),
        ("file:///etc/s3cret", "is no http:// or https:// address"),
    ],
)
def test_a_webhook_that_fails_is_told_without_its_address(address: str, told: str) -> None:
    with pytest.raises(HookError) as caught:
        tell(MESSAGE, {"UDRL_ON_FAILURE_WEBHOOK": address})
    assert told in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_webhook_that_says_no_is_an_error(endpoint: Any) -> None:
    endpoint.status = 500
    with pytest.raises(HookError, match="the hook answered 500"):
        tell(MESSAGE, {"UDRL_ON_FAILURE_WEBHOOK": endpoint.address})


def test_one_hook_that_fails_does_not_keep_the_other_from_being_called(endpoint: Any) -> None:
    with pytest.raises(HookError, match="cannot be started"):
        tell(MESSAGE, {"UDRL_ON_FAILURE_COMMAND": "/nowhere", "UDRL_ON_FAILURE_WEBHOOK": endpoint.address})
    assert endpoint.bodies == [MESSAGE]
