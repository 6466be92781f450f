"""The official client of OpenAI gets what it knows: completions, streams, models, and errors in its own shape."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest

from serving_fake import serving, talk
from udrl_pipeline.settings import Settings

Load = Callable[..., Settings]


def with_openai(settings: Settings, scenario: Callable[[openai.AsyncOpenAI], Awaitable[Any]], key: str = "") -> Any:
    serve, _ = serving(settings, key=key)

    return talk(serve, lambda client: scenario(openai_on(client)))


def openai_on(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://server/v1", api_key="s3cret", http_client=client, max_retries=0)


def test_openais_client_gets_completions(settings: Settings) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> openai.types.Completion:
        commands = {"length": 18, "quality": "best", "guidance": 2}
        return await client.completions.create(
            model="udrl:image",
            prompt=["red kite", "blue heron"],
            n=2,
            seed=3,
            temperature=0.5,
            top_p=0.9,
            max_tokens=50,
            extra_body=commands,
        )

    told = with_openai(settings, scenario, key="s3cret")
    texts = [f"{idea} as one 3.{n}" for idea in ("red kite", "blue heron") for n in range(2)]
    assert [(choice.index, choice.text, choice.finish_reason) for choice in told.choices] == [
        (n, text, "stop") for n, text in enumerate(texts)
    ]
    assert (told.object, told.model, told.system_fingerprint) == ("text_completion", "udrl:image", "v1")
    assert told.usage.model_dump(exclude_none=True) == {"prompt_tokens": 8, "completion_tokens": 36, "total_tokens": 44}
    assert told.id.startswith("cmpl-")


def test_openais_client_reads_a_stream(settings: Settings) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> list[list[Any]]:
        found = []
        for options in ({"n": 1, "echo": True}, {"n": 2}, {"stop": [" as"]}):
            stream = await client.completions.create(
                model="udrl", prompt="red kite", seed=3, stream=True, stream_options={"include_usage": True}, **options
            )
            found.append([event async for event in stream])
        return found

    alone, two, stopped = with_openai(settings, scenario)
    pieces = [choice.text for event in alone for choice in event.choices]
    assert pieces == ["red kite red", " kite", " as", " one", " 3.0", ""]
    assert [choice.finish_reason for event in alone for choice in event.choices] == [None] * 5 + ["stop"]
    assert [(c.index, c.text) for event in two for c in event.choices] == [(0, "red kite as one 3.0"), (1, "red kite as one 3.1")]
    assert [c.text for event in stopped for c in event.choices] == ["red kite"]
    assert [event.usage.completion_tokens for event in (alone[-1], two[-1])] == [9, 18]


def test_openais_client_lists_the_models(settings: Settings) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> list[str]:
        one = await client.models.retrieve("udrl:search")
        return [*[model.id async for model in client.models.list()], one.id]

    assert with_openai(settings, scenario) == ["udrl", "udrl:image", "udrl:search", "udrl:search"]


@pytest.mark.parametrize(
    ("options", "kind", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"model": "udrl:image", "extra_body": {"task": "search"}}, openai.UnprocessableEntityError, "task"),
        ({"logprobs": 2}, openai.UnprocessableEntityError, "logprobs"),
        ({"best_of": 2}, openai.UnprocessableEntityError, "best_of"),
        ({"presence_penalty": 0.5}, openai.UnprocessableEntityError, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, openai.UnprocessableEntityError, "logit_bias"),
        ({"suffix": "end"}, openai.UnprocessableEntityError, "suffix"),
        ({"temperature": 3}, openai.UnprocessableEntityError, "temperature"),
        ({"prompt": [1, 2]}, openai.UnprocessableEntityError, "prompt"),
        ({"prompt": []}, openai.UnprocessableEntityError, "prompt"),
        ({"n": 40}, openai.UnprocessableEntityError, "n"),
        ({"extra_body": {"top_k": 3}}, openai.UnprocessableEntityError, "top_k"),
    ],
)
def test_openais_client_is_told_what_is_not_offered(settings: Settings, options: dict[str, Any], kind: type[Any], param: str) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> Any:
        with pytest.raises(kind) as refused:
            await client.completions.create(**{"model": "udrl", "prompt": "red kite"} | options)
        return refused.value

    assert with_openai(settings, scenario).param == param


def test_neutral_values_of_what_is_not_offered_are_taken(settings: Settings) -> None:
    neutral = {
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "best_of": 1,
        "logit_bias": {},
        "suffix": "",
        "user": "me",
        "logprobs": None,
    }

    async def scenario(client: openai.AsyncOpenAI) -> Any:
        return await client.completions.create(model="udrl", prompt="red kite", seed=1, **neutral)

    assert with_openai(settings, scenario).choices[0].text == "red kite as one 1.0"


def test_an_error_in_a_stream_reaches_openais_client(load: Load) -> None:
    settings = load({"serve.timeout_s": 0.1})
    serve, student = serving(settings)
    student.gate.clear()

    async def scenario(client: httpx.AsyncClient) -> str:
        stream = await openai_on(client).completions.create(model="udrl", prompt="red kite", stream=True)
        with pytest.raises(openai.APIError) as refused:
            [event async for event in stream]
        student.gate.set()
        return str(refused.value.code)

    assert talk(serve, scenario) == "timeout"
