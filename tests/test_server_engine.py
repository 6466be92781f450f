"""The `server` engine against a real HTTP server of the OpenAI chat API, well and badly behaved."""

import json
import logging
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from udrl_pipeline import corpus
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.intents import asset
from udrl_pipeline.settings import ServerSettings, Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.teacher import Refusal, Reply, Request
from udrl_pipeline.teacher.server_engine import ServerEngine

KEY = "sk-a-very-secret-key"
Answer = tuple[int, Any]
SERVED: Answer = (200, {"object": "list", "data": [{"id": "teacher", "object": "model"}]})


class Endpoint:
    """A chat endpoint. `answer(body, headers)` gives status and JSON (or text) of each completion."""

    def __init__(self) -> None:
        self.served: Answer = SERVED
        self.answer: Callable[[dict[str, Any], Message], Answer] = lambda body, _: (200, completion(f"about {asked(body)}"))
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(*endpoint.served)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.bodies.append(body)
                    endpoint.keys.add(self.headers["Authorization"])
                    endpoint.in_flight += 1
                    endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
                try:
                    status, answer = endpoint.answer(body, self.headers)
                finally:
                    with endpoint._lock:
                        endpoint.in_flight -= 1
                self._send(status, answer)

            def _send(self, status: int, answer: Any) -> None:
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "1")  # so that the client's retries take no time
                self.end_headers()
                try:
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up waiting

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(text: str | None, finish: str = "stop", tokens: int = 7) -> dict[str, Any]:
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": "teacher",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens},
    }  # fmt: skip


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def request(idea: str) -> Request:
    return Request([{"role": "system", "content": "Write."}, {"role": "user", "content": idea}], 45, 0.5, 0.92, 1.08)


def failing(times: int, status: int, error: Any = "busy") -> Callable[[dict[str, Any], Message], Answer]:
    """An answer that fails the first few times, and then is right."""
    left = iter(range(times))

    def answer(body: dict[str, Any], _: Message) -> Answer:
        return (200, completion(asked(body))) if next(left, None) is None else (status, {"error": {"message": error}})

    return answer


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def engine(endpoint: Endpoint) -> Iterator[Callable[..., ServerEngine]]:
    """An engine on the endpoint."""
    opened: list[ServerEngine] = []

    def start(**settings: Any) -> ServerEngine:
        opened.append(ServerEngine(ServerSettings(base_url=endpoint.url, **{"timeout_s": 20, "retries": 2, **settings})))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


# -- when all is well ---------------------------------------------------------------------------------------------------


def test_every_request_has_its_answer_in_order(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    ideas = [f"idea {n}" for n in range(30)]
    teacher = engine()
    assert teacher.generate([request(idea) for idea in ideas]) == [Reply(f"about {idea}", 7, "stop") for idea in ideas]
    assert (teacher.name, teacher.version) == ("server", "teacher")
    assert endpoint.bodies[0] == {
        "model": "teacher",
        "messages": [{"role": "system", "content": "Write."}, {"role": "user", "content": endpoint.bodies[0]["messages"][1]["content"]}],
        "max_tokens": 45, "temperature": 0.5, "top_p": 0.92, "stop": ["\n"], "repetition_penalty": 1.08,
    }  # fmt: skip


def test_a_server_that_does_not_know_the_repetition_penalty_is_spared_it(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    engine(repetition_penalty=False).generate([request("red fox")])
    assert "repetition_penalty" not in endpoint.bodies[0]


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (completion("  a red fox \nand more", "length"), Reply("a red fox", 7, "stop")),
        (completion("a red", "length"), Reply("a red", 7, "length")),
        (completion("a red", "content_filter"), Reply("a red", 7, "length")),
        (completion(None), Reply("", 7, "stop")),
        (completion("a fox \ud83d"), Reply("a fox ?", 7, "stop")),
        ({**completion("a fox"), "usage": None}, Reply("a fox", 0, "stop")),
        ({**completion("a fox"), "choices": []}, Refusal("the endpoint answered without a choice")),
    ],
)
def test_an_answer_is_its_first_line(endpoint: Endpoint, engine: Callable[..., ServerEngine], answer: Any, reply: Reply | Refusal) -> None:
    endpoint.answer = lambda *_: (200, answer)
    assert engine().generate([request("red fox")]) == [reply]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(endpoint: Endpoint, engine: Callable[..., ServerEngine], concurrency: int) -> None:
    def slow(body: dict[str, Any], _: Message) -> Answer:
        time.sleep(0.02)
        return 200, completion(asked(body))

    endpoint.answer = slow
    assert len(engine(concurrency=concurrency).generate([request(str(n)) for n in range(15)])) == 15
    assert endpoint.most_in_flight == concurrency


