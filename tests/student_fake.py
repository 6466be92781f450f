"""Students that answer at once, and how they come into a store."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.decoding import Guidance
from udrl_pipeline.student.generation import Generated

SPACE = CommandSpace(
    tasks=("image", "search"),
    words=(6, 40),
    quality_bins=5,
    edges={"image": [0.1, 0.2, 0.3, 0.4], "search": [0.1, 0.2, 0.3, 0.4]},
    covered={"image": (6, 40), "search": (6, 20)},
    named_words={"image": {"short": 9, "medium": 18, "long": 28}, "search": {"short": 7, "medium": 11, "long": 16}},
    best={"image": 4, "search": 5},
    guidance={"image": 1.5, "search": 2.0},
)


def record_student(
    workspace: Workspace, version: str, asset: str = "student/udrl", write: Callable[[Path], None] = SPACE.save, **options: Any
) -> Version:
    """A version that is a student as far as its commands go."""
    return workspace.record(
        asset, version=version, fingerprint=version, code_version="c", rows=1, params={}, write=write,
        **{"parents": {}, "facts": {}} | options,
    )  # fmt: skip


class Echo:
    """A student that answers with its command; remembers how it was asked."""

    recipe = "udrl"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def generate(self, commands: Sequence[Command], **options: Any) -> list[Generated]:
        self.calls.append({"number": len(commands), **options})
        made = []
        for command in commands:
            clamped, warnings = SPACE.clamp(command)
            text = f"{clamped.intent} as asked"
            made.append(Generated(clamped, Guidance(), text, len(text.split()), 9, True, tuple(warnings)))
        return made


class Tokenizer:
    """A token a word."""

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * len(text.split()) for text in texts]}


class FakeStudent:
    """Writes `IDEA as NAME SEED.NUMBER`; remembers how it was asked.

    Attributes:
        gate: While it is not set, no text is written.
        fails_on: An idea with this word makes it raise.
    """

    recipe, tokenizer, space = "udrl", Tokenizer(), SPACE

    def __init__(self, name: str = "one") -> None:
        self.name, self.fails_on = name, "unheard"
        self.calls: list[list[str]] = []
        self.options: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def generate(self, commands: Sequence[Command], *, seed: int | Sequence[int], **options: Any) -> list[Generated]:
        self.calls.append([command.intent for command in commands])
        self.options.append(options)
        assert self.gate.wait(10)
        if any(self.fails_on in command.intent for command in commands):
            raise RuntimeError("the model has broken down")
        seeds = [seed] * len(commands) if isinstance(seed, int) else seed
        asked = list(zip(commands, seeds, strict=True))
        return [self._made(command, own, asked[:i].count((command, own)), options) for i, (command, own) in enumerate(asked)]

    def stream(self, command: Command, *, seed: int, **options: Any) -> Iterator[str | Generated]:
        (made,) = self.generate([command], seed=seed, **options)
        for n, word in enumerate(made.text.split()):
            yield word if n == 0 else f" {word}"
        yield made

    def _made(self, command: Command, seed: int, number: int, options: dict[str, Any]) -> Generated:
        text = f"{command.intent} as {self.name} {seed}.{number}"
        pressed = {"quality": options.get("guidance"), "length": options.get("length_guidance"), "idea": options.get("idea_guidance")}
        own = {"quality": SPACE.guidance[command.task], "length": 1.0, "idea": SPACE.idea_guidance}
        weights = {name: own[name] if weight is None else weight for name, weight in pressed.items()}
        return Generated(command, Guidance(**weights), text, len(text.split()), 9, True, ())
