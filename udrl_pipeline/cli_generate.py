"""`udrl generate`: ideas from the command line or a file -> commands -> texts, as lines for people or as JSON lines."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from udrl_pipeline.characters import printable, quoted, to_json
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import IntentsError, StudentError, UdrlError
from udrl_pipeline.intents import Candidate, clean, problem
from udrl_pipeline.intents.readers import read_source
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.database import translate
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.recipes import RECIPES

if TYPE_CHECKING:
    from udrl_pipeline.student.generation import Generated, Student

#: Texts asked for at a time; each lot is written before the next begins.
LOT = 256


@dataclass(frozen=True, slots=True)
class Ask:
    """What was typed."""

    ideas: tuple[str, ...]
    source: Path | None
    output: Path | None
    task: str | None
    length: str | None
    quality: str
    guidance: float | None
    length_guidance: float
    number: int
    recipe: str
    student: Path | None
    temperature: float | None
    seed: int | None
    as_json: bool


def generate_texts(ask: Ask, settings: Settings) -> None:
    """Write `ask.number` texts for every usable idea; what is not usable, and what was clamped, goes to stderr.

    Raises:
        IntentsError: No idea is usable, or one that was typed is not.
        StudentError: There is no such student, or it cannot be asked this.
    """
    folder = ask.student or student_folder(ask.recipe, settings)
    commands = [command for command in to_commands(ask, CommandSpace.load(folder), settings) for _ in range(ask.number)]
    from udrl_pipeline.student.generation import Student

    student = Student.load(folder)
    warned: set[str] = set()
    with _lines_to(ask.output) as lines:
        show = _JsonLines(lines, student.recipe) if ask.as_json or ask.output else _PlainLines(lines)
        for made in _texts(student, commands, ask, settings):
            for warning in set(made.warnings) - warned:
                click.echo(f"warning  {warning}", err=True)
            warned.update(made.warnings)
            show(made)
    if ask.output:
        click.echo(f"{len(commands):,} texts in {ask.output}", err=True)


def _texts(student: "Student", commands: list[Command], ask: Ask, settings: Settings) -> "Iterator[Generated]":
    given = {"temperature": ask.temperature, "seed": ask.seed}
    sampling = settings.evaluation.sampling | {name: value for name, value in given.items() if value is not None}
    seed = sampling.pop("seed")
    for start in range(0, len(commands), LOT):
        yield from student.generate(
            commands[start : start + LOT],
            **sampling,
            seed=seed + start,
            guidance=ask.guidance,
            length_guidance=ask.length_guidance,
        )


@dataclass
class _JsonLines:
    """One JSON object a text, with what was really commanded."""

    file: TextIO
    recipe: str

    def __call__(self, made: "Generated") -> None:
        asked = made.command
        record = {
            "intent": asked.intent, "task": asked.task, "recipe": self.recipe, "length": asked.words, "quality": asked.quality,
            "guidance": made.guidance, "text": made.text, "words": made.words,
        }  # fmt: skip
        print(to_json(record), file=self.file, flush=True)


@dataclass
class _PlainLines:
    """One line a text; what was commanded stands above them, on stderr."""

    file: TextIO
    header: str = ""

    def __call__(self, made: "Generated") -> None:
        asked = made.command
        parts = [
            asked.task,
            asked.words and f"{asked.words} words",
            asked.quality and f"quality {asked.quality}",
            made.guidance != 1 and f"guidance {made.guidance:g}",
        ]
        header = f"{asked.intent} ({', '.join(str(part) for part in parts if part)})"
        if header != self.header:
            click.secho(printable(header), dim=True, err=True)
            self.header = header
        print(printable(made.text), file=self.file, flush=True)


def student_folder(recipe: str, settings: Settings) -> Path:
    """The folder of the student of a recipe that is in use (the newest where none was ever promoted), its files checked.

    Raises:
        StudentError: There is none yet, its files are gone, or there is no such recipe.
        CorruptArtifact: Its files are not what its manifest says.
    """
    if recipe not in RECIPES:
        raise StudentError(f"unknown recipe {recipe!r}", where="--recipe", remedy=f"recipes: {', '.join(RECIPES)}")
    from udrl_pipeline.student.channel import promoted

    workspace = Workspace(settings)
    newest = workspace.current(f"student/{recipe}")
    chosen = promoted(workspace, f"student/{recipe}") or newest
    if chosen is None:
        raise StudentError(
            f"there is no student of recipe {recipe} yet", where=str(workspace.folder), remedy=f"run `udrl run --select student/{recipe}`"
        )
    if not workspace.is_there(chosen.asset, chosen.version) and newest and newest.version != chosen.version:
        raise StudentError(
            f"the files of {chosen.asset} {chosen.version}, which is in use, are gone",
            where=str(workspace.folder),
            remedy=f"`udrl students promote {newest.version} --reason ...` puts the newest one into use",
        )
    workspace.check_files(chosen.asset, chosen.version)
    if newest and newest.version != chosen.version:
        told = f"{chosen.asset} {chosen.version} is in use; {newest.version} is newer, see `udrl students list`"
        click.secho(told, dim=True, err=True)
    return workspace.version_folder(chosen.asset, chosen.version)


def to_commands(ask: Ask, space: CommandSpace, settings: Settings) -> list[Command]:
    """One command per usable idea; lines of a file that are not usable are told to stderr with their place."""
    default = ask.task or next((name for name in settings.tasks.names if name in space.tasks), space.tasks[0])
    _known_task(default, space)
    commands = []
    for idea in ask.ideas:
        if reason := problem(idea, settings.intents.max_words):
            raise IntentsError(f"{quoted(idea)} is no usable idea: {reason}", where="IDEA", remedy="say it in a few plain words")
        commands.append(_command(clean(idea), default, ask, space))
    candidates = read_source(ask.source, Path.cwd()) if ask.source else []
    unused = 0
    for candidate in candidates:
        if reason := _reason(candidate, space, settings):
            click.echo(f"not used  {candidate.where}: {reason}", err=True)
            unused += 1
        else:
            commands.append(_command(clean(str(candidate.text)), str(candidate.task or default), ask, space))
    if unused:
        click.echo(f"{unused:,} of {len(candidates):,} lines of {printable(str(ask.source))} were not used", err=True)
    if not commands:
        where, remedy = (str(ask.source), "see above") if ask.source else ("udrl generate", 'udrl generate "lighthouse in a storm"')
        raise IntentsError("there is no usable idea", where=where, remedy=remedy)
    return commands


def _known_task(task: str, space: CommandSpace) -> None:
    if task not in space.tasks:
        raise StudentError(f"unknown task {task!r}", where="--task", remedy=f"this student's tasks: {', '.join(space.tasks)}")


def _reason(candidate: Candidate, space: CommandSpace, settings: Settings) -> str | None:
    reason = candidate.fault or problem(candidate.text, settings.intents.max_words)
    if not reason and candidate.task and candidate.task not in space.tasks:
        return f"unknown task {quoted(candidate.task, 60)} (this student's tasks: {', '.join(space.tasks)})"
    return reason


def _command(intent: str, task: str, ask: Ask, space: CommandSpace) -> Command:
    return Command(task, intent, _words(ask.length, task, space), _quality(ask.quality, task, space))


def _words(length: str | None, task: str, space: CommandSpace) -> int | None:
    if length is None or length == "any":
        return None
    if length in space.named_words[task]:
        return space.named_words[task][length]
    return _positive(length, "--length", f"give a number of words, or one of {', '.join(space.named_words[task])}, any")


def _quality(quality: str, task: str, space: CommandSpace) -> int | None:
    if quality == "any":
        return None
    if quality == "best":
        return space.best.get(task)
    return _positive(quality, "--quality", f"give a number from 1 to {space.quality_bins}, best or any")


def _positive(text: str, where: str, remedy: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise StudentError(f"{text!r} is not understood", where=where, remedy=remedy)
    return int(text)


@contextmanager
def _lines_to(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        translated = translate(error, output)
        if isinstance(translated, UdrlError):
            raise translated from error
        raise UdrlError(f"cannot be written: {error.strerror}", where=str(output), remedy="name another --output") from error
