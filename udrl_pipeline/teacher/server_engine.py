"""Any OpenAI-compatible endpoint, such as `vllm serve`: bounded concurrency, time-outs, retries with backoff."""

import os
from concurrent.futures import ThreadPoolExecutor

from udrl_pipeline.errors import TeacherError
from udrl_pipeline.settings import ServerSettings
from udrl_pipeline.teacher import Refusal, Reply, Request


class ServerEngine:
    name = "server"

    def __init__(self, server: ServerSettings) -> None:
        import openai

        self._server = server
        # the client retries time-outs, lost connections, 408, 409, 429 and 5xx with exponential backoff
        self._client = openai.OpenAI(
            base_url=server.base_url,
            api_key=os.environ.get(server.api_key_env) or "none",
            timeout=server.timeout_s,
            max_retries=server.retries,
        )
        try:
            served = [model.id for model in self._client.models.list()]
        except openai.OpenAIError as error:
            raise self._unavailable(error) from error
        if server.model not in served:
            raise TeacherError(
                f"serves {', '.join(served) or 'nothing'}, not {server.model!r}", where=server.base_url, remedy="correct teacher.server.model in params.yaml"
            )
        self.version = server.model

    def generate(self, requests: list[Request]) -> list[Reply | Refusal]:
        with ThreadPoolExecutor(self._server.concurrency) as pool:
            futures = [pool.submit(self._one, request) for request in requests]
            try:
                return [future.result() for future in futures]
            except TeacherError:
                pool.shutdown(cancel_futures=True)
                raise

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
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Refusal(f"the endpoint refused the request: {error.message}")
        except openai.OpenAIError as error:
            raise self._unavailable(error) from error
        if not answer.choices:
            return Refusal("the endpoint answered without a choice")
        choice = answer.choices[0]
        tokens = answer.usage.completion_tokens if answer.usage else 0
        return Reply((choice.message.content or "").split("\n")[0].strip(), tokens, "stop" if choice.finish_reason == "stop" else "length")

    def _unavailable(self, error: Exception) -> TeacherError:
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            remedy = f"put a valid key into the environment variable {self._server.api_key_env}"
        else:
            remedy = "start it (for instance `vllm serve MODEL --served-model-name teacher`), or correct teacher.server in params.yaml"
        reason = error.__cause__ or error
        return TeacherError(f"the endpoint does not answer ({type(error).__name__}: {reason})", where=self._server.base_url, remedy=remedy)

    def close(self) -> None:
        self._client.close()
