"""The teacher: one small protocol, three engines. Which engine ran is recorded with a row, but is no part of its identity."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

from udrl_pipeline.errors import TeacherError
from udrl_pipeline.settings import ModelRef, ServerSettings, Settings


@dataclass(frozen=True, slots=True)
class Request:
    """One chat to answer, and how to sample."""

    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: the text up to its first line break, its tokens, and why it ended (`stop` or `length`)."""

    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an engine could not answer one request, while it can answer others."""

    reason: str
    kind: str = "teacher refused"


def refused_if_forged(tokenizer: Any, messages: list[dict[str, str]]) -> Refusal | None:
    """A refusal where a turn's own words hold a control token of this very tokenizer, which could end the turn and begin another."""
    tokens = sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    found = next((token for token in tokens for turn in messages if token in turn["content"]), None)
    return Refusal(f"the request holds {found}, a control token of this teacher") if found else None


class Engine(Protocol):
    name: str
    version: str

    def generate(self, requests: list[Request]) -> list[Reply | Refusal]:
        """One answer per request, in order. Raises TeacherError if the engine itself fails."""

    def close(self) -> None:
        """End the engine and every process it started."""


def engine_name(asked: str) -> str:
    """What `auto` means here: vllm where it is installed, else transformers."""
    if asked != "auto":
        return asked
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


def open_engine(
    settings: Settings, model: ModelRef | None = None, engine: str | None = None, server: ServerSettings | None = None
) -> Engine:
    """Start an engine (default: the teacher's of params.yaml).

    Raises:
        ModelError: The model reference is wrong.
        TeacherError: The engine is not installed or does not start.
    """
    from udrl_pipeline.models import resolve

    model, name = model or settings.teacher.model, engine_name(engine or settings.teacher.engine)
    if name == "server":
        from udrl_pipeline.teacher.server_engine import ServerEngine

        return ServerEngine(server or settings.teacher.server)
    folder = resolve(model, settings).folder
    if name == "vllm":
        if not importlib.util.find_spec("vllm"):
            raise TeacherError(
                "vllm is not installed", where="params.yaml: teacher.engine", remedy="run `make vllm`, or set engine: transformers"
            )
        from udrl_pipeline.teacher.vllm_engine import VllmEngine

        return VllmEngine(folder, settings.teacher)
    from udrl_pipeline.teacher.transformers_engine import TransformersEngine

    return TransformersEngine(folder, settings.teacher)
