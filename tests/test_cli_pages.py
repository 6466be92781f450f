"""`udrl pages`: what a browser gets when it follows a link of the Dagster UI, and what it never gets."""

import http.client
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from udrl_pipeline import pages
from udrl_pipeline.cli import main
from udrl_pipeline.cli_pages import serve
from udrl_pipeline.errors import SettingsError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.store.workspace import Workspace

REPORT = "0123456789abcdef"
Get = Callable[[str], tuple[int, str, dict[str, str]]]


@pytest.fixture
def get(workspace: Workspace, params: Path) -> Iterator[Get]:
    """Ask a real server for a page: status, text, headers."""
    workspace.record(
        "evaluation_report", version=REPORT, fingerprint="f", code_version="c", rows=1, params={}, parents={}, facts={},
        write=lambda folder: (folder / "report.html").write_text("<h1>the report</h1>") and None,
    )  # fmt: skip
    server = serve(workspace.settings, ["--params", str(params)], "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def ask(path: str) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())

    yield ask
    server.shutdown()


def test_the_newest_report_is_one_click_away(get: Get) -> None:
    status, _, headers = get("/report")
    assert (status, headers["Location"]) == (302, f"/evaluation_report/{REPORT}/report.html")
    assert get(headers["Location"])[:2] == (200, "<h1>the report</h1>")
    assert f'<a href="/evaluation_report/{REPORT}/report.html">report {REPORT}</a>' in get("/")[1]


def test_a_version_tells_what_it_was_made_from(get: Get, workspace: Workspace) -> None:
    made = intents.build(workspace)
    status, text, headers = get(f"/trace/intents@{made.version}")
    assert status == 200
    assert f"udrl audit trace intents@{made.version}" in text
    assert f"intents  {made.version}" in text or f"intents {made.version}" in text
    assert headers["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_what_was_set_aside_is_shown_as_text(get: Get, workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "ideas.csv").write_text("intent\nlighthouse\n" + "<script>alert(1)</script> " * 20 + "\n", encoding="utf-8")
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("sources: []", "sources: [ideas.csv]"), encoding="utf-8")
    from udrl_pipeline.settings import load

    intents.build(Workspace(load(params)))
    _, text, _ = get("/quarantine")
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/evaluation_report/../params.yaml",
        f"/evaluation_report/{REPORT}/metrics.json",
        f"/evaluation_report/{REPORT}/../../udrl.duckdb",
        "/evaluation_report/ffff/report.html",
        "/trace/--params=/etc/passwd",
        "/trace/",
        "/verify/x;ls",
        "/forget/0123",
        "/versions/0123",
        "/params.yaml",
        "/report/x",
    ],
)
def test_nothing_else_is_served(get: Get, path: str) -> None:
    status, text, _ = get(path)
    assert status == 404
    assert "passwd" not in text


def test_a_page_cannot_be_written_to(get: Get, workspace: Workspace) -> None:
    server = serve(workspace.settings, [], "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
    connection.request("POST", "/report", "x")
    assert connection.getresponse().status == 501
    server.shutdown()


def test_a_port_that_is_taken_is_a_typed_error(workspace: Workspace, params: Path) -> None:
    with serve(workspace.settings, [], "127.0.0.1", 0) as taken:
        port = taken.server_address[1]
        with pytest.raises(SettingsError, match="Address already in use"):
            serve(workspace.settings, [], "127.0.0.1", port)
        done = CliRunner().invoke(main, ["pages", "--params", str(params), "--port", str(port)])
    assert done.exit_code == 2
    assert "choose another --port or --host" in done.output


def test_pages_are_linked_only_where_their_address_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pages.PAGES_ENV, raising=False)
    assert pages.page_of("report") is None
    monkeypatch.setenv(pages.PAGES_ENV, "https://pages.example.com/udrl/")
    assert pages.page_of("trace/student/udrl@01") == "https://pages.example.com/udrl/trace/student/udrl@01"
