"""`udrl serve` under load: many clients for minutes, its memory meanwhile, and what clients get when it is killed, restarted and ended.

    .venv/bin/python benchmarks/serving.py [--clients 200] [--seconds 300] [--student FOLDER] [--engine auto] [--out FILE.json]

Each client asks for one text about a built-in idea, gets it, and asks for the next one; told to come back later (429, 503) it does. The
server is a process of its own, the clients are in this one, on the same cores. Prints a table; writes JSON, and the table beside it as
Markdown.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from udrl_pipeline import settings as settings_module
from udrl_pipeline.intents import builtin
from udrl_pipeline.usage import memory

#: Lengths that are asked for (words); none: left to the student.
LENGTHS = (None, 8, 12, 18, 24)
#: Seconds: between two looks at the server, for one answer, and until a server must be ready.
LOOK_EVERY_S, ANSWER_WITHIN_S, READY_WITHIN_S = 2.0, 60.0, 120.0
#: The share of a load's time in which the server takes what it needs for good; its memory is compared from then on.
WARM = 0.2
#: Memory counts as flat when its median grows by less than this share from the first quarter of the looks to the last.
FLAT = 0.02


@dataclass
class Tally:
    """What clients got.

    Attributes:
        seconds: Of each answer with a text, from its (last) request on.
        patience: The same from the first request on, being told to come back included.
        outcomes: How often each status, or each failure of a connection.
        memory: When the server was looked at, and its bytes.
        health: What `/health` took meanwhile.
        failures: Of connections: when, after how many seconds of the request, and why.
    """

    seconds: list[float] = field(default_factory=list)
    patience: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    unclean: Counter[str] = field(default_factory=Counter)
    failures: list[list[Any]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    health: list[float] = field(default_factory=list)


class Clients:
    """So many clients, each of which asks for one text after another."""

    def __init__(self, url: str, number: int, ideas: list[str], tasks: list[str]) -> None:
        self._url, self._number, self._ideas, self._tasks = url, number, ideas, tasks
        self.tally, self._began = Tally(), time.monotonic()

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=ANSWER_WITHIN_S) as client:
            tasks = [asyncio.create_task(self._ask(client, random.Random(n))) for n in range(self._number)]
            yield
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(error, asyncio.CancelledError):
                    raise RuntimeError("a client has broken down") from error

    async def _ask(self, client: httpx.AsyncClient, draw: random.Random) -> None:
        while True:
            wish = {"idea": draw.choice(self._ideas), "task": draw.choice(self._tasks), "length": draw.choice(LENGTHS)}
            first = time.monotonic()
            while not await self._once(client, wish, draw, first):
                pass

    async def _once(self, client: httpx.AsyncClient, wish: dict[str, Any], draw: random.Random, first: float) -> bool:
        """Ask once; whether there was an answer."""
        began = time.monotonic()
        try:
            answer = await client.post("/generate", json=wish)
        except httpx.TransportError as error:
            self.tally.outcomes[type(error).__name__] += 1
            self.tally.failures.append([round(time.monotonic() - self._began, 1), round(time.monotonic() - began, 2), _reason(error)])
            await asyncio.sleep(draw.uniform(0.5, 1.5))
            return False
        self.tally.outcomes[str(answer.status_code)] += 1
        told = answer.json()
        if answer.status_code == 200:
            if not told["texts"][0]["text"]:
                self.tally.unclean["a text without words"] += 1
            self.tally.seconds.append(time.monotonic() - began)
            self.tally.patience.append(time.monotonic() - first)
            return True
        if sorted(told["error"]) != ["code", "message", "param", "remedy", "type", "where", "why"]:
            self.tally.unclean[f"{answer.status_code} without its reason"] += 1
        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)) * draw.uniform(1, 1.3))
        return False


def _reason(error: BaseException | None) -> str:
    """A failure with all that caused it."""
    told = []
    while error is not None:
        told.append(repr(error))
        error = error.__cause__ or error.__context__
    return " <- ".join(told)


class Server:
    """`udrl serve` as a process of its own."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self._port = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._command = [sys.executable, "-m", "udrl_pipeline.cli", "serve", "--port", str(self._port), "--engine", arguments.engine]
        self._command += ["--student", str(arguments.student)] if arguments.student else []
        self._command += [part for override in arguments.set for part in ("--set", override)]

    def start(self) -> float:
        """Start it; the seconds until it is ready."""
        began = time.monotonic()
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE)
        while time.monotonic() - began < READY_WITHIN_S:
            if self.process.poll() is not None:
                raise SystemExit(f"the server has ended: {self.process.communicate()[1].decode()}")
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return time.monotonic() - began
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit("the server does not become ready")

    def end(self, how: signal.Signals) -> int:
        """End it; the exit code."""
        self.process.send_signal(how)
        return self.process.wait(120)

    async def watch(self, tally: Tally) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=ANSWER_WITHIN_S) as client:
            while True:
                began = time.monotonic()
                await client.get("/health")
                tally.health.append(time.monotonic() - began)
                tally.memory.append((time.monotonic(), await asyncio.to_thread(memory, self.process.pid)))
                await asyncio.sleep(LOOK_EVERY_S)


async def load(server: Server, clients: Clients, seconds: float) -> Tally:
    """Nothing happens but the load."""
    async with clients.asking():
        watching = asyncio.create_task(server.watch(clients.tally))
        await asyncio.sleep(seconds)
        watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return clients.tally


