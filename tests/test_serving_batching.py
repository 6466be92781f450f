"""The queue before the model: what goes together, what is refused, and what one request can cost another."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from serving_fake import until
from udrl_pipeline.commands import Command
from udrl_pipeline.serving.batching import Batcher, Job, Knobs, Row, Written
from udrl_pipeline.serving.errors import Refused
from udrl_pipeline.serving.meters import Meters
from udrl_pipeline.settings import ServeSettings

KNOBS = Knobs(temperature=0.8, top_p=0.9, guidance=None, length_guidance=1.0, idea_guidance=None, max_tokens=None)


class FakeWriter:
    """Writes the idea and its number; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def write(self, student: Any, rows: Sequence[Row], knobs: Knobs) -> list[Written]:
        self.batches.append([f"{row.command.intent} {row.number}" for row in rows])
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(10)
        if any(row.command.intent == "bad" for row in rows):
            raise RuntimeError("the model has broken down")
        return [Written(row.command, 1.0, f"{row.command.intent} {row.number}", 2, 3, True) for row in rows]

    def stream(self, student: Any, row: Row, knobs: Knobs) -> Iterator[str | Written]:
        (made,) = self.write(student, [row], knobs)
        yield from made.text
        yield made


class Bench:
    """A batcher, and what came out of it."""

    def __init__(self, **options: Any) -> None:
        self.writer = FakeWriter()
        self.batcher = Batcher(ServeSettings(**options), self.writer, Meters())
        self.student = object()

    def submit(
        self, idea: str, number: int = 1, student: Any = None, knobs: Knobs = KNOBS, piece: Callable[[str], None] | None = None
    ) -> Job:
        rows = [Row(Command("image", idea), 7, n) for n in range(number)]
        return self.batcher.submit(student or self.student, rows, knobs, piece)

    async def texts(self, job: Job) -> list[str]:
        return [written.text for written in await job.answer]


