"""The idea of upside-down RL: what a row achieved becomes the command that asks for it.

A row is rendered as `task, intent, length, quality -> text`: the commands stand just before the answer (which beat the front
in thejaminator/prompt_reward_rl), and task + intent stay a shared prefix of many commands.

    <|task:image|> lighthouse in a storm<|words:18|><|quality:5|><|text|> A lone lighthouse ...<end of text>

Length is commanded in words, because a word means the same for every tokenizer; one token per word count, unless params.yaml
says otherwise. Quality is the quantile bin of the reward within the task. A command that is not given, or dropped out while
training, is the token `any`, so that one model also answers uncommanded and guidance has its unconditional side. Token names,
order and bins are this project's choice; those of arXiv 2502.09854 are not public.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from udrl_pipeline.errors import StudentError
from udrl_pipeline.settings import CommandSettings

TEXT = "<|text|>"
FILE = "commands.json"
#: A length counts as covered if so many training rows of the task have it or one at most two words away; of a small dataset a
#: twentieth is enough.
COVERED_ROWS, COVERED_WITHIN, COVERED_SHARE = 16, 2, 0.05
#: What the named lengths mean: quantiles of the task's training lengths.
NAMED_LENGTHS = {"short": 0.15, "medium": 0.5, "long": 0.85}


@dataclass(frozen=True, slots=True)
class Command:
    """What is asked of a student: a task and an intent (empty: any); optionally a length (words) and a quality (1 to K)."""

    task: str
    intent: str
    words: int | None = None
    quality: int | None = None


@dataclass(frozen=True)
class CommandSpace:
    """What a student can be asked for; travels with its weights as commands.json."""

    tasks: tuple[str, ...]
    words: tuple[int, int]
    quality_bins: int
    #: inner reward edges of the quality bins, per task
    edges: dict[str, list[float]]
    #: shortest and longest length that the training rows cover, per task (words)
    covered: dict[str, tuple[int, int]]
    #: what `short`, `medium` and `long` mean, per task (words)
    named_words: dict[str, dict[str, int]]
    #: what `--quality best` means, per task; chosen on the validation split. Empty if the student was trained without commands
    best: dict[str, int]
    #: how hard the quality command is pressed while decoding, per task; chosen with `best`, 1 where nothing was chosen
    guidance: dict[str, float]
    #: neighbouring lengths that share a token, and whether length and quality stand `last` or `first` (settings.py)
    words_per_token: int = 1
    order: str = "last"
    #: how hard the idea is pressed while decoding; of a student that does not say: as it was trained
    idea_guidance: float = 1.0

    @classmethod
    def measure(cls, train: pd.DataFrame, edges: dict[str, list[float]], settings: CommandSettings) -> "CommandSpace":
        """The command space of training rows (columns task, words). `best` starts as the highest quality."""
        covered, named = {}, {}
        for task, rows in train.groupby("task"):
            needed = max(2, min(COVERED_ROWS, COVERED_SHARE * len(rows)))
            near = {n: (rows.words - n).abs().le(COVERED_WITHIN).sum() for n in range(settings.words[0], settings.words[1] + 1)}
            inside = [n for n, count in near.items() if count >= needed] or [int(rows.words.median())]
            covered[str(task)] = (min(inside), max(inside))
            named[str(task)] = {n: min(max(int(rows.words.quantile(q)), min(inside)), max(inside)) for n, q in NAMED_LENGTHS.items()}
        tasks = tuple(sorted(covered))
        bins = settings.quality_bins
        return cls(
            tasks, settings.words, bins, {t: edges[t] for t in tasks}, covered, named, dict.fromkeys(tasks, bins),
            dict.fromkeys(tasks, 1.0), settings.words_per_token, settings.order,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path) -> "CommandSpace":
        """Read a student's commands.json.

        Raises:
            StudentError: The folder holds none, or a broken one.
        """
        try:
            values = json.loads((folder / FILE).read_text(encoding="utf-8"))
            values |= {"tasks": tuple(values["tasks"]), "words": tuple(values["words"])}
            values["covered"] = {task: tuple(ends) for task, ends in values["covered"].items()}
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudentError(
                f"is no student: {FILE} cannot be read ({error})", where=str(folder), remedy="train one: `udrl run`"
            ) from error

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def with_best(self, best: dict[str, int], guidance: dict[str, float]) -> "CommandSpace":
        return replace(self, best=best, guidance=guidance)

    def control_tokens(self) -> list[str]:
        """Every control token, in a fixed order."""
        return [
            *(f"<|task:{task}|>" for task in self.tasks),
            *(self._words_token(n) for n in (None, *range(self.words[0], self.words[1] + 1, self.words_per_token))),
            *(_quality_token(q) for q in (None, *range(1, self.quality_bins + 1))),
            TEXT,
        ]

    def render(self, command: Command) -> str:
        """The prompt that a student continues."""
        asked = self._words_token(command.words) + _quality_token(command.quality)
        idea = f"<|task:{command.task}|>" + spaced(command.intent)
        return (idea + asked if self.order == "last" else asked + idea) + TEXT

    def _words_token(self, words: int | None) -> str:
        if words is not None:
            words -= (words - self.words[0]) % self.words_per_token
        return f"<|words:{'any' if words is None else words}|>"

    def clamp(self, command: Command) -> tuple[Command, list[str]]:
        """The nearest command that the training rows cover, and a warning for each thing that had to change.

        Raises:
            StudentError: The task is not one of the student's.
        """
        if command.task not in self.tasks:
            raise StudentError(f"unknown task {command.task!r}", where="--task", remedy=f"this student's tasks: {', '.join(self.tasks)}")
        warnings = []
        if command.words is not None:
            low, high = self.covered[command.task]
            words = min(max(command.words, low), high)
            if words != command.words:
                warnings.append(
                    f"length {command.words} is outside what the {command.task} rows cover ({low} to {high} words): {words} is used"
                )
                command = replace(command, words=words)
        if command.quality is not None:
            quality = min(max(command.quality, 1), self.quality_bins)
            if quality != command.quality:
                warnings.append(f"quality {command.quality} is outside 1 to {self.quality_bins}: {quality} is used")
                command = replace(command, quality=quality)
        return command, warnings


def _quality_token(quality: int | None) -> str:
    return f"<|quality:{'any' if quality is None else quality}|>"


def spaced(intent: str) -> str:
    """An intent as it stands in a prompt; nothing of an empty one."""
    return f" {intent}" if intent else ""


def render_answer(text: str) -> str:
    """What follows the prompt, without the end-of-text token."""
    return f" {text}"


def achieved(rows: pd.DataFrame, space: CommandSpace) -> Iterable[Command]:
    """Each training row's command: exactly what the row achieved. A length without a token of its own is `any`."""
    low, high = space.words
    for task, intent, words, quality in zip(rows.task, rows.intent, rows.words, rows.quality, strict=True):
        yield Command(task, intent, int(words) if low <= words <= high else None, int(quality))
