"""The command `udrl`. Results go to stdout, everything else to stderr; exit code 2 means that an input is at fault."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import click

from udrl_pipeline import __version__, allocator, cli_output
from udrl_pipeline.cli_audit import audit
from udrl_pipeline.cli_plan import plan
from udrl_pipeline.cli_settings import parse_overrides, read_settings, settings_options
from udrl_pipeline.cli_students import students
from udrl_pipeline.errors import IntentsError, UdrlError
from udrl_pipeline.settings import PARAMS_ENV, PRESET_ENV, Settings

PATH = click.Path(path_type=Path)


class _Commands(click.Group):
    """Commands whose typed errors are told, not thrown."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UdrlError as error:
            cli_output.error(str(error))
            ctx.exit(2)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="udrl")
def main() -> None:
    """Distil a large model into a small one that obeys commands."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar per file that is loaded or saved tells a user nothing


@main.command(short_help="Bring the assets and the report up to date.")
@settings_options
@click.option("--select", metavar="ASSET", multiple=True, help="Make this asset only; repeatable. `all` adds the other students.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of the table.")
@click.option("--copy-to", metavar="FOLDER", help="Also copy the made versions to FOLDER/ASSET; what dvc.yaml tracks.")
def run(
    params: str | None, preset: str | None, overrides: tuple[str, ...], select: tuple[str, ...], as_json: bool, copy_to: str | None
) -> None:
    """Bring the assets up to date: intents, teacher_corpus, labeled_dataset, student/udrl, student/sft,
    evaluation_report, student_export/udrl, promotion.

    What is there and unchanged is left alone. A run that was killed resumes. The report is also copied to report.html.
    """
    settings = read_settings(params, preset, overrides)
    wish = {
        "select": [name for names in select for name in names.split(",") if name],
        "overrides": parse_overrides(overrides),
        "as_json": as_json,
        "copy_to": copy_to and str(Path(copy_to).absolute()),
    }
    _hand_over("assets.run", wish, settings, params, preset)


@main.command(short_help="What is current, stale, running, failed, set aside and in use.")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
def status(params: str | None, preset: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Tell what is current, what a run would make anew and why, what is running and what failed, what was set aside and why,
    and which students are in use or wait. Nothing is made, and no run is waited for."""
    settings = read_settings(params, preset, overrides)
    _hand_over("assets.status", {"overrides": parse_overrides(overrides), "as_json": as_json}, settings, params, preset)


def _hand_over(module: str, wish: dict[str, Any], settings: Settings, params: str | None, preset: str | None) -> None:
    """Become a module that knows Dagster, which the library does not import. The same process goes on, so that Ctrl-C and kill
    reach the work itself."""
    environment = {**allocator.ENVIRONMENT, **os.environ}
    environment[PARAMS_ENV] = str(Path(params or environment.get(PARAMS_ENV) or "params.yaml").absolute())
    environment[PRESET_ENV] = preset if preset is not None else environment.get(PRESET_ENV, "")
    environment.setdefault("DAGSTER_HOME", str(_dagster_home(settings.root)))
    os.chdir(settings.root)  # dagster.yaml names its folders relative to the project
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, json.dumps(wish)], environment)


def _dagster_home(root: Path) -> Path:
    if (root / "dagster.yaml").exists():
        return root
    home = root / ".dagster"
    if not (home / "dagster.yaml").exists():
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    return home


@main.group()
def corpus() -> None:
    """Carry teacher rows from store to store."""


@corpus.command("export")
@click.argument("file", type=PATH)
@click.option("--recorded", is_flag=True, help="Only what ships with the package: rows of the current plan, less the intents held back.")
@settings_options
def corpus_export(file: Path, recorded: bool, **chosen: Any) -> None:
    """Write all teacher rows to FILE (Parquet)."""
    from udrl_pipeline.corpus import export_rows
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    rows = export_rows(workspace, file, _keys_to_record(workspace.settings) if recorded else None)
    click.echo(f"{rows:,} rows in {file} ({file.stat().st_size / 1e6:.1f} MB)")


def _keys_to_record(settings: Settings) -> set[str]:
    from udrl_pipeline.corpus import plan, source_digest
    from udrl_pipeline.intents import collect
    from udrl_pipeline.recorded import held_back
    from udrl_pipeline.tasks import load_tasks

    intents = collect(settings).kept
    left_out = held_back(intents)
    planned = plan([intent for intent in intents if intent.key not in left_out], load_tasks(settings), settings, source_digest(settings))
    return {row.row_key for row in planned}


@corpus.command("import")
@click.argument("file", type=PATH)
@settings_options
def corpus_import(file: Path, **chosen: Any) -> None:
    """Add the rows of FILE that are not there yet. The next run uses those whose keys it needs, instead of the teacher."""
    from udrl_pipeline.corpus import import_rows
    from udrl_pipeline.store.workspace import Workspace

    if not file.is_file():
        raise IntentsError("no such file", where=str(file), remedy="name a file that `udrl corpus export` wrote")
    rows = import_rows(Workspace(read_settings(**chosen)), file)
    click.echo(f"{rows:,} new rows from {file}")


