"""OpenAI's `/v1/completions` and `/v1/models`, for clients that speak no other language."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from udrl_pipeline.characters import quoted
from udrl_pipeline.serving.asking import Asking, Desk
from udrl_pipeline.serving.batching import Written
from udrl_pipeline.serving.errors import Refused
from udrl_pipeline.serving.schemas import Choice, Completion, CompletionRequest, ModelCard, ModelList, TokenCount
from udrl_pipeline.student.sequences import encode_prompts

#: Between a student and one of its tasks in a model's name.
OF_TASK = ":"


def models(desk: Desk, began: int) -> ModelList:
    """The student under its recipe's name, and once more for each task, for clients that can choose nothing but a model."""
    serving = desk.serving()
    names = [serving.recipe, *(serving.recipe + OF_TASK + task for task in serving.space.tasks)]
    return ModelList(data=[ModelCard(id=name, created=began) for name in names])


def model(desk: Desk, name: str, began: int) -> ModelCard:
    return next((card for card in models(desk, began).data if card.id == name), None) or _unknown(desk, name)


def _unknown(desk: Desk, name: str) -> ModelCard:
    known = ", ".join(card.id for card in models(desk, 0).data)
    raise Refused("model_not_found", f"there is no model {quoted(name, 60)}", where="model", remedy=f"models: {known}")


@dataclass
class Answer:
    """The answer to one request, whole or in parts."""

    asked: CompletionRequest
    asking: Asking

    def __post_init__(self) -> None:
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._number = self.asked.n or 1
        self._stops = [self.asked.stop] if isinstance(self.asked.stop, str) else self.asked.stop or []

    def whole(self, texts: list[Written]) -> Completion:
        return self._completion([self._choice(index, text) for index, text in enumerate(texts)], self._usage(texts))

    def _completion(self, choices: list[Choice], usage: TokenCount | None = None) -> Completion:
        version = self.asking.serving.version
        return Completion(
            id=self._id, created=self._created, model=self.asked.model, choices=choices, usage=usage, system_fingerprint=version
        )

    def _choice(self, index: int, written: Written) -> Choice:
        text, stopped = cut(written.text, self._stops)
        return Choice(index=index, text=self._echo(index) + text, finish_reason="stop" if stopped or written.finished else "length")

    def _echo(self, index: int) -> str:
        return f"{self.asking.rows[index].command.intent} " if self.asked.echo else ""

    def _usage(self, texts: list[Written]) -> TokenCount:
        commands = [row.command for row in self.asking.rows[:: self._number]]
        student = self.asking.serving.student
        prompt = sum(map(len, encode_prompts(student.tokenizer, student.space, commands)))
        written = sum(text.tokens for text in texts)
        return TokenCount(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)

    # -- in parts -------------------------------------------------------------------------------------------------------------

    def stream(self, desk: Desk) -> StreamingResponse:
        """The texts as server-sent events. A single text comes piece by piece while nobody else waits, any other whole.

        Raises:
            Refused: The queue is full.
        """
        pieces: asyncio.Queue[str] = asyncio.Queue()
        in_pieces = len(self.asking.rows) == 1 and not self._stops
        job = desk.submit(self.asking, pieces.put_nowait if in_pieces else None)
        until = time.monotonic() + desk.timeout_s

        async def events() -> AsyncIterator[Completion | Refused]:
            told = ""
            while not job.answer.done() or not pieces.empty():
                coming = asyncio.ensure_future(pieces.get())
                either: set[asyncio.Future[Any]] = {coming, job.answer}
                done, _ = await asyncio.wait(either, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
                if coming in done:
                    piece = coming.result()
                    yield self._completion([Choice(index=0, text=("" if told else self._echo(0)) + piece, finish_reason=None)])
                    told += piece
                coming.cancel()
                if not done:
                    yield desk.timeout()
                    return
            try:
                texts = job.answer.result()
            except Refused as refused:
                yield refused
                return
            for index, written in enumerate(texts):
                choice = self._choice(index, written)
                rest = choice.text.removeprefix(self._echo(0) + told) if told else choice.text
                yield self._completion([choice.model_copy(update={"text": rest})])
            if self.asked.stream_options and self.asked.stream_options.include_usage:
                yield self._completion([], self._usage(texts))

        async def lines() -> AsyncIterator[str]:
            try:
                async with aclosing(events()) as found:  # type: ignore[type-var]
                    async for event in found:
                        told = event.body() if isinstance(event, Refused) else event.model_dump(mode="json")
                        yield f"data: {json.dumps(told)}\n\n"
                yield "data: [DONE]\n\n"
            finally:
                desk.batcher.cancel(job)

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """A text up to the first of these, and whether one stands in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


async def complete(desk: Desk, asked: CompletionRequest, request: Request) -> Completion | StreamingResponse:
    """Answer a request.

    Raises:
        Refused: There is no such model, or it cannot be asked this, or not now.
    """
    serving = desk.serving()
    recipe, _, task = asked.model.partition(OF_TASK)
    if recipe != serving.recipe or (task and task not in serving.space.tasks):
        _unknown(desk, asked.model)
    if task and asked.task not in (None, task):
        what = f"the model's name says {task}, the field says {quoted(asked.task, 40)}"
        raise Refused("invalid_request", what, where="task", remedy="say it once")
    ideas = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    asking = desk.understand(ideas, task or asked.task, asked.n or 1, asked, asked.max_tokens)
    answer = Answer(asked, asking)
    if asked.stream:
        return answer.stream(desk)
    return answer.whole(await desk.texts(asking, request))
