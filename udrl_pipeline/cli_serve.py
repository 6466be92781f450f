"""`udrl serve`: a student behind HTTP."""

import os
from pathlib import Path

import click

from udrl_pipeline.settings import Settings
from udrl_pipeline.student.engines import Engine

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve_student(settings: Settings, recipe: str, folder: Path | None, engine: Engine, host: str, port: int) -> None:
    """Serve until told to end.

    Raises:
        SettingsError: The address cannot be taken.
        UdrlError: The student cannot be loaded. One that is not there yet is waited for.
    """
    from udrl_pipeline.serving.app import Serve
    from udrl_pipeline.serving.meters import Meters
    from udrl_pipeline.serving.reload import NoStudent, Students
    from udrl_pipeline.serving.server import bind, run

    key = os.environ.get(settings.serve.api_key_env, "") if settings.serve.api_key_env else ""
    students = Students(settings, recipe, Meters(), engine=engine, folder=folder)
    with bind(host, port) as bound:
        try:
            students.refresh()
        except NoStudent as error:
            click.echo(f"waiting  {error}", err=True)
        if host not in LOOPBACK and not key:
            told = f"everybody who reaches {host} can ask: {settings.serve.api_key_env or 'serve.api_key_env'} sets no key"
            click.echo(f"warning  {told}", err=True)
        name = f"[{host}]" if ":" in host else host
        click.echo(f"the student on http://{name}:{bound.getsockname()[1]}", err=True)
        run(Serve(settings, students, key), bound)
