"""The server as an ASGI application: its routes, and how each error is told."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from udrl_pipeline import __version__
from udrl_pipeline.serving import completions, page
from udrl_pipeline.serving.asking import Desk
from udrl_pipeline.serving.batching import Batcher, Written
from udrl_pipeline.serving.errors import ErrorBody, Refused, shutting_down
from udrl_pipeline.serving.guard import Guard, answer
from udrl_pipeline.serving.reload import Students
from udrl_pipeline.serving.schemas import (
    Asked,
    Completion,
    CompletionRequest,
    GenerateAnswer,
    GenerateRequest,
    ModelCard,
    ModelList,
    Status,
    StudentInfo,
    TaskInfo,
    Text,
)
from udrl_pipeline.serving.writing import StudentWriter
from udrl_pipeline.settings import Settings

DESCRIPTION = "Short ideas in, prompts out, by a student that obeys task, length and quality. Every error has the same shape."
#: Tells the documentation about the key; `Guard` asks for it.
KEY = [Security(HTTPBearer(auto_error=False, description="Only where the server was started with a key"))]


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the documentation says of the errors of a route."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


ASKING = _refusals(400, 401, 408, 413, 422, 429, 500, 503, 504)


class Serve:
    """A server's parts, and its ASGI application.

    Args:
        key: What clients must send; empty: nothing.
    """

    def __init__(self, settings: Settings, students: Students, key: str = "", writer: Any = None) -> None:
        self.settings, self.students, self.meters = settings, students, students.meters
        self.batcher = Batcher(settings.serve, writer or StudentWriter(settings), self.meters)
        self.desk = Desk(settings, students, self.batcher, self.meters)
        self.began = int(time.time())
        self.app = self._app(key)

    @property
    def idle(self) -> bool:
        return self.batcher.idle

    def drain(self) -> None:
        """Take nothing new in; what is there is still answered."""
        self.batcher.draining = True

    def abort(self) -> None:
        """Answer what is still there with the end of the server."""
        self.batcher.abort()

    @asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.batcher.run()), asyncio.create_task(self.students.watch(self.settings.serve.reload_s))]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _app(self, key: str) -> FastAPI:
        app = FastAPIOffline(title="udrl serve", version=__version__, description=DESCRIPTION, redoc_url=None, lifespan=self._life)
        options = self.settings.serve
        app.add_middleware(
            Guard,
            meters=self.meters,
            key=key,
            most_bytes=options.max_body_bytes,
            within_s=options.timeout_s,
            is_ending=lambda: self.batcher.draining,
        )
        app.add_exception_handler(Refused, lambda _, error: answer(error))
        app.add_exception_handler(RequestValidationError, _invalid)
        app.add_exception_handler(HTTPException, _plain)
        self._routes(app)
        return app

    def _routes(self, app: FastAPI) -> None:
        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def home() -> HTMLResponse:
            return HTMLResponse(page.TEXT, headers={"Content-Security-Policy": page.POLICY})

        @app.get("/health", tags=["state"])
        async def health() -> Status:
            """The process lives."""
            return Status()

        @app.get("/ready", responses=_refusals(503), tags=["state"])
        async def ready() -> Status:
            """A student can be asked, and the server is not about to end."""
            if self.batcher.draining:
                raise shutting_down()
            self.desk.serving()
            return Status()

        @app.get("/metrics", responses=_refusals(401), response_class=Response, dependencies=KEY, tags=["state"])
        async def metrics() -> Response:
            """For Prometheus."""
            return Response(generate_latest(self.meters.registry), media_type=CONTENT_TYPE_LATEST)

        @app.get("/student", responses=_refusals(401, 503), dependencies=KEY, tags=["native"])
        async def student() -> StudentInfo:
            """The student that answers now, and what it can be asked."""
            return self._info()

        @app.post("/generate", responses=ASKING, dependencies=KEY, tags=["native"])
        async def generate(asked: GenerateRequest, request: Request) -> GenerateAnswer:
            """Texts about an idea, and what each of them achieved."""
            asking = self.desk.understand([asked.idea], asked.task, asked.n, asked)
            texts = await self.desk.texts(asking, request)
            command, pressed = texts[0].command, texts[0].guidance
            return GenerateAnswer(
                task=command.task, idea=command.intent, recipe=asking.serving.recipe, version=asking.serving.version, seed=asking.seed,
                asked=Asked(length=command.words, quality=command.quality, guidance=pressed.quality, length_guidance=pressed.length,
                            idea_guidance=pressed.idea),
                texts=[_text(written) for written in texts], warnings=asking.warnings,
            )  # fmt: skip

        stream: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}

        @app.post(
            "/v1/completions", response_model=Completion, responses=ASKING | _refusals(404) | stream, dependencies=KEY, tags=["OpenAI"]
        )
        async def complete(asked: CompletionRequest, request: Request) -> Any:
            """As OpenAI's clients ask: the prompt is the idea."""
            return await completions.complete(self.desk, asked, request)

        @app.get("/v1/models", responses=_refusals(401, 503), dependencies=KEY, tags=["OpenAI"])
        async def models() -> ModelList:
            """The student, and once more for each of its tasks."""
            return completions.models(self.desk, self.began)

        @app.get("/v1/models/{model}", responses=_refusals(401, 404, 422, 503), dependencies=KEY, tags=["OpenAI"])
        async def model(model: str) -> ModelCard:
            """One of them."""
            return completions.model(self.desk, model, self.began)

    def _info(self) -> StudentInfo:
        serving, limits = self.desk.serving(), self.settings.serve
        space = serving.space
        names = sorted(space.tasks, key=lambda task: task != self.desk.default_task(space))
        return StudentInfo(
            recipe=serving.recipe, version=serving.version, engine=serving.engine, qualities=space.quality_bins, max_texts=limits.max_texts,
            idea_guidance=space.idea_guidance, max_words=limits.max_words, max_idea_words=self.settings.intents.max_words,
            scores=limits.scores,
            tasks=[TaskInfo(task=name, covered=space.covered[name], named=space.named_words[name], best=space.best.get(name),
                            guidance=space.guidance[name]) for name in names],
        )  # fmt: skip


def _text(written: Written) -> Text:
    return Text(text=written.text, words=written.words, tokens=written.tokens, finished=written.finished, reward=written.reward)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """A body or a path that the schema does not allow."""
    assert isinstance(error, RequestValidationError)
    fields: dict[str, list[str]] = {}
    for told in error.errors():
        field = (
            str(told["loc"][1]) if len(told["loc"]) > 1 and told["type"] != "json_invalid" else "body"
        )  # what follows names a type of a union
        fields.setdefault(field, []).append(told["msg"])
    (field, whys), *others = fields.items()
    more = f"; and so are {', '.join(name for name, _ in others)}" if others else ""
    return answer(Refused("invalid_request", " or ".join(whys) + more[:400], where=field[:100], remedy="/docs says what is allowed"))


async def _plain(_: Request, error: Exception) -> JSONResponse:
    """What the router or the parser of bodies says."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Refused):  # a body that was stopped on its way
        return answer(error.__cause__)
    if error.status_code == 404:
        refused = Refused("not_found", "there is nothing here", where="path", remedy="/docs tells what there is")
    elif error.status_code == 405:
        refused = Refused("method_not_allowed", "this method is not offered here", where="method", remedy="/docs tells what there is")
    else:
        refused = Refused("malformed", "the body cannot be read", where="body", remedy="send JSON in UTF-8")
    found = answer(refused)
    found.headers.update(error.headers or {})
    return found
