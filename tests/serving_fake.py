"""A student that answers at once, and a server around it without a socket."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.serving.app import Serve
from udrl_pipeline.serving.meters import Meters
from udrl_pipeline.serving.reload import Students
from udrl_pipeline.serving.server import Server, bind
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.generation import Generated

Result = TypeVar("Result")
SPACE = CommandSpace(
    tasks=("image", "search"),
    words=(6, 40),
    quality_bins=5,
    edges={"image": [0.1, 0.2, 0.3, 0.4], "search": [0.1, 0.2, 0.3, 0.4]},
    covered={"image": (6, 40), "search": (6, 20)},
    named_words={"image": {"short": 9, "medium": 18, "long": 28}, "search": {"short": 7, "medium": 11, "long": 16}},
    best={"image": 4, "search": 5},
    guidance={"image": 1.5, "search": 2.0},
)


class Tokenizer:
    """A token a word."""

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * len(text.split()) for text in texts]}


class FakeStudent:
    """Writes `IDEA as NAME SEED.NUMBER`; remembers how it was asked.

    Attributes:
        gate: While it is not set, no text is written.
        fails_on: An idea with this word makes it raise.
    """

    recipe, tokenizer, space = "udrl", Tokenizer(), SPACE

    def __init__(self, name: str = "one") -> None:
        self.name, self.fails_on = name, "unheard"
        self.calls: list[list[str]] = []
        self.options: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def generate(self, commands: Sequence[Command], *, seed: int | Sequence[int], **options: Any) -> list[Generated]:
        self.calls.append([command.intent for command in commands])
        self.options.append(options)
        assert self.gate.wait(10)
        if any(self.fails_on in command.intent for command in commands):
            raise RuntimeError("the model has broken down")
        seeds = [seed] * len(commands) if isinstance(seed, int) else seed
        asked = list(zip(commands, seeds, strict=True))
        return [self._made(command, own, asked[:i].count((command, own)), options) for i, (command, own) in enumerate(asked)]

    def stream(self, command: Command, *, seed: int, **options: Any) -> Iterator[str | Generated]:
        (made,) = self.generate([command], seed=seed, **options)
        for n, word in enumerate(made.text.split()):
            yield word if n == 0 else f" {word}"
        yield made

    def _made(self, command: Command, seed: int, number: int, options: dict[str, Any]) -> Generated:
        guidance = options.get("guidance")
        text = f"{command.intent} as {self.name} {seed}.{number}"
        weight = SPACE.guidance[command.task] if guidance is None else guidance
        return Generated(command, weight, text, len(text.split()), 9, True, ())


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
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    wait_until(lambda: server.started)
    try:
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
