"""What the worker thread does: rows in, texts out, with the reward of each where that is wanted."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from udrl_pipeline.serving.batching import Knobs, Row, Written
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.best_of import Rewarder

if TYPE_CHECKING:
    from udrl_pipeline.student.generation import Generated


class StudentWriter:
    """Asks a student (`student.generation.Student`, or its drop-in) with the sampling of the settings."""

    def __init__(self, settings: Settings) -> None:
        sampling = settings.evaluation.sampling
        self._fixed = {name: sampling[name] for name in ("min_p", "repetition_penalty")}
        self._rewards = Rewarder(settings) if settings.serve.scores else None

    def write(self, student: Any, rows: Sequence[Row], knobs: Knobs) -> list[Written]:
        made = student.generate([row.command for row in rows], seed=[row.seed for row in rows], **self._options(knobs))
        return self._scored([_written(one) for one in made])

    def stream(self, student: Any, row: Row, knobs: Knobs) -> Generator[str | Written]:
        for piece in student.stream(row.command, seed=row.seed, **self._options(knobs)):
            yield piece if isinstance(piece, str) else self._scored([_written(piece)])[0]

    def _options(self, knobs: Knobs) -> dict[str, Any]:
        return self._fixed | {
            "temperature": knobs.temperature, "top_p": knobs.top_p, "guidance": knobs.guidance, "length_guidance": knobs.length_guidance,
            "idea_guidance": knobs.idea_guidance, "max_new_tokens": knobs.max_tokens,
        }  # fmt: skip

    def _scored(self, texts: list[Written]) -> list[Written]:
        if self._rewards is None:
            return texts
        rewards = self._rewards([text.command.intent for text in texts], [text.text for text in texts])
        return [replace(text, reward=reward) for text, reward in zip(texts, rewards, strict=True)]


def _written(made: "Generated") -> Written:
    return Written(made.command, made.guidance, made.text, made.words, made.tokens, made.finished)