def play(bench: Bench, scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def all_of_it() -> Any:
        running = asyncio.create_task(bench.batcher.run())
        try:
            return await asyncio.wait_for(scenario(), 10)
        finally:
            bench.writer.gate.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return asyncio.run(all_of_it())


def test_requests_that_wait_together_are_written_together_and_each_gets_its_own_texts() -> None:
    bench = Bench(batch_texts=8, max_wait_ms=500)

    async def scenario() -> list[list[str]]:
        jobs = [bench.submit("a"), bench.submit("b", 2), bench.submit("c", 5)]
        return [await bench.texts(job) for job in jobs]

    assert play(bench, scenario) == [["a 0"], ["b 0", "b 1"], ["c 0", "c 1", "c 2", "c 3", "c 4"]]
    assert bench.writer.batches == [["a 0", "b 0", "b 1", "c 0", "c 1", "c 2", "c 3", "c 4"]]
    assert len(bench.writer.threads) == 1


def test_a_request_alone_waits_no_longer_than_it_is_told() -> None:
    bench = Bench(max_wait_ms=30)

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await bench.submit("a").answer
        return loop.time() - began

    assert 0.03 <= play(bench, scenario) < 1


def test_a_batch_holds_so_many_texts_and_a_larger_request_goes_alone() -> None:
    bench = Bench(batch_texts=3, max_wait_ms=0)

    async def scenario() -> None:
        bench.writer.gate.clear()
        jobs = [bench.submit("first")]
        await until(lambda: bench.writer.batches)
        jobs += [bench.submit("large", 5), bench.submit("a", 2), bench.submit("b", 2), bench.submit("c")]
        bench.writer.gate.set()
        for job in jobs:
            await job.answer

    play(bench, scenario)
    assert [sorted({text.split()[0] for text in batch}) for batch in bench.writer.batches] == [["first"], ["large"], ["a", "c"], ["b"]]


def test_only_what_is_sampled_alike_by_the_same_student_goes_together() -> None:
    bench = Bench(max_wait_ms=20)

    async def scenario() -> None:
        greedy = Knobs(temperature=0, top_p=0.9, guidance=None, length_guidance=1.0, idea_guidance=None, max_tokens=None)
        jobs = [bench.submit("a"), bench.submit("b", knobs=greedy), bench.submit("c", student=object()), bench.submit("d")]
        for job in jobs:
            await job.answer

    play(bench, scenario)
    assert bench.writer.batches == [["a 0", "d 0"], ["b 0"], ["c 0"]]


def test_the_same_text_is_written_once_for_all_who_ask_for_it() -> None:
    bench = Bench(max_wait_ms=20)

    async def scenario() -> list[list[str]]:
        return [await bench.texts(job) for job in [bench.submit("a", 2), bench.submit("b"), bench.submit("a", 3)]]

    assert play(bench, scenario) == [["a 0", "a 1"], ["b 0"], ["a 0", "a 1", "a 2"]]
    assert bench.writer.batches == [["a 0", "a 1", "b 0", "a 2"]]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    bench = Bench(queue_texts=4, max_wait_ms=0)

    async def scenario() -> Refused:
        bench.writer.gate.clear()
        first = bench.submit("first")
        await until(lambda: bench.writer.batches)
        waiting = [bench.submit("a", 2), bench.submit("b", 2)]
        with pytest.raises(Refused) as refused:
            bench.submit("c")
        bench.writer.gate.set()
        for job in [first, *waiting]:
            await job.answer
        await bench.submit("c").answer  # there is room again
        return refused.value

    refused = play(bench, scenario)
    assert (refused.status, refused.code, refused.headers) == (429, "overloaded", {"Retry-After": "1"})
    assert refused.what == "5 texts are waiting already"
    assert bench.batcher._meters.registry.get_sample_value("udrl_serve_refused_total") == 1


def test_who_would_wait_for_most_of_their_time_is_refused_before_the_queue_is_full() -> None:
    bench = Bench(queue_texts=1000, batch_texts=10, timeout_s=8, max_wait_ms=0)

    async def scenario() -> str:
        bench.batcher._learn(10, 2.0)  # five texts a second
        for n in range(11):
            bench.submit(f"idea {n}")
        with pytest.raises(Refused) as refused:
            bench.submit("late")
        return refused.value.headers["Retry-After"]

    assert play(bench, scenario) == "3"  # eleven texts at five a second


def test_who_has_left_is_not_written_for() -> None:
    bench = Bench(max_wait_ms=0)

    async def scenario() -> None:
        bench.writer.gate.clear()
        first = bench.submit("first")
        await until(lambda: bench.writer.batches)
        gone, stays = bench.submit("gone"), bench.submit("stays")
        bench.batcher.cancel(gone)
        assert bench.batcher.waiting == 1
        bench.batcher.cancel(first)  # in the middle of its batch
        bench.writer.gate.set()
        await stays.answer
        assert first.answer.cancelled()
        assert gone.answer.cancelled()

    play(bench, scenario)
    assert bench.writer.batches == [["first 0"], ["stays 0"]]


def test_a_request_that_breaks_the_model_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(max_wait_ms=20)

    async def scenario() -> list[Any]:
        jobs = [bench.submit("a"), bench.submit("bad"), bench.submit("b")]
        return await asyncio.gather(*(bench.texts(job) for job in jobs), return_exceptions=True)

    good, bad, other = play(bench, scenario)
    assert (good, other) == (["a 0"], ["b 0"])
    assert (bad.status, bad.code) == (500, "internal")
    assert "broken down" not in str(bad)
    assert "the model has broken down" in caplog.text


def test_a_text_alone_is_told_piece_by_piece_and_stops_when_its_reader_leaves() -> None:
    bench = Bench(max_wait_ms=0)
    pieces: list[str] = []

    async def scenario() -> list[str]:
        told = await bench.texts(bench.submit("abc", piece=pieces.append))
        bench.writer.gate.clear()
        left = bench.submit("left", piece=pieces.append)
        await until(lambda: len(bench.writer.batches) == 2)
        bench.batcher.cancel(left)
        bench.writer.gate.set()
        await until(lambda: bench.batcher.idle)
        return told

    assert play(bench, scenario) == ["abc 0"]
    assert pieces == list("abc 0")


def test_a_text_in_company_is_told_whole() -> None:
    bench = Bench(max_wait_ms=20)
    pieces: list[str] = []

    async def scenario() -> list[list[str]]:
        jobs = [bench.submit("a", piece=pieces.append), bench.submit("b", piece=pieces.append)]
        return [await bench.texts(job) for job in jobs]

    assert play(bench, scenario) == [["a 0"], ["b 0"]]
    assert pieces == []


def test_an_end_answers_what_is_there_and_takes_nothing_new_in() -> None:
    bench = Bench(max_wait_ms=0)

    async def scenario() -> list[Any]:
        bench.writer.gate.clear()
        first = bench.submit("first")
        await until(lambda: bench.writer.batches)
        second = bench.submit("second")
        bench.batcher.draining = True
        with pytest.raises(Refused) as refused:
            bench.submit("new")
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        assert not bench.batcher.idle
        bench.batcher.abort()
        return await asyncio.gather(first.answer, second.answer, return_exceptions=True)

    assert [error.code for error in play(bench, scenario)] == ["shutting_down", "shutting_down"]
