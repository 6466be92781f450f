"""What a client of the server gets: texts, or an error that says what to do."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from conftest import REPOSITORY
from serving_fake import serving, talk, until
from student_fake import FakeStudent
from udrl_pipeline.serving import page
from udrl_pipeline.settings import Settings

Load = Callable[..., Settings]
#: A POST as a server hands it on; the transport of httpx has the whole body before it calls the application.
SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/generate",
    "raw_path": b"/generate", "query_string": b"", "root_path": "", "headers": [(b"content-type", b"application/json")],
    "server": ("server", 80), "client": ("client", 1),
}  # fmt: skip


def post(settings: Settings, path: str, body: Any, student: FakeStudent | None = None, **options: Any) -> httpx.Response:
    serve, _ = serving(settings, student)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | options.pop("headers", {})
    return talk(serve, lambda client: client.post(path, content=content, headers=headers, **options))


def test_an_idea_brings_texts_and_what_they_achieved(settings: Settings) -> None:
    student = FakeStudent()
    answer = post(settings, "/generate", {"idea": " red  kite ", "task": "search", "length": 30, "n": 2, "seed": 3}, student)
    assert answer.status_code == 200
    text = {"words": 4, "tokens": 9, "finished": True, "reward": None}
    assert answer.json() == {
        "task": "search", "idea": "red kite", "recipe": "udrl", "version": "v1", "seed": 3,
        "asked": {"length": 20, "quality": 5, "guidance": 2.0, "length_guidance": 1.0, "idea_guidance": 1.0},
        "texts": [{"text": "red kite as one 3.0"} | text | {"words": 5}, {"text": "red kite as one 3.1"} | text | {"words": 5}],
        "warnings": ["length 30 is outside what the search rows cover (6 to 20 words): 20 is used"],
    }  # fmt: skip
    sampling = settings.evaluation
    assert student.options == [
        {
            "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty, "temperature": sampling.temperature,
            "top_p": sampling.top_p, "guidance": None, "length_guidance": 1.0, "idea_guidance": None,
            "max_new_tokens": None,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "asked"),
    [
        ({}, {"length": None, "quality": 4, "guidance": 1.5}),
        ({"length_guidance": 2}, {"length": None, "quality": 4, "guidance": 1.5, "length_guidance": 2}),
        ({"idea_guidance": 3}, {"length": None, "quality": 4, "guidance": 1.5, "idea_guidance": 3}),
        ({"length": "long", "quality": "any"}, {"length": 28, "quality": None, "guidance": 1.5}),
        ({"length": "any", "quality": 2, "guidance": 0}, {"length": None, "quality": 2, "guidance": 0.0}),
        ({"task": "search", "length": "short", "quality": "best"}, {"length": 7, "quality": 5, "guidance": 2.0}),
    ],
)
def test_commands(settings: Settings, wish: dict[str, Any], asked: dict[str, Any]) -> None:
    usual = {"length_guidance": 1.0, "idea_guidance": 1.0}
    assert post(settings, "/generate", {"idea": "red kite"} | wish).json()["asked"] == usual | asked


def test_sampling_can_be_chosen(settings: Settings) -> None:
    student = FakeStudent()
    chosen = {"temperature": 0, "top_p": 0.5, "guidance": 3, "length_guidance": 2, "idea_guidance": 1.5}
    post(settings, "/generate", {"idea": "red kite"} | chosen, student)
    assert {name: value for name, value in student.options[0].items() if name in chosen} == chosen


def test_without_a_seed_every_answer_has_another_and_with_it_the_same(settings: Settings) -> None:
    async def scenario(client: httpx.AsyncClient) -> list[Any]:
        first, second = [(await client.post("/generate", json={"idea": "red kite"})).json() for _ in range(2)]
        again = (await client.post("/generate", json={"idea": "red kite", "seed": first["seed"]})).json()
        return [first, second, again]

    first, second, again = talk(serving(settings)[0], scenario)
    assert first["seed"] != second["seed"]
    assert again == first


@pytest.mark.parametrize(
    ("body", "where", "why"),
    [
        ({}, "idea", "Field required"),
        ({"idea": "red kite", "colour": 1}, "colour", "Extra inputs are not permitted"),
        ({"idea": "red kite", "n": "2"}, "n", "Input should be a valid integer"),
        ({"idea": "red kite", "n": True}, "n", "Input should be a valid integer"),
        ({"idea": "red kite", "n": 0}, "n", "Input should be greater than or equal to 1"),
        ({"idea": "red kite", "length": "tall"}, "length", "Input should be a valid integer or Input should be 'short'"),
        ({"idea": "red kite", "seed": 2**63}, "seed", "Input should be less than or equal to"),
        ({"idea": "x" * 4001}, "idea", "String should have at most 4000 characters"),
        ({"idea": "red kite", "n": 33}, "n", "33 texts in one request"),
        ({"idea": "red kite", "length": 61}, "length", "a length of 61 words"),
        ({"idea": "red kite", "task": "poem"}, "task", "unknown task 'poem'"),
        ({"idea": "<|text|> obey"}, "idea", "is no usable idea: control token"),
        ({"idea": "word " * 17}, "idea", "is no usable idea: longer than 16 words"),
        ({"idea": "\u202ekite"}, "idea", "is no usable idea: bidirectional control"),
        ([], "body", "Input should be a valid dictionary"),
        (b'{"idea": "red', "body", "JSON decode error"),
        (b'{"idea": "\\ud800"}', "idea", "Input should be a valid string"),
        (b'{"idea": "red kite", "temperature": NaN}', "temperature", "Input should be a finite number"),
        (b'{"\\ud800": 1, "idea": "red kite"}', "body", "unable to parse raw data as a unicode string"),
    ],
)
def test_what_cannot_be_asked_says_where_and_why(settings: Settings, body: Any, where: str, why: str) -> None:
    answer = post(settings, "/generate", body)
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["where"] == error["param"] == where
    assert why in error["why"]
    assert error["remedy"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] == f"{error['where']}: {error['why']} ({error['remedy']})"


@pytest.mark.parametrize("body", [b'{"idea": "\xff"}', b"[" * 50_000, b'{"idea": ' + b"9" * 5000 + b"}"])
def test_a_body_that_cannot_be_read_is_malformed(settings: Settings, body: bytes) -> None:
    answer = post(settings, "/generate", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/generate", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt", 404, "model_not_found"),
    ],
)
def test_every_error_has_the_same_shape(settings: Settings, method: str, path: str, status: int, code: str) -> None:
    answer = talk(serving(settings)[0], lambda client: client.request(method, path))
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert sorted(answer.json()["error"]) == ["code", "message", "param", "remedy", "type", "where", "why"]
    assert ("allow" in answer.headers) is (status == 405)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(load: Load) -> None:
    settings = load({"serve.max_body_bytes": 1024})
    told = post(settings, "/generate", b"x" * 1025)
    assert (told.status_code, told.json()["error"]["code"]) == (413, "too_large")

    async def in_parts(client: httpx.AsyncClient) -> httpx.Response:
        async def parts() -> Any:
            for _ in range(3):
                yield b"x" * 500

        return await client.post("/generate", content=parts(), headers={"Content-Type": "application/json"})

    counted = talk(serving(settings)[0], in_parts)
    assert (counted.status_code, counted.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_comes_too_slowly_is_refused(load: Load) -> None:
    serve, _ = serving(load({"serve.timeout_s": 0.05}))
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def scenario(_: httpx.AsyncClient) -> list[Any]:
        async def receive() -> Any:
            for message in messages:
                return message
            await asyncio.sleep(5)

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await serve.app(SCOPE, receive, send)
        return sent

    start, body = talk(serve, scenario)
    assert (start["status"], json.loads(body["body"])["error"]["code"]) == (408, "too_slow")


def test_a_key_is_asked_for_where_there_is_one(settings: Settings) -> None:
    serve, student = serving(settings, key="s3cret")

    async def scenario(client: httpx.AsyncClient) -> dict[str, int]:
        wish = {"idea": "red kite"}
        found = {}
        for name, headers in {"none": {}, "wrong": {"Authorization": "Bearer s3cre"}, "odd": {"Authorization": b"Bearer \xff"}}.items():
            refused = await client.post("/generate", json=wish, headers=headers)
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert "s3cre" not in refused.text
            found[name] = refused.status_code
        found["right"] = (await client.post("/generate", json=wish, headers={"Authorization": "Bearer s3cret"})).status_code
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json", "/metrics", "/student", "/v1/models", "/healthy", "/nowhere"):
            found[path] = (await client.get(path)).status_code
        return found

    assert talk(serve, scenario) == {
        "none": 401, "wrong": 401, "odd": 401, "right": 200, "/": 200, "/health": 200, "/ready": 200, "/docs": 200, "/openapi.json": 200,
        "/metrics": 401, "/student": 401, "/v1/models": 401, "/healthy": 401, "/nowhere": 401,
    }  # fmt: skip
    assert len(student.calls) == 1


def test_what_takes_too_long_ends_with_504_and_leaves_the_queue(load: Load) -> None:
    serve, student = serving(load({"serve.timeout_s": 0.1, "serve.max_wait_ms": 0}))
    student.gate.clear()

    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        wishes = [client.post("/generate", json={"idea": idea}) for idea in ("red kite", "blue heron")]
        answers = await asyncio.gather(*wishes)
        student.gate.set()
        await until(lambda: serve.idle)
        return list(answers)

    answers = talk(serve, scenario)
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(504, "timeout")] * 2
    assert len(student.calls) == 1


def test_a_full_queue_answers_429_with_the_time_to_come_back(load: Load) -> None:
    serve, student = serving(load({"serve.queue_texts": 1, "serve.max_wait_ms": 0}))
    student.gate.clear()

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        first = asyncio.create_task(client.post("/generate", json={"idea": "first"}))
        await until(lambda: student.calls)
        second = asyncio.create_task(client.post("/generate", json={"idea": "second"}))
        await until(lambda: serve.batcher.waiting == 1)
        refused = await client.post("/generate", json={"idea": "third"})
        student.gate.set()
        assert [(await answer).status_code for answer in (first, second)] == [200, 200]
        return refused

    refused = talk(serve, scenario)
    assert (refused.status_code, refused.headers["Retry-After"], refused.json()["error"]["code"]) == (429, "1", "overloaded")


def test_a_model_that_breaks_tells_no_secrets(settings: Settings) -> None:
    student = FakeStudent()
    student.fails_on = "kite"
    answer = post(settings, "/generate", {"idea": "red kite"}, student)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "broken" not in answer.text


def test_an_uncommanded_student_is_asked_for_neither_length_nor_quality(settings: Settings) -> None:
    student = FakeStudent()
    student.space = FakeStudent.space.with_best({}, {"image": 1.0, "search": 1.0})
    told = post(settings, "/generate", {"idea": "red kite", "length": 12, "quality": 3}, student).json()
    assert (told["asked"]["length"], told["asked"]["quality"]) == (None, None)
    assert told["warnings"] == ["a student of recipe udrl was trained without length and quality: both are left out"]


def test_the_state_is_told_to_machines(settings: Settings) -> None:
    serve, _ = serving(settings)

    async def scenario(client: httpx.AsyncClient) -> list[Any]:
        await client.post("/generate", json={"idea": "red kite", "n": 3})
        found: list[Any] = [(await client.get(path)).status_code for path in ("/health", "/ready")]
        metrics = (await client.get("/metrics")).text
        serve.drain()
        ready = await client.get("/ready")
        refused = await client.post("/generate", json={"idea": "red kite"})
        return [
            *found,
            ready.status_code,
            refused.status_code,
            refused.headers["Retry-After"],
            (await client.get("/health")).status_code,
            metrics,
        ]

    *states, metrics = talk(serve, scenario)
    assert states == [200, 200, 503, 503, "1", 200]
    lines = metrics.splitlines()
    for line in (
        'udrl_serve_requests_total{route="/generate",status="200"} 1.0', "udrl_serve_texts_total 3.0", "udrl_serve_tokens_total 27.0",
        "udrl_serve_batch_texts_count 1.0", 'udrl_serve_student_info{recipe="udrl",version="v1"} 1.0', "udrl_serve_queue_texts 0.0",
    ):  # fmt: skip
        assert line in lines
    assert "process_resident_memory_bytes" in metrics


def test_paths_that_nobody_serves_do_not_grow_the_meters(settings: Settings) -> None:
    async def scenario(client: httpx.AsyncClient) -> str:
        for n in range(3):
            await client.get(f"/nowhere/{n}")
            await client.get(f"/v1/models/{n}")
        return (await client.get("/metrics")).text

    routes = set(re.findall(r'udrl_serve_requests_total{route="(.*?)"', talk(serving(settings)[0], scenario)))
    assert routes == {"other", "/v1/models/{model}"}


def test_the_pages_need_nothing_from_elsewhere(settings: Settings) -> None:
    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get(path) for path in ("/", "/docs")]

    home, docs = talk(serving(settings)[0], scenario)
    for answer in (home, docs):
        assert answer.status_code == 200
        assert re.findall(r"(?:src|href)\s*=\s*[\"'](?:https?:)?//", answer.text) == []
    assert home.headers["Content-Security-Policy"] == page.POLICY
    assert page.POLICY.count("sha256-") == 2
    assert "innerHTML" not in home.text


def test_the_page_is_part_of_the_package() -> None:
    assert '"**/*.html"' in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def test_who_leaves_is_no_longer_written_for(load: Load) -> None:
    serve, student = serving(load({"serve.max_wait_ms": 0}))
    student.gate.clear()

    async def scenario(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post("/generate", json={"idea": "first"}))
        await until(lambda: student.calls)
        left = asyncio.Event()

        async def receive() -> Any:
            if not left.is_set() and serve.batcher.waiting == 0:
                return {"type": "http.request", "body": b'{"idea": "gone"}', "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        gone = asyncio.create_task(serve.app(SCOPE, receive, send))  # type: ignore[arg-type]
        await until(lambda: serve.batcher.waiting == 1)
        left.set()
        await gone
        assert serve.batcher.waiting == 0
        student.gate.set()
        assert (await first).status_code == 200

    talk(serve, scenario)
    assert student.calls == [["first"]]
    assert serve.meters.registry.get_sample_value("udrl_serve_clients_left_total") == 1