async def kill(server: Server, clients: Clients, seconds: float) -> dict[str, Any]:
    """SIGKILL under load, a restart, and SIGTERM under load."""
    tally = clients.tally
    found: dict[str, Any] = {}
    async with clients.asking():
        await asyncio.sleep(seconds)
        before = Counter(tally.outcomes)
        await asyncio.to_thread(server.end, signal.SIGKILL)
        found["ready_again_s"] = round(await asyncio.to_thread(server.start), 1)
        killed = Counter(tally.outcomes)
        await asyncio.sleep(seconds)
        after = Counter(tally.outcomes)
        began = time.monotonic()
        found["exit_code_of_sigterm"] = await asyncio.to_thread(server.end, signal.SIGTERM)
        found["ended_in_s"] = round(time.monotonic() - began, 1)
        await asyncio.sleep(0.5)
        ended = Counter(tally.outcomes)
    return found | {
        "before": dict(before), "killed_and_not_ready": dict(killed - before), "restarted": dict(after - killed),
        "ending": dict(ended - after), "unclean": dict(tally.unclean),
    }  # fmt: skip


def medians(looks: list[tuple[float, int]]) -> tuple[float, float]:
    """The memory of the first and of the last quarter of the looks, the start left out (MB)."""
    warm = [size / 1e6 for _, size in looks[int(len(looks) * WARM) :]]
    quarter = max(1, len(warm) // 4)
    return statistics.median(warm[:quarter]), statistics.median(warm[-quarter:])


def quantiles(seconds: list[float]) -> dict[str, float]:
    cut = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [0.0] * 99
    return {name: round(cut[n - 1], 3) for name, n in (("p50", 50), ("p95", 95), ("p99", 99))}


def told(tally: Tally, clients: int, seconds: float) -> dict[str, Any]:
    """The figures of a load."""
    looks = tally.memory
    first, last = medians(looks)
    return {
        "clients": clients, "seconds": round(seconds, 1), "outcomes": dict(tally.outcomes), "unclean": dict(tally.unclean),
        "texts_per_s": round(len(tally.seconds) / seconds, 2), "answer_s": quantiles(tally.seconds),
        "patience_s": quantiles(tally.patience),
        "health_s": quantiles(tally.health), "errors_but_429": sum(tally.outcomes.values()) - tally.outcomes["200"] - tally.outcomes["429"],
        "memory_mb": {"first": round(first), "last": round(last), "most": round(max(size for _, size in looks) / 1e6),
                      "flat": last < first * (1 + FLAT)},
        "failures": tally.failures,
        "memory_over_time_mb": [[round(at - looks[0][0]), round(size / 1e6)] for at, size in looks],
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    under, after = found["load"], found["kill"]
    size = under["memory_mb"]
    three = lambda values: ", ".join(f"{values[name]:.3g}" for name in ("p50", "p95", "p99"))  # noqa: E731
    counts = lambda outcomes: ", ".join(f"{n:,} x {name}" for name, n in sorted(outcomes.items())) or "none"  # noqa: E731
    rows = [
        ("answers", counts(under["outcomes"])),
        ("errors other than 429", str(under["errors_but_429"])),
        ("texts per second", f"{under['texts_per_s']:.3g}"),
        ("seconds of an answer (p50, p95, p99)", three(under["answer_s"])),
        ("the same from the first try on, 429 included", three(under["patience_s"])),
        ("seconds of `/health` meanwhile", three(under["health_s"])),
        ("memory: median of the first and the last quarter, most (MB)", f"{size['first']:,}, {size['last']:,}, {size['most']:,}"),
        ("memory is flat (grows by less than 2%)", "yes" if size["flat"] else "no"),
        ("SIGKILL: what clients got until it was ready again", counts(after["killed_and_not_ready"])),
        ("ready again after", f"{after['ready_again_s']:.3g} s"),
        ("then", counts(after["restarted"])),
        ("SIGTERM: what clients got", counts(after["ending"])),
        ("ended after, with exit code", f"{after['ended_in_s']:.3g} s, {after['exit_code_of_sigterm']}"),
        ("answers that were not as they should be", counts(under["unclean"] | after["unclean"])),
    ]
    machine, student = found["machine"], found["student"]
    lines = [
        f"# `udrl serve`: {under['clients']} clients for {under['seconds']:.0f} s", "",
        "Each client asks for one text after another, of a length that is drawn (8 to 24 words, or left to the student), at the quality",
        "that won. The clients run on the same cores as the server.", "",
        "| what | figure |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows), "",
        f"Student: {student['recipe']} {student['version']}, engine {student['engine']}. On {machine['cores']} cores",
        f"({machine['machine']}), load average before the start {machine['load_before']}. Made by `{found['command']}`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300, help="of load; the kills come after it")
    parser.add_argument("--kill-seconds", type=float, default=20, help="of load before and after the kill")
    parser.add_argument("--student", type=Path, help="a student's or an export's folder, instead of the one in use")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="handed on to the server")
    parser.add_argument("--out", type=Path, default=Path("docs/results/serving.json"))
    arguments = parser.parse_args()
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "load_before": [round(load, 2) for load in os.getloadavg()]}
    server = Server(arguments)
    first = server.start()
    try:
        student = httpx.get(f"{server.url}/student").json()
        ideas, tasks = builtin(settings_module.load().intents)[:2000], [task["task"] for task in student["tasks"]]
        crowd = lambda: Clients(server.url, arguments.clients, ideas, tasks)  # noqa: E731
        began = time.monotonic()
        tally = asyncio.run(load(server, crowd(), arguments.seconds))
        figures = told(tally, arguments.clients, time.monotonic() - began)
        killed = asyncio.run(kill(server, crowd(), arguments.kill_seconds))
    finally:
        if server.process.poll() is None:
            server.process.kill()
    found = {
        "command": f"benchmarks/serving.py --clients {arguments.clients} --seconds {arguments.seconds:g}",
        "machine": machine, "student": {name: student[name] for name in ("recipe", "version", "engine")},
        "settings": arguments.set, "ready_after_s": round(first, 1), "load": figures, "kill": killed,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