@main.command("record-student", hidden=True)
@click.argument("folder", type=PATH)
@settings_options
def record_student(folder: Path, **chosen: Any) -> None:
    """Write the current student/udrl to FOLDER as `init_from: recorded` takes it; for the makers of this package."""
    from udrl_pipeline.audit.book import Book
    from udrl_pipeline.store.workspace import Workspace
    from udrl_pipeline.student import recorded

    workspace = Workspace(read_settings(**chosen))
    made = workspace.find("student/udrl", workspace.parents("student/udrl")["student/udrl"])
    assert made is not None, "it is the current one"
    recorded.export(workspace, made, Book(workspace).ancestors(made), folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    click.echo(f"student/udrl {made.version} in {folder} ({made.facts['parameters'] / 1e6:.1f}M parameters, {size / 1e6:.1f} MB)")


@main.command()
@click.argument("ideas", nargs=-1, metavar="[IDEA]...")
@click.option(
    "--from", "--input", "source", type=PATH, metavar="FILE", help="CSV, JSONL or Parquet with a column idea (and task, words, quality)."
)
@click.option(
    "--to", "--output", "output", type=PATH, metavar="FILE", help="Write a table instead: CSV, JSONL or Parquet. Resumes what was killed."
)
@click.option("--task", metavar="TASK", help="What to write; for ideas that name none themselves.  [default: the first of params.yaml]")
@click.option("--length", metavar="WORDS", help="A number of words, or short, medium, long.  [default: left to the student]")
@click.option("--quality", default="best", show_default=True, metavar="QUALITY", help="1 to 5 (params.yaml sets how many), best or any.")
@click.option(
    "--guidance",
    type=click.FloatRange(0, 10),
    metavar="WEIGHT",
    help="How hard the quality is pressed; 1 only asks.  [default: what the student's own sweep chose]",
)
@click.option("--length-guidance", type=click.FloatRange(0, 10), default=1.0, show_default=True, metavar="WEIGHT", help="And the length.")
@click.option("--idea-guidance", type=click.FloatRange(0, 10), metavar="WEIGHT", help="And the idea.  [default: the student's own]")
@click.option("-n", "number", type=click.IntRange(1, 1000), default=1, show_default=True, help="Texts per idea.")
@click.option(
    "--best-of",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    metavar="NUMBER",
    help="Write so many for each text, and keep the one of the highest reward.",
)
@click.option("--recipe", default="udrl", show_default=True, help="Which student.")
@click.option("--student", type=PATH, metavar="FOLDER", help="A student's folder, instead of the one in use.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.  [default: evaluation.temperature]")
@click.option("--seed", type=int, help="The same seed gives the same texts.  [default: evaluation.seed]")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per text.")
@click.option("--stream", is_flag=True, help="Show the text as it comes; for one idea.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "export", "transformers"]),
    default="auto",
    show_default=True,
    help="export: the fast one (student_export); auto: where it is there.",
)
@settings_options
def generate(params: str | None, preset: str | None, overrides: tuple[str, ...], **asked: Any) -> None:
    """Ask a student: short ideas in, prompts out.

    For example: udrl generate "lighthouse in a storm" --task image --length 18 --quality best -n 3
    """
    from udrl_pipeline.cli_generate import Ask, generate_texts

    generate_texts(Ask(**asked), read_settings(params, preset, overrides))


@main.command(short_help="Serve the reports and the ledger's answers to a browser.")
@click.option("--port", type=click.IntRange(0, 65535), default=3001, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 shows them to the network, to everybody in it.")
@settings_options
def pages(params: str | None, preset: str | None, overrides: tuple[str, ...], host: str, port: int) -> None:
    """Serve the reports, and what the audit commands answer, as web pages. The Dagster UI links to them (`make ui`)."""
    from udrl_pipeline.cli_pages import serve_pages

    named = {"--params": params, "--preset": preset}
    options = [part for name, value in named.items() if value is not None for part in (name, value)]
    options += [part for override in overrides for part in ("--set", override)]
    serve_pages(read_settings(params, preset, overrides), options, host, port)


@main.command(short_help="Serve a student over HTTP: a web page, and an API that OpenAI's clients speak.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 opens it to the network; set a key first.")
@click.option("--recipe", default="udrl", show_default=True, help="Which student: the one in use, and the next one as soon as that is.")
@click.option("--student", type=PATH, metavar="FOLDER", help="A student's or an export's folder, whatever is in use.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "export", "transformers"]),
    default="auto",
    show_default=True,
    help="auto: the export where there is one.",
)
@settings_options
def serve(
    params: str | None,
    preset: str | None,
    overrides: tuple[str, ...],
    host: str,
    port: int,
    recipe: str,
    student: Path | None,
    engine: Literal["auto", "export", "transformers"],
) -> None:
    """Serve the student in use until told to end (Ctrl-C, SIGTERM: what was asked before is answered).

    The page to try it is http://127.0.0.1:8000, the API is described at /docs. A key that clients must send is taken from the
    environment (UDRL_SERVE_API_KEY).
    """
    from udrl_pipeline.cli_output import progress_to_stderr
    from udrl_pipeline.cli_serve import serve_student

    progress_to_stderr()
    serve_student(read_settings(params, preset, overrides), recipe, student, engine, host, port)


main.add_command(audit)
main.add_command(students)
main.add_command(plan)

if __name__ == "__main__":
    main()
