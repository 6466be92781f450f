"""Any OpenAI-compatible endpoint, such as `vllm serve`: bounded concurrency, time-outs, retries with backoff."""

import os
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from udrl_pipeline import characters
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.settings import ServerSettings
from udrl_pipeline.teacher import Refusal, Reply, Request

#: What the client raises when an endpoint answers with something else than it expects, such as a proxy's HTML page.
UNREADABLE = (AttributeError, TypeError, ValueError)


class ServerEngine:
    name = "server"

    def __init__(self, server: ServerSettings) -> None:
        import openai

        self._server = server
        self._key = _key(server)
        # the client retries time-outs, lost connections, 408, 409, 429 and 5xx with exponential backoff
        self._client = openai.OpenAI(
            base_url=server.base_url,
            api_key=self._key or "none",
            timeout=server.timeout_s,
            max_retries=server.retries,
        )
        unavailable, served = None, list[str]()
        try:
            served = [str(model.id) for model in self._client.models.list()]
        except (openai.OpenAIError, *UNREADABLE) as error:
            unavailable = self._unavailable(error)
        if unavailable is not None:
            raise unavailable  # outside of the handler: the client's own error, which may hold the key, is not chained to it
        if server.model not in served:
            raise TeacherError(
                f"serves {', '.join(served) or 'nothing'}, not {server.model!r}",
                where=server.base_url,
                remedy="correct teacher.server.model in params.yaml",
            )
        self.version = server.model

    def generate(self, requests: list[Request]) -> list[Reply | Refusal]:
        """Ask for all of them. The threads are daemons: a run that is cancelled does not wait for answers that may take minutes."""
        waiting: SimpleQueue[tuple[int, Request]] = SimpleQueue()
        answered: SimpleQueue[tuple[int, Reply | Refusal | BaseException]] = SimpleQueue()
        for numbered in enumerate(requests):
            waiting.put(numbered)

        def work() -> None:
            with suppress(Empty):
                while True:
                    number, request = waiting.get_nowait()
                    try:
                        answered.put((number, self._one(request)))
                    except BaseException as error:
                        answered.put((number, error))

        for _ in range(min(self._server.concurrency, len(requests))):
            Thread(target=work, daemon=True).start()
        replies: dict[int, Reply | Refusal] = {}
        try:
            while len(replies) < len(requests):
                number, answer = answered.get()
                if isinstance(answer, BaseException):
                    raise answer
                replies[number] = answer
        finally:
            with suppress(Empty):  # what was not sent yet is not sent any more
                while True:
                    waiting.get_nowait()
        return [replies[number] for number in range(len(requests))]

    def _one(self, request: Request) -> Reply | Refusal:
        import openai

        extra = {"repetition_penalty": request.repetition_penalty} if self._server.repetition_penalty else {}
        try:
            answer = self._client.chat.completions.create(
                model=self._server.model,
                messages=request.messages,  # type: ignore[arg-type]
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                stop=["\n"],
                extra_body=extra,
            )
            return _reply(answer)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            reason = characters.printable(self._without_key(str(error.message)))  # whatever the endpoint likes to say
            return Refusal(f"the endpoint refused the request: {reason[:500]}")
        except (openai.OpenAIError, *UNREADABLE) as error:
            unavailable = self._unavailable(error)
        raise unavailable  # outside of the handler, as above

    def _unavailable(self, error: Exception) -> TeacherError:
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            what, remedy = "refuses the key", f"put a valid key into the environment variable {self._server.api_key_env}"
        elif isinstance(error, UNREADABLE):
            what, remedy = "does not speak the OpenAI protocol", "correct teacher.server.base_url in params.yaml (it usually ends with /v1)"
        else:
            what = "answers with an error" if isinstance(error, openai.APIStatusError) else "does not answer"
            remedy = "start it (for instance `vllm serve MODEL --served-model-name teacher`), or correct teacher.server in params.yaml"
        reason = self._without_key(f"{type(error).__name__}: {error.__cause__ or error}")
        return TeacherError(f"the endpoint {what} ({reason[:500]})", where=self._server.base_url, remedy=remedy)

    def _without_key(self, text: str) -> str:
        """A server may repeat the key in its message; nobody shall read it in a log, a table or a report."""
        return text.replace(self._key, "***") if self._key else text

    def close(self) -> None:
        self._client.close()


def _key(server: ServerSettings) -> str:
    key = os.environ.get(server.api_key_env, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise TeacherError(
            "holds a character that no key has", where=f"environment variable {server.api_key_env}", remedy="set it to the key alone"
        )
    return key


def _reply(answer: Any) -> Reply | Refusal:
    """The answer's first line. Raises one of `UNREADABLE` where it is no chat completion at all."""
    if answer.choices is None:
        raise TypeError(f"no choices in {answer!r}")
    if not answer.choices:
        return Refusal("the endpoint answered without a choice")
    choice = answer.choices[0]
    content = (choice.message.content or "").encode("utf-8", "replace").decode()  # JSON can escape half of a surrogate pair
    line, broken, _ = content.partition("\n")
    tokens = int(answer.usage.completion_tokens) if answer.usage else 0
    return Reply(line.strip(), tokens, "stop" if broken or choice.finish_reason == "stop" else "length")
