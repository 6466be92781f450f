"""`udrl generate`: ideas from the command line or a file -> commands -> texts, as lines for people, as JSON lines, or as a table."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from udrl_pipeline import cli_batch
from udrl_pipeline.characters import printable, quoted, to_json
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import IntentsError, StudentError
from udrl_pipeline.intents import Candidate, SetAside, clean, problem
from udrl_pipeline.intents.readers import read_source
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.best_of import BestOf
from udrl_pipeline.student.engines import DESCRIPTION, Engine, engine_folder, load_student
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.versioning import content_hash, files_sha256

if TYPE_CHECKING:
    from udrl_pipeline.student.generation import Generated, Student

#: Texts asked for at a time; each lot is written before the next begins.
LOT = 256
#: Rows that were not used and are named one by one; the file beside the output names all.
TOLD = 20


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
    idea_guidance: float | None
    number: int
    best_of: int
    recipe: str
    student: Path | None
    engine: Engine
    temperature: float | None
    seed: int | None
    as_json: bool
    stream: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """A command, and the place that its idea came from; empty where it was typed."""

    command: Command
    row: str


def generate_texts(ask: Ask, settings: Settings) -> None:
    """Write `ask.number` texts for every usable idea; what is not usable, and what was clamped, goes to stderr.

    Raises:
        IntentsError: No idea is usable, or one that was typed is not.
        StudentError: There is no such student, or it cannot be asked this.
        UdrlError: The output cannot be written.
    """
    folder = chosen_folder(ask, settings)
    if ask.output:
        cli_batch.table_writer(ask.output)  # that its ending is wrong is told before any text is written
    found, unused = wanted_commands(ask, CommandSpace.load(folder), settings)
    _tell_unused(ask, len(found) + len(unused), unused)
    if not found:
        where, remedy = (str(ask.source), "see above") if ask.source else ("udrl generate", 'udrl generate "lighthouse in a storm"')
        raise IntentsError("there is no usable idea", where=where, remedy=remedy)
    wanted = [one for one in found for _ in range(ask.number)]
    if ask.stream:
        _stream(load_student(folder), wanted, ask, settings)
    elif ask.output:
        _write_table(ask.output, folder, wanted, ask, settings)
    else:
        _show(_student(folder, ask, settings), wanted, ask, settings)


def _student(folder: Path, ask: Ask, settings: Settings) -> "Student | BestOf":
    return BestOf(load_student(folder), ask.best_of, settings) if ask.best_of > 1 else load_student(folder)


def _show(student: "Student | BestOf", wanted: list[Wanted], ask: Ask, settings: Settings) -> None:
    show = _JsonLines(sys.stdout, student.recipe) if ask.as_json else _PlainLines(sys.stdout)
    told: set[str] = set()
    for lot in _texts(student, wanted, ask, settings):
        for made in lot:
            _warn(made, told)
            show(made)


def _write_table(output: Path, folder: Path, wanted: list[Wanted], ask: Ask, settings: Settings) -> None:
    told: set[str] = set()

    def lots(done: int) -> Iterator[list[cli_batch.Record]]:
        student = _student(folder, ask, settings)
        rows = iter(wanted[done:])
        for lot in _texts(student, wanted, ask, settings, done):
            for made in lot:
                _warn(made, told)
            yield [{"row": next(rows).row, **_record(made, student.recipe)} for made in lot]

    options = {name: value for name, value in asdict(ask).items() if name not in ("source", "output", "student", "as_json")}
    question = content_hash(
        [options, settings.evaluation.sampling, files_sha256(folder), [[one.row, asdict(one.command)] for one in wanted]]
    )
    cli_batch.write_texts(output, question, len(wanted), LOT, lots)
    click.echo(f"{len(wanted):,} texts in {output}", err=True)


def _stream(student: "Student", wanted: list[Wanted], ask: Ask, settings: Settings) -> None:
    if len(wanted) > 1 or ask.best_of > 1 or ask.output or ask.as_json:
        remedy = "give one idea, and neither -n, --best-of, --to nor --json"
        raise StudentError("shows one text, as it comes", where="--stream", remedy=remedy)
    sampling, seed = _sampling(ask, settings)
    pieces = student.stream(wanted[0].command, **sampling, seed=seed, **_guidance(ask))
    for piece in pieces:
        if isinstance(piece, str):
            click.echo(printable(piece), nl=False)
            sys.stdout.flush()
        else:
            click.echo()
            _warn(piece, set())


def _warn(made: "Generated", told: set[str]) -> None:
    for warning in set(made.warnings) - told:
        click.echo(f"warning  {warning}", err=True)
    told.update(made.warnings)


def _sampling(ask: Ask, settings: Settings) -> tuple[dict[str, Any], int]:
    given = {"temperature": ask.temperature, "seed": ask.seed}
    sampling = settings.evaluation.sampling | {name: value for name, value in given.items() if value is not None}
    return sampling, sampling.pop("seed")


def _guidance(ask: Ask) -> dict[str, Any]:
    return {"guidance": ask.guidance, "length_guidance": ask.length_guidance, "idea_guidance": ask.idea_guidance}


def _texts(student: "Student | BestOf", wanted: list[Wanted], ask: Ask, settings: Settings, done: int = 0) -> "Iterator[list[Generated]]":
    """The texts behind the first `done` ones, lot by lot; each lot has random numbers of its own."""
    sampling, seed = _sampling(ask, settings)
    for start in range(done, len(wanted), LOT):
        yield student.generate(
            [one.command for one in wanted[start : start + LOT]],
            **sampling,
            seed=seed + start,
            **_guidance(ask),
        )


def _record(made: "Generated", recipe: str) -> cli_batch.Record:
    asked = made.command
    return {
        "intent": asked.intent, "task": asked.task, "recipe": recipe, "length": asked.words, "quality": asked.quality,
        "guidance": made.guidance.quality, "length_guidance": made.guidance.length, "idea_guidance": made.guidance.idea,
        "text": made.text, "words": made.words,
    }  # fmt: skip


@dataclass
class _JsonLines:
    """One JSON object a text, with what was really commanded."""

    file: TextIO
    recipe: str

    def __call__(self, made: "Generated") -> None:
        print(to_json(_record(made, self.recipe)), file=self.file, flush=True)


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
            made.guidance.quality != 1 and f"guidance {made.guidance.quality:g}",
        ]
        header = f"{asked.intent} ({', '.join(str(part) for part in parts if part)})"
        if header != self.header:
            click.secho(printable(header), dim=True, err=True)
            self.header = header
        print(printable(made.text), file=self.file, flush=True)


def chosen_folder(ask: Ask, settings: Settings) -> Path:
    """The folder of the student that is asked, or of its export.

    Raises:
        StudentError: There is none, or it is not of the engine that is asked for.
    """
    if ask.student is None:
        return student_folder(ask.recipe, settings, ask.engine)
    if ask.engine != "auto" and (ask.student / DESCRIPTION).exists() != (ask.engine == "export"):
        raise StudentError(f"is no folder for --engine {ask.engine}", where=str(ask.student), remedy="leave --engine out")
    return ask.student


def student_folder(recipe: str, settings: Settings, engine: Engine = "auto") -> Path:
    """The folder of the student of a recipe that is in use (the newest where none was ever promoted), or of its export where the
    engine is that and there is one; its files checked.

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
    folder = engine_folder(workspace, chosen, engine)
    if newest and newest.version != chosen.version:
        told = f"{chosen.asset} {chosen.version} is in use; {newest.version} is newer, see `udrl students list`"
        click.secho(told, dim=True, err=True)
    return folder


