"""A server around a fake student, with a socket and without."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from student_fake import FakeStudent
from udrl_pipeline.serving.app import Serve
from udrl_pipeline.serving.meters import Meters
from udrl_pipeline.serving.reload import Students
from udrl_pipeline.serving.server import Server, bind
from udrl_pipeline.settings import Settings

Result = TypeVar("Result")


def serving(settings: Settings, student: FakeStudent | None = None, key: str = "") -> tuple[Serve, FakeStudent]:
    """A server that asks a fake student of a folder `v1`."""
    student = student or FakeStudent()
    students = Students(settings, "udrl", Meters(), folder=Path("v1"), load=lambda _: student)
    students.refresh()
    student.calls.clear()
    student.options.clear()
    return Serve(settings, students, key), student


@asynccontextmanager
async def client_of(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running server."""
    transport = httpx.ASGITransport(serve.app, raise_app_exceptions=False)
    async with serve.app.router.lifespan_context(serve.app), httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


def talk(serve: Serve, scenario: Callable[[httpx.AsyncClient], Awaitable[Result]]) -> Result:
    """Play a scenario against a running server."""

    async def play() -> Result:
        async with client_of(serve) as client:
            return await asyncio.wait_for(scenario(client), 20)

    return asyncio.run(play())


async def until(true: Callable[[], Any], seconds: float = 5) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


@contextmanager
def running(settings: Settings, key: str = "") -> Iterator[tuple[Server, FakeStudent, str]]:
    """A real server on a port of its own."""
    serve, student = serving(settings, key=key)
    bound = bind("127.0.0.1", 0)
    server = Server(serve)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server, student, f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        student.gate.set()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