def test_a_cancelled_batch_does_not_wait_for_what_is_in_flight(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    released = threading.Event()

    def hang(body: dict[str, Any], _: Message) -> Answer:
        released.wait(10)
        return 200, completion(asked(body))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    endpoint.answer = hang
    asking = engine(concurrency=2)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            asking.generate([request(str(n)) for n in range(6)])
    finally:
        signal.signal(signal.SIGALRM, before)
        released.set()
    assert time.monotonic() - began < 3
    time.sleep(0.1)
    assert len(endpoint.bodies) == 2  # the others were not sent


# -- when it is not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_busy_or_failing_server_is_asked_again(endpoint: Endpoint, engine: Callable[..., ServerEngine], status: int) -> None:
    endpoint.answer = failing(2, status)
    assert engine(retries=2).generate([request("red fox")]) == [Reply("red fox", 7, "stop")]
    assert len(endpoint.bodies) == 3


def test_a_server_that_keeps_failing_is_a_typed_error(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    endpoint.answer = failing(99, 500, "out of memory")
    with pytest.raises(TeacherError) as caught:
        engine(retries=1, concurrency=1).generate([request("red fox"), request("blue fox")])
    assert caught.value.what.startswith("the endpoint answers with an error (InternalServerError: Error code: 500")
    assert "out of memory" in caught.value.what
    assert caught.value.where == endpoint.url
    assert len(endpoint.bodies) <= 4  # what was not in flight yet is not sent any more


def test_a_request_that_the_server_refuses_costs_itself_alone(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    def answer(body: dict[str, Any], _: Message) -> Answer:
        bad = {"jazz": 400, "rock": 422}.get(asked(body))
        return (bad, {"error": {"message": f"no {asked(body)} here"}}) if bad else (200, completion(asked(body)))

    endpoint.answer = answer
    replies = engine().generate([request(idea) for idea in ("red fox", "jazz", "rock", "tea")])
    assert [reply for reply in replies if isinstance(reply, Reply)] == [Reply("red fox", 7, "stop"), Reply("tea", 7, "stop")]
    refusals = [reply.reason for reply in replies if isinstance(reply, Refusal)]
    assert [reason.startswith("the endpoint refused the request: ") for reason in refusals] == [True, True]
    assert "no jazz here" in refusals[0]
    assert "no rock here" in refusals[1]
    assert len(endpoint.bodies) == 4


def test_what_a_server_says_of_a_refusal_is_shown_short_and_printable(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    endpoint.answer = failing(1, 400, "\x1b[31m\u202e\ud800" + "x" * 10_000)
    (refusal,) = engine().generate([request("red fox")])
    assert isinstance(refusal, Refusal)
    assert refusal.reason.isprintable()
    assert len(refusal.reason) < 600


def test_a_server_that_is_too_slow_is_a_typed_error(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    def slow(*_: object) -> Answer:
        time.sleep(1)
        return 200, completion("too late")

    teacher = engine(retries=0)
    teacher._client = teacher._client.with_options(timeout=0.2)
    endpoint.answer = slow
    with pytest.raises(TeacherError) as caught:
        teacher.generate([request("red fox")])
    assert caught.value.what.startswith("the endpoint does not answer (APITimeoutError: ")
    assert caught.value.where == endpoint.url


def test_the_time_out_of_the_settings_is_the_clients(engine: Callable[..., ServerEngine]) -> None:
    client = engine(timeout_s=3.5, retries=7)._client
    assert (client.timeout, client.max_retries) == (3.5, 7)


def test_a_server_that_is_down_is_named_with_the_remedy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(TeacherError) as caught:
        ServerEngine(ServerSettings(base_url=url, retries=0))
    assert caught.value.what.startswith("the endpoint does not answer (APIConnectionError: ")
    assert caught.value.where == url
    assert caught.value.remedy == (
        "start it (for instance `vllm serve MODEL --served-model-name teacher`), or correct teacher.server in params.yaml"
    )


def test_a_server_that_goes_down_in_between_is_a_typed_error(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    def hang_up(*_: object) -> Answer:
        raise ConnectionAbortedError

    teacher = engine(retries=0)
    endpoint.answer = hang_up
    with pytest.raises(TeacherError, match=r"the endpoint does not answer .*disconnected"):
        teacher.generate([request("red fox")])


def test_a_model_that_the_server_does_not_serve_is_named_with_those_it_does(
    engine: Callable[..., ServerEngine], endpoint: Endpoint
) -> None:
    with pytest.raises(TeacherError) as caught:
        engine(model="llama")
    assert (caught.value.what, caught.value.where) == ("serves teacher, not 'llama'", endpoint.url)
    assert caught.value.remedy == "correct teacher.server.model in params.yaml"
    endpoint.served = (200, {"object": "list", "data": []})
    with pytest.raises(TeacherError, match="serves nothing, not 'teacher'"):
        engine()


@pytest.mark.parametrize("page", ["<html>please log in</html>", {"error": {"message": "busy"}}, [1, 2], "", None])
def test_something_else_than_a_chat_endpoint_is_named_as_such(endpoint: Endpoint, engine: Callable[..., ServerEngine], page: Any) -> None:
    endpoint.served = (200, page)
    with pytest.raises(TeacherError) as caught:
        engine()
    assert caught.value.where == endpoint.url
    endpoint.served = SERVED
    endpoint.answer = lambda *_: (200, page)
    with pytest.raises(TeacherError) as caught:
        engine(retries=0).generate([request("red fox")])
    assert caught.value.what.startswith("the endpoint does not speak the OpenAI protocol (")
    assert caught.value.remedy == "correct teacher.server.base_url in params.yaml (it usually ends with /v1)"


def test_a_wrong_path_is_a_typed_error(endpoint: Endpoint, engine: Callable[..., ServerEngine]) -> None:
    endpoint.served = (404, {"error": {"message": "no such path"}})
    with pytest.raises(TeacherError, match=r"the endpoint answers with an error .*no such path"):
        engine()


# -- the key ------------------------------------------------------------------------------------------------------------


def everything_told(error: BaseException) -> str:
    """What any handler may print of an error: itself and all that is chained to it."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__) + repr(error.__context__)


def test_the_key_is_sent(endpoint: Endpoint, engine: Callable[..., ServerEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRL_TEACHER_API_KEY", f" {KEY}\n")
    engine().generate([request("red fox")])
    monkeypatch.delenv("UDRL_TEACHER_API_KEY")
    monkeypatch.setenv("MY_KEY", "another")
    engine(api_key_env="MY_KEY").generate([request("red fox")])
    assert endpoint.keys == {f"Bearer {KEY}", "Bearer another"}


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_never_shown(
    endpoint: Endpoint, engine: Callable[..., ServerEngine], monkeypatch: pytest.MonkeyPatch, caplog, status: int
) -> None:
    monkeypatch.setenv("UDRL_TEACHER_API_KEY", KEY)
    echo = (status, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with caplog.at_level(logging.DEBUG):
        endpoint.answer = lambda *_: echo
        with pytest.raises(TeacherError) as in_generate:
            engine().generate([request("red fox")])
        endpoint.served = echo
        with pytest.raises(TeacherError) as in_start:
            engine()
    for caught in (in_generate, in_start):
        assert caught.value.what.startswith("the endpoint refuses the key (")
        assert "Incorrect API key provided: ***" in caught.value.what
        assert caught.value.remedy == "put a valid key into the environment variable UDRL_TEACHER_API_KEY"
        assert KEY not in everything_told(caught.value)
    assert KEY not in caplog.text


def test_a_key_that_is_echoed_in_a_refusal_is_never_shown(endpoint: Endpoint, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRL_TEACHER_API_KEY", KEY)
    endpoint.answer = lambda _, headers: (400, {"error": {"message": f"bad request with {headers['Authorization']}"}})
    (refusal,) = engine().generate([request("red fox")])
    assert isinstance(refusal, Refusal)
    assert "Bearer ***" in refusal.reason
    assert KEY not in refusal.reason


@pytest.mark.parametrize("key", ["sk secret", "sk-sécret", "sk-\nsecret"])
def test_a_key_that_cannot_be_one_is_not_sent_and_not_shown(
    engine: Callable[..., ServerEngine], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("UDRL_TEACHER_API_KEY", key)
    with pytest.raises(TeacherError) as caught:
        engine()
    assert caught.value.where == "environment variable UDRL_TEACHER_API_KEY"
    assert "cret" not in everything_told(caught.value)


def test_a_corpus_made_by_a_server_holds_its_rows_and_refusals_and_no_key(
    endpoint: Endpoint, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setenv("UDRL_TEACHER_API_KEY", KEY)

    def answer(body: dict[str, Any], headers: Message) -> Answer:
        if "search queries" in body["messages"][0]["content"]:
            return 400, {"error": {"message": f"no searches with {headers['Authorization']}"}}
        return 200, completion(f"a fine text about {asked(body).splitlines()[0]}")

    endpoint.answer = answer
    workspace = Workspace(load({"teacher.engine": "server", "teacher.server.base_url": endpoint.url, "intents.builtin": 3}))
    workspace.begin_run()
    asset.build(workspace)
    with caplog.at_level(logging.DEBUG):
        made = corpus.build(workspace)
    frame = corpus.read_rows(workspace, made.version)
    assert (made.rows, made.facts["refused"], set(frame.engine), set(frame.engine_version)) == (6, 3, {"server"}, {"teacher"})
    with workspace.database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM quarantine WHERE detail LIKE '%Bearer ***%'").fetchall() == [(3,)]
    stored = b"".join(path.read_bytes() for path in workspace.folder.rglob("*") if path.is_file())
    with workspace.database.reader() as connection:
        tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        stored += "".join(str(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in tables).encode()
    assert KEY.encode() not in stored
    assert KEY not in caplog.text
