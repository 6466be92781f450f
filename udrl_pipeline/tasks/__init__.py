"""Tasks: one YAML file each, with what the teacher is told and shown. A user adds a task by adding a file."""

import itertools
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from udrl_pipeline.errors import TaskError
from udrl_pipeline.settings import Settings, TaskName
from udrl_pipeline.versioning import content_hash, unit_draw
from udrl_pipeline.yaml_text import parse_yaml

#: From how many example pairs, the nearest in length to what is asked, those of one row are drawn.
NEAREST = 6


class Example(BaseModel):
    """An example pair: an intent and the text that a good teacher writes for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    intent: Annotated[str, Field(min_length=1)]
    text: Annotated[str, Field(min_length=1)]

    @cached_property
    def words(self) -> int:
        return len(self.text.split())


class Task(BaseModel):
    """What the teacher is told for one kind of prompt writing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: Annotated[TaskName, Field(description="Name; also the student's task token")]
    label: Annotated[str, Field(min_length=1, description="Name for people; not part of the template hash")]
    system: Annotated[str, Field(min_length=1, description="The system prompt")]
    request: Annotated[str, Field(description="The user's turn: {intent} once, {words} if it names a length")]
    examples: Annotated[tuple[Example, ...], Field(min_length=6, description="The bank of example pairs")]

    @field_validator("request")
    @classmethod
    def _has_the_slot(cls, request: str) -> str:
        if request.count("{intent}") != 1:
            raise ValueError("must hold the slot {intent} exactly once")
        return request

    @cached_property
    def template_hash(self) -> str:
        """What a row's identity depends on: everything but the label."""
        return content_hash(self.model_dump(exclude={"label"}))

    def asked_words(self, lengths: tuple[int, ...], intent: str, sample: int) -> int:
        """The length asked of the teacher for a row, drawn by the row's own intent, task and sample index (words)."""
        return lengths[int(unit_draw("length", self.task, intent, sample) * len(lengths))]

    def drawn_examples(self, asked: int, count: int, intent: str, sample: int) -> list[Example]:
        """`count` of the example pairs nearest in length to `asked` words, in the order of the bank."""
        nearest = sorted(range(len(self.examples)), key=lambda i: (abs(self.examples[i].words - asked), i))[: max(NEAREST, count)]
        choices = list(itertools.combinations(sorted(nearest), min(count, len(nearest))))
        drawn = choices[int(unit_draw("examples", self.task, intent, sample) * len(choices))]
        return [self.examples[i] for i in drawn]

    def messages(self, intent: str, asked: int, examples: list[Example]) -> list[dict[str, str]]:
        """The chat that asks for one row: the shared part first, so that engines can cache it."""
        turns = [{"role": "system", "content": self.system}]
        for example in examples:
            turns += [self._ask(example.intent, example.words), {"role": "assistant", "content": example.text}]
        return [*turns, self._ask(intent, asked)]

    def _ask(self, intent: str, words: int) -> dict[str, str]:
        return {"role": "user", "content": self.request.replace("{words}", str(words)).replace("{intent}", intent)}


def load_tasks(settings: Settings) -> dict[str, Task]:
    """The tasks named in params.yaml, from the user's folder first and from the package second.

    Raises:
        TaskError: A file is missing, unreadable, or lacks something; the message names the file and the key.
    """
    return {name: _load_task(name, settings) for name in settings.tasks.names}


def _load_task(name: str, settings: Settings) -> Task:
    own = settings.path(settings.tasks.folder) if settings.tasks.folder else None
    if own is not None and not own.is_dir():
        raise TaskError("no such folder", where=str(own), remedy="correct tasks.folder in params.yaml")
    candidates = [own / f"{name}.yaml"] if own else []
    candidates.append(Path(str(files("udrl_pipeline.tasks") / f"{name}.yaml")))
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise TaskError(
            f"no task file {name}.yaml", where="params.yaml: tasks.names", remedy=f"looked in {[str(c.parent) for c in candidates]}"
        )
    return _parse(file, name)


def _parse(file: Path, name: str) -> Task:
    try:
        values: Any = parse_yaml(file.read_text(encoding="utf-8"))
        task = Task.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaskError(f"cannot be read: {error}", where=str(file), remedy="make it valid YAML in UTF-8") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or '(top level)'}: {p['msg'].removeprefix('Value error, ')}" for p in error.errors()
        )
        raise TaskError(problems, where=str(file), remedy="compare it with udrl_pipeline/tasks/image.yaml") from None
    if task.task != name:
        raise TaskError(f"calls itself {task.task!r}", where=str(file), remedy=f"write `task: {name}` or rename the file")
    return task