def wanted_commands(ask: Ask, space: CommandSpace, settings: Settings) -> tuple[list[Wanted], list[SetAside]]:
    """A command for each usable idea, and the rows of a file that are not usable.

    Raises:
        IntentsError: An idea that was typed is not usable.
        StudentError: An option is not understood.
    """
    default = ask.task or next((name for name in settings.tasks.names if name in space.tasks), space.tasks[0])
    _known_task(default, space)
    wanted, unused = [], []
    for idea in ask.ideas:
        if reason := problem(idea, settings.intents.max_words):
            raise IntentsError(f"{quoted(idea)} is no usable idea: {reason}", where="IDEA", remedy="say it in a few plain words")
        wanted.append(Wanted(_command(clean(idea), default, ask.length, ask.quality, space), ""))
    _command("", default, ask.length, ask.quality, space)  # what was typed is at fault before any row is
    for candidate in read_source(ask.source, Path.cwd()) if ask.source else ():
        try:
            if reason := _reason(candidate, space, settings):
                raise StudentError(reason)
            length, quality = _asked(candidate.words, ask.length), _asked(candidate.quality, ask.quality) or ask.quality
            command = _command(clean(str(candidate.text)), str(candidate.task or default), length, quality, space)
        except StudentError as error:
            text = candidate.text if isinstance(candidate.text, str) else quoted(candidate.text)
            unused.append(SetAside(candidate.where, error.what, text.encode("utf-8", "replace").decode("utf-8")))
        else:
            wanted.append(Wanted(command, candidate.where))
    return wanted, unused


def _asked(value: object, otherwise: str | None) -> str | None:
    """What a row asks in a column of its own, as it would be typed; what the command line says where it is empty."""
    if value is None or value != value or value == "":  # NaN, in Parquet
        return otherwise
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _tell_unused(ask: Ask, rows: int, unused: list[SetAside]) -> None:
    for row in unused[:TOLD]:
        click.echo(f"not used  {row.where}: {row.reason}", err=True)
    file = cli_batch.write_unused(ask.output, [(row.where, row.reason, row.text) for row in unused]) if ask.output and ask.source else None
    if unused:
        listed = f" ({file} lists them)" if file else ""
        click.echo(f"{len(unused):,} of {rows - len(ask.ideas):,} lines of {printable(str(ask.source))} were not used{listed}", err=True)


def _known_task(task: str, space: CommandSpace) -> None:
    if task not in space.tasks:
        raise StudentError(f"unknown task {task!r}", where="--task", remedy=f"this student's tasks: {', '.join(space.tasks)}")


def _reason(candidate: Candidate, space: CommandSpace, settings: Settings) -> str | None:
    reason = candidate.fault or problem(candidate.text, settings.intents.max_words)
    if not reason and candidate.task and candidate.task not in space.tasks:
        return f"unknown task {quoted(candidate.task, 60)} (this student's tasks: {', '.join(space.tasks)})"
    return reason


def _command(intent: str, task: str, length: str | None, quality: str, space: CommandSpace) -> Command:
    return Command(task, intent, _words(length, task, space), _quality(quality, task, space))


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
