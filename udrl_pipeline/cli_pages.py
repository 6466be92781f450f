"""`udrl pages`: the reports, and what the audit commands answer, for a browser. Read only, from this machine unless told otherwise."""

import html
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click

from udrl_pipeline.errors import SettingsError
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace

REPORTS = "evaluation_report"
#: What may be asked: of all versions, and of one.
OF_ALL, OF_ONE = ("versions", "quarantine"), ("trace", "verify")
#: One version, as `udrl audit` takes it; nothing that could be an option of it.
VERSION = re.compile(r"(?:[a-z][\w/-]*@)?[0-9a-f]{4,64}")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }} body {{ margin: 2rem auto; max-width: 75rem }}
pre {{ overflow-x: auto; font-size: 13px }}</style>
<p><a href="/">reports and ledger</a></p><h1>{title}</h1>{body}</html>"""
#: The report allows what it needs by itself; the other pages need no script.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def serve(settings: Settings, options: Sequence[str], host: str, port: int) -> ThreadingHTTPServer:
    """A server of the pages, which does not run yet.

    Args:
        options: What `udrl audit` has to be given for the same settings.

    Raises:
        SettingsError: The port is taken, or the host is none of this machine.
    """

    class Pages(_Pages):
        pass

    Pages.workspace, Pages.options = Workspace(settings), tuple(options)
    try:
        return ThreadingHTTPServer((host, port), Pages)
    except OSError as error:
        raise SettingsError(
            f"{host}:{port} cannot be served ({error.strerror})", where="udrl pages", remedy="choose another --port or --host"
        ) from error


class _Pages(BaseHTTPRequestHandler):
    workspace: Workspace
    options: tuple[str, ...]

    def do_GET(self) -> None:
        kind, _, rest = self.path.partition("?")[0].strip("/").partition("/")
        if not kind:
            self._page("reports and ledger", self._home())
        elif kind == "report" and not rest and (current := self.workspace.current(REPORTS)):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"/{REPORTS}/{current.version}/report.html")
            self.end_headers()
        elif kind == REPORTS and (found := re.fullmatch(r"([0-9a-f]+)/report\.html", rest)):
            self._report(found[1])
        elif (kind in OF_ALL and not rest) or (kind in OF_ONE and VERSION.fullmatch(rest)):
            command = ["audit", kind, *([rest] if rest else [])]
            self._page(f"udrl {' '.join(command)}", f"<pre>{html.escape(self._answer(command))}</pre>")
        else:
            self._page("there is no such page", "", HTTPStatus.NOT_FOUND)

    def _home(self) -> str:
        with self.workspace.database.reader() as connection:
            made = connection.execute("SELECT version, created_at FROM versions WHERE asset = ? ORDER BY rowid DESC", [REPORTS]).fetchall()
        newest_first = reversed(dict(reversed(made)).items())  # one that was made again counts from then on
        lines = [
            f'<a href="/{REPORTS}/{version}/report.html">report {version}</a>, {at:%Y-%m-%d %H:%M} UTC' for version, at in newest_first
        ]
        lines += [f'<a href="/{question}">udrl audit {question}</a>' for question in OF_ALL]
        return "\n".join(f"<p>{line}</p>" for line in lines)

    def _report(self, version: str) -> None:
        file = self.workspace.version_folder(REPORTS, version) / "report.html"
        if file.is_file():
            self._send(file.read_bytes())
        else:
            self._page("this report is not there", "It was deleted, or is another project's.", HTTPStatus.NOT_FOUND)

    def _answer(self, command: Sequence[str]) -> str:
        asked = [sys.executable, "-m", "udrl_pipeline.cli", *command, *self.options]
        environment = os.environ | {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
        done = subprocess.run(asked, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
        return done.stdout + done.stderr

    def _page(self, title: str, body: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(PAGE.format(title=html.escape(title), body=body).encode(), status, {"Content-Security-Policy": POLICY})

    def _send(self, content: bytes, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] = {}) -> None:
        self.send_response(status)
        always = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(content)), "X-Content-Type-Options": "nosniff"}
        for name, value in (always | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody wants a line for each page."""


def serve_pages(settings: Settings, options: Sequence[str], host: str, port: int) -> None:
    """Serve until interrupted."""
    with serve(settings, options, host, port) as server:
        click.echo(f"reports and ledger on http://{host}:{server.server_address[1]}", err=True)
        server.serve_forever()
