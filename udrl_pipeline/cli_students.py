"""`udrl students`: which student of each recipe is in use, and a user's word on it."""

from typing import TYPE_CHECKING, Any

import click

from udrl_pipeline import cli_output
from udrl_pipeline.characters import printable, to_json
from udrl_pipeline.cli_settings import read_settings, settings_options
from udrl_pipeline.errors import StudentError

if TYPE_CHECKING:
    from udrl_pipeline.promotion import Standing
    from udrl_pipeline.store.promotions import Promotion


@click.group()
def students() -> None:
    """See which student of each recipe is in use, put another into use, or go back.

    A new student is put into use by the gate if the report says that it is not worse than the one in use; else it stays a
    candidate. What is said here counts for more than the gate, until there is a newer student.
    """


@students.command("list", short_help="Every student, its state, and why.")
@click.argument("recipe", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of the list.")
@settings_options
def students_list(recipe: str | None, as_json: bool, **chosen: Any) -> None:
    """List every student (of RECIPE), the newest first: current (in use), candidate (not judged yet), refused or former."""
    from udrl_pipeline.promotion import standings
    from udrl_pipeline.store.workspace import Workspace

    found = standings(Workspace(read_settings(**chosen)), recipe)
    if as_json:
        click.echo(to_json([standing.as_dict() for standing in found]))
        return
    for standing in found:
        _show(standing)
    if not found:
        click.echo("no student yet: `udrl run` trains one")


def _show(standing: "Standing") -> None:
    student, since = standing.student, standing.since
    click.echo(f"{student.asset} {student.version}  {student.created_at.astimezone():%Y-%m-%d %H:%M}  {standing.state}")
    for parent, version in sorted(student.parents.items()):
        click.echo(f"  from     {parent} {version}")
    if standing.reward is not None and standing.relevance is not None:
        click.echo(f"  reward   {standing.reward:.3f}, relevance {standing.relevance:.3f}, report {standing.report}")
    at = f"{since.created_at.astimezone():%Y-%m-%d %H:%M}, " if since else ""
    click.echo(cli_output.wrapped("  why      ", printable(at + standing.why)))


@students.command("promote", short_help="Put a student into use, whatever the gate says.")
@click.argument("version")
@click.option("--reason", metavar="TEXT", help="Why; it stays in the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@settings_options
def students_promote(version: str, reason: str | None, as_json: bool, **chosen: Any) -> None:
    """Put the student VERSION into use, whatever the gate says of it. VERSION is named as for `udrl audit`: by its digits, or by
    its place in the history, such as student/udrl (the newest) and student/udrl~1."""
    from udrl_pipeline.audit import resolve
    from udrl_pipeline.promotion import promote
    from udrl_pipeline.store.workspace import Workspace

    workspace, why = Workspace(read_settings(**chosen)), _given(reason, "promote")
    _tell(promote(workspace, resolve(workspace, version), why), as_json)


@students.command("rollback", short_help="Put the student into use that was before.")
@click.argument("recipe", default="udrl")
@click.option("--reason", metavar="TEXT", help="Why; it stays in the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@settings_options
def students_rollback(recipe: str, reason: str | None, as_json: bool, **chosen: Any) -> None:
    """Put the student of RECIPE (default: udrl) back into use that was in use before the one that is."""
    from udrl_pipeline.promotion import rollback
    from udrl_pipeline.store.workspace import Workspace

    _tell(rollback(Workspace(read_settings(**chosen)), recipe.removeprefix("student/"), _given(reason, "rollback")), as_json)


def _given(reason: str | None, command: str) -> str:
    if not (reason or "").strip():
        raise StudentError("a reason is needed: it stays in the ledger", where=f"udrl students {command}", remedy="give --reason TEXT")
    return str(reason).strip()


def _tell(entry: "Promotion", as_json: bool) -> None:
    if as_json:
        click.echo(to_json(entry.as_dict()))
        return
    before = entry.figures["against"]
    click.echo(f"{entry.asset} {entry.in_use} is in use from now on{f', in place of {before}' if before else ''}")
