"""The commands of `udrl audit` that write something: a version's folder, a catalogue's events, a tombstone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from udrl_pipeline import cli_output
from udrl_pipeline.characters import to_json
from udrl_pipeline.cli_settings import read_settings, settings_options
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store import names

if TYPE_CHECKING:
    from udrl_pipeline.audit.forget import Forgetting
    from udrl_pipeline.audit.impact import Touched
    from udrl_pipeline.store.workspace import Version, Workspace


@click.command("checkout", short_help="Have an old version back, in a project of its own.")
@click.argument("version")
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", required=True, help="A new folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@settings_options
def audit_checkout(version: str, to: Path, as_json: bool, **chosen: Any) -> None:
    """Write VERSION, all that it was made from and its settings to DIR: a project that trains from that version, not the newest."""
    from udrl_pipeline.audit import resolve
    from udrl_pipeline.audit.checkout import checkout
    from udrl_pipeline.audit.losses import lost_rows, size
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    made = checkout(workspace, resolve(workspace, version), to)
    if as_json:
        versions = [
            {"asset": v.asset, "version": v.version, "rows": v.rows}
            | ({"forgotten": lost_rows(v, made.lost)} if (v.asset, v.version) in made.lost else {})
            for v in made.versions
        ]
        click.echo(json.dumps({"folder": str(to), "versions": versions, "git_sha": made.git_sha, "git_dirty": made.git_dirty}))
        return
    cli_output.show_table(("asset", "version", "holds"), [(v.asset, v.version, size(v, made.lost)) for v in made.versions])
    if made.git_sha:
        dirty = ", with changes that were not committed" if made.git_dirty else ""
        click.echo(cli_output.wrapped("", f"made at git {made.git_sha}{dirty}: other code makes other versions"))
    click.echo(cli_output.wrapped("", f"in {to}: {_next_step(made.versions[-1])}, `udrl audit trace {made.versions[-1].asset}` shows it"))


def _next_step(version: "Version") -> str:
    """What a project is good for whose newest version is this one."""
    asset, recipe = version.asset, version.asset.partition("/")[2]
    if asset.startswith(names.EXPORTS):
        return f"artifacts/{asset}/{version.version} is the export"
    if names.is_student(asset):
        return f"`udrl generate --recipe {recipe}` writes with it"
    if asset == names.REPORT:
        return f"artifacts/{asset}/{version.version}/report.html is the report"
    if asset in (names.INTENTS, names.CORPUS, names.DATASET):
        return "`udrl run --select student/udrl` trains on them"
    if asset == names.EXPLORED:
        return "`udrl run --select student/udrl-rounds` trains on them"
    return "`udrl run` goes on from it"


@click.command("export", short_help="Write the ledger for other catalogues.")
@click.option("--format", "kind", type=click.Choice(["openlineage", "json"]), required=True)
@click.option("--namespace", default="udrl_pipeline", show_default=True, help="Of the jobs and datasets in OpenLineage.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE instead of stdout.")
@settings_options
def audit_export(kind: str, namespace: str, output: Path | None, **chosen: Any) -> None:
    """Write the ledger for other catalogues: OpenLineage events, one a line, or one JSON object."""
    from udrl_pipeline.audit import export
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    if kind == "openlineage":
        lines = export.as_openlineage(workspace, namespace)
    else:
        lines = [to_json(export.as_json(workspace))]
    if output is None:
        click.echo("\n".join(lines))
        return
    try:
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UdrlError(f"cannot be written ({error.strerror})", where=str(output), remedy="name another --output") from error
    click.echo(f"{cli_output.counted(len(lines), 'line')} in {output}")


@click.command("forget", short_help="Take an idea or a row out for good.")
@click.option("--intent", metavar="TEXT", help="An idea, with all its rows.")
@click.option("--row", metavar="KEY", help="One row; the first digits of its key suffice.")
@click.option("--reason", metavar="TEXT", help="Why; it stays in the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@settings_options
def audit_forget(intent: str | None, row: str | None, reason: str | None, yes: bool, as_json: bool, **chosen: Any) -> None:
    """Take an idea or a row out for good: out of the store, the published tables and the reports that show it, which are deleted; the
    next run makes one again. This cannot be undone.

    A tombstone with the reason stays, the next runs honour it, and what must be trained again is named; so is what is not
    touched. Without options: list what was forgotten, and who has learned from it.
    """
    from udrl_pipeline.audit.forget import forget_intent, forget_row
    from udrl_pipeline.audit.rows import whole_key
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    if intent is None and row is None:
        _list_forgotten(workspace, as_json)
        return
    if (intent is not None and row is not None) or not (reason or "").strip():
        raise UdrlError("one idea or one row, and a reason", where="udrl audit forget", remedy="give --intent or --row, and --reason")
    row = whole_key(workspace, row) if row else row
    if not yes:
        click.confirm(f"Delete {f'the idea {intent!r} and all its rows' if intent else f'row {row}'} for good?", abort=True, err=True)
    assert reason is not None, "it was looked at above"
    done = forget_intent(workspace, intent, reason) if intent is not None else forget_row(workspace, row or "", reason)
    if as_json:
        click.echo(json.dumps(_as_dict(workspace, done)))
        return
    stone = done.tombstone
    rows, files = cli_output.counted(len(stone.row_keys), "row"), cli_output.counted(len(stone.files), "file")
    click.echo(f"tombstone {stone.number}: {rows} deleted, {files} rewritten or deleted")
    if done.learned:
        _show_learned(workspace, "must be trained again", done.learned)
    for version in _in_use(workspace, done):
        told = f"in use: {version}; the next run puts a newer one into use, or `udrl students promote` another now"
        click.echo(cli_output.wrapped("", told))
    if done.reports:
        click.echo(cli_output.wrapped("", f"reports deleted: {', '.join(done.reports)}; the next run makes one again"))
    click.echo(cli_output.wrapped("", REMAINS))


#: Where the pipeline does not reach.
REMAINS = (
    "Not touched: your own files of ideas; copies of report.html and of versions (`--copy-to`, checkouts, DVC's cache and remotes); "
    "backups; the samples in Dagster's history of runs; and, in the students and exports above, their weights and single words of it in "
    "words.json."
)
AGAIN = "* current: `udrl run` (--select for other recipes) trains it again; do not use the others any more"


def _show_learned(workspace: "Workspace", title: str, learned: "list[Touched]") -> None:
    rows = [(t.version.asset, t.version.version + _mark(workspace, t.version), t.how) for t in learned]
    cli_output.show_table((title, "version", "because"), rows)
    click.echo(cli_output.wrapped("", AGAIN))


def _mark(workspace: "Workspace", version: Any) -> str:
    current = workspace.current(version.asset)
    return "*" if current and current.version == version.version else ""


def _in_use(workspace: "Workspace", done: "Forgetting") -> list[str]:
    """The students in use that have learned it."""
    from udrl_pipeline.store.promotions import in_use

    used = in_use(workspace.promotions())
    return [f"{t.version.asset} {t.version.version}" for t in done.learned if used.get(t.version.asset) == t.version.version]


def _as_dict(workspace: "Workspace", done: "Forgetting") -> dict[str, Any]:
    return {
        "tombstone": done.tombstone.number,
        "rows": len(done.tombstone.row_keys),
        "files": [file._asdict() for file in done.tombstone.files],
        "learned": _learned_as_dicts(workspace, done.learned),
        "reports": done.reports,
        "in_use": _in_use(workspace, done),
    }


def _learned_as_dicts(workspace: "Workspace", learned: "list[Touched]") -> list[dict[str, Any]]:
    return [
        {"asset": t.version.asset, "version": t.version.version, "how": t.how, "current": bool(_mark(workspace, t.version))}
        for t in learned
    ]


def _list_forgotten(workspace: "Workspace", as_json: bool) -> None:
    from udrl_pipeline.audit.book import Book
    from udrl_pipeline.audit.impact import learned_forgotten

    stones = workspace.tombstones()
    learned = learned_forgotten(workspace, Book(workspace), stones)
    if as_json:
        listed = [{"number": s.number, "kind": s.kind, "subject": s.subject, "reason": s.reason, "rows": len(s.row_keys),
                   "created_at": s.created_at.isoformat()} for s in stones]  # fmt: skip
        click.echo(json.dumps({"forgotten": listed, "train_again": _learned_as_dicts(workspace, learned)}))
        return
    if not stones:
        click.echo("nothing was forgotten")
        return
    rows = []
    for s in stones:
        rows.append(
            (str(s.number), f"{s.created_at.astimezone():%Y-%m-%d %H:%M}", s.kind, s.subject[:12], f"{len(s.row_keys):,}", s.reason)
        )
    cli_output.show_table(("no.", "time", "kind", "subject", "rows", "reason"), rows, right=("rows",))
    if learned:
        _show_learned(workspace, "has learned from it", learned)
