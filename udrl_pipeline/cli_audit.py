"""`udrl audit`: questions to the ledger. Every answer is a table, or JSON with `--json`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from udrl_pipeline import cli_output
from udrl_pipeline.characters import printable, to_json
from udrl_pipeline.cli_audit_acts import audit_checkout, audit_export, audit_forget
from udrl_pipeline.cli_settings import read_settings, settings_options
from udrl_pipeline.errors import UdrlError

if TYPE_CHECKING:
    from udrl_pipeline.audit.impact import Touched
    from udrl_pipeline.audit.lineage import RowTrace
    from udrl_pipeline.audit.losses import Losses
    from udrl_pipeline.store.workspace import Version, Workspace


@click.group()
def audit() -> None:
    """Ask the ledger what was made from what, and whether it still is as it was.

    \b
    What exactly trained this model?            trace VERSION, versions
    What changed between two versions, and why? diff BEFORE AFTER
    What has this bad batch touched?            impact
    Can I have the old version back?            checkout VERSION --to DIR
    Has anybody touched it?                     verify

    A VERSION is named by its digits (the first ones suffice), by ASSET@VERSION, or by its place in the history: ASSET is the
    current one, ASSET~1 the one before it.
    """


for act in (audit_checkout, audit_export, audit_forget):
    audit.add_command(act)


@audit.command("versions", short_help="List the versions.")
@click.argument("asset", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of the list.")
@settings_options
def audit_versions(asset: str | None, as_json: bool, **chosen: Any) -> None:
    """List the versions of ASSET (default: of all assets), the newest first: what each was made from, by which run (and by which it
    was found again last), and what was set otherwise than for the version before it."""
    from udrl_pipeline.audit import versions
    from udrl_pipeline.audit.book import Book
    from udrl_pipeline.audit.changes import in_yaml
    from udrl_pipeline.audit.history import history

    workspace = _store(chosen)
    book = Book(workspace)
    found = history(workspace, versions(workspace, asset, book), book)
    if as_json:
        click.echo(to_json([entry.as_dict() for entry in found]))
        return
    for entry in found:
        verdict = "  FAIL" if entry.version.verdict == "FAIL" else "  *" if entry.current else ""
        click.echo(_line(0, entry.version, entry.lost, verdict))
        if entry.state:
            click.echo(f"  state    {'in use' if entry.state == 'current' else entry.state}")
        _print_parents(entry.first)
        click.echo(cli_output.wrapped("  run      ", f"{entry.first.run_id}{_at_git(*entry.first_git)}"))
        if entry.version.run_id != entry.first.run_id:
            click.echo(cli_output.wrapped("  again    ", f"{entry.version.run_id}{_at_git(entry.git_sha, entry.git_dirty)}"))
        if entry.version.parents != entry.first.parents:
            _print_parents(entry.version)
        for change in entry.changes:
            click.echo(cli_output.wrapped("  changed  ", printable(f"{change.name}: {in_yaml(change.before)} -> {in_yaml(change.after)}")))
    click.echo("* current" if found else "no version yet: `udrl run` makes them")


def _print_parents(made: "Version") -> None:
    for parent, version in sorted(made.parents.items()):
        click.echo(f"  from     {parent} {version}")


def _store(chosen: dict[str, Any]) -> "Workspace":
    """The store that a question is put to; what it reads until the command ends goes over one connection."""
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    click.get_current_context().with_resource(workspace.database.kept_open())
    return workspace


def _at_git(sha: str, dirty: bool) -> str:
    return f"  at git {sha[:12]}{' with uncommitted changes' * dirty}" if sha else ""


@audit.command("quarantine", short_help="What was set aside, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of all rows instead of the summary.")
@settings_options
def audit_quarantine(as_json: bool, **chosen: Any) -> None:
    """Show what the newest version of each asset does without, and why."""
    from udrl_pipeline.audit import quarantine

    found = quarantine(_store(chosen))
    if as_json:
        click.echo(to_json([{"asset": s.asset, "version": s.version, **asdict(s.row)} for s in found]))
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for s in found:
        groups.setdefault((s.asset, s.row.reason), []).append(f"{s.row.item}  {s.row.text}")
    rows = [(asset, reason, f"{len(items):,}", items[0][:160]) for (asset, reason), items in groups.items()]
    if rows:
        cli_output.show_table(("asset", "reason", "rows", "for example"), rows, right=("rows",))
    click.echo("--json lists every row" if rows else "nothing is in quarantine")


@audit.command("verify", short_help="Has anybody touched it?")
@click.argument("version", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of the faults instead of the table.")
@settings_options
def audit_verify(version: str | None, as_json: bool, **chosen: Any) -> None:
    """Recompute every hash: of the folders, of their rows, and of the ledger's chain (versions, their parents and checks, runs,
    tombstones, promotions); and compare the store's rows (task, idea, text, source, run) and scores with those that the newest
    versions hold. VERSION looks at one version alone.

    Names what was changed, is missing or does not belong, and then ends with exit code 1.

    Not guarded: why rows were set aside (quarantine), what else the store tells of a row, and rows and scores that no newest version
    holds. Nor does a seal keep out who writes the whole ledger anew: keep a copy of `udrl audit export` elsewhere.
    """
    from udrl_pipeline.audit import resolve, versions
    from udrl_pipeline.audit.verify import verify
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))  # not `_store`: where its file is missing, that is a fault to tell
    only = resolve(workspace, version) if version else None
    faults = verify(workspace, only)
    if as_json:
        click.echo(json.dumps([asdict(fault) for fault in faults]))
    elif faults:
        cli_output.show_table(("asset", "version", "what is wrong"), [(f.asset, f.version, f.what) for f in faults])
    else:
        looked_at = 1 if only else len(versions(workspace))
        click.echo(f"{cli_output.counted(looked_at, 'version')}: nothing was touched")
    if faults:
        raise click.exceptions.Exit(1)


@audit.command("diff", short_help="What changed between two versions, and why.")
@click.argument("before")
@click.argument("after")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
@settings_options
def audit_diff(before: str, after: str, as_json: bool, **chosen: Any) -> None:
    """Tell what changed from version BEFORE to version AFTER of an asset, and why: settings, code, and what it was made from."""
    from udrl_pipeline.audit import resolve
    from udrl_pipeline.audit.book import Book
    from udrl_pipeline.audit.changes import in_yaml
    from udrl_pipeline.audit.difference import difference
    from udrl_pipeline.audit.losses import size

    workspace = _store(chosen)
    book = Book(workspace)
    found = difference(workspace, resolve(workspace, before, book), resolve(workspace, after, book), book)
    if as_json:
        click.echo(to_json(found.as_dict()))
        return
    sizes = f"({size(found.a, found.lost)} -> {size(found.b, found.lost)})"
    click.echo(cli_output.wrapped("", f"{found.a.asset}  {found.a.version} -> {found.b.version}  {sizes}"))
    if causes := found.causes():
        cli_output.show_table(("why", "", "before -> after"), causes)
    if found.rows:
        counts = [
            (what, task, source[:24], f"{count:,}") for what, of_them in found.rows.items() for (task, source), count in of_them.items()
        ]
        cli_output.show_table(("rows", "task", "source", "count"), counts, right=("count",))
        examples = [
            (what, " ".join(f"{name}={value}" for name, value in row.items())) for what, rows in found.samples.items() for row in rows
        ]
        cli_output.show_table(("for example", ""), examples)
    elif not causes and not found.facts:
        click.echo("the same")
    if found.facts:
        cli_output.show_table(("figure", "before", "after"), [(c.name, in_yaml(c.before), in_yaml(c.after)) for c in found.facts])


@audit.command("trace", short_help="What a version was made from, and what from it.")
@click.argument("version", required=False)
@click.option("--row", metavar="KEY", help="Follow one row instead of a version; the first digits of its key suffice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tree.")
@settings_options
def audit_trace(version: str | None, row: str | None, as_json: bool, **chosen: Any) -> None:
    """Follow VERSION up to the teacher's weights and the files of ideas, and down to the reports made from it; --json also tells every
    setting that it was made with."""
    from udrl_pipeline.audit import lineage, resolve
    from udrl_pipeline.audit.book import Book
    from udrl_pipeline.audit.history import history
    from udrl_pipeline.audit.losses import losses
    from udrl_pipeline.audit.rows import rows_of, whole_key

    if (version is None) == (row is None):
        raise UdrlError("neither a version nor a row, or both", where="udrl audit trace", remedy="name a version, or a row with --row KEY")
    workspace = _store(chosen)
    book = Book(workspace)
    if row:
        _show_row(lineage.trace_row(workspace, book, whole_key(workspace, row)), as_json)
        return
    start = resolve(workspace, version or "", book)
    up, down = lineage.upwards(book, start), lineage.downwards(book, start)
    read, lost = rows_of(workspace, start), losses(book, workspace.tombstones())
    [made] = history(workspace, [start], book)
    if as_json:
        trained_on = {"trained_on": dict(zip(read.row_key, read.times.tolist(), strict=True))} if read is not None else {}
        decided = lineage.decisions(workspace)
        click.echo(to_json({"made": made.as_dict(), "up": up.as_dict(decided, lost), "down": down.as_dict(decided, lost), **trained_on}))
        return
    click.echo(cli_output.wrapped("made by ", f"run {made.first.run_id}{_at_git(*made.first_git)}"))
    click.echo("made from")
    for depth, found, again in up.walk(1):
        click.echo(_line(depth, found, lost, "  (as above)" * again))
        if again:
            continue
        for name, value in lineage.origin(found).items():
            click.echo(cli_output.wrapped(f"{'  ' * (depth + 1)}{name}: ", _digested(value)))
    if read is not None:
        times = cli_output.counted(int(read.times.sum()), "time")
        click.echo(f"trained on {cli_output.counted(len(read), 'row')}, {times} in all (--json: their keys, and all settings)")
    for entry in lineage.decisions(workspace).get((start.asset, start.version), []):
        told = f"{entry.action} {entry.version} by {entry.decided_by}, {entry.in_use or 'none'} in use: {entry.reason}"
        click.echo(cli_output.wrapped(f"{entry.created_at.astimezone():%Y-%m-%d %H:%M}  ", printable(told)))
    click.echo("used by" if down.next else "used by nothing")
    for depth, found, again in list(down.walk())[1:]:
        click.echo(_line(depth, found, lost, "  (as above)" * again))


def _digested(origin: Any) -> str:
    """What a version took from outside, in the tree: of each of several digests the first 16 digits."""
    if isinstance(origin, str):
        return printable(origin)
    return to_json({name: digest[:16] for name, digest in origin.items()} if isinstance(origin, dict) else origin)


def _line(depth: int, found: "Version", lost: "Losses", told: str) -> str:
    from udrl_pipeline.audit.losses import size

    told = f"{found.version}  {found.created_at.astimezone():%Y-%m-%d %H:%M}  {size(found, lost)}{told}"
    return cli_output.wrapped(f"{'  ' * depth}{found.asset} ", told)


def _show_row(found: "RowTrace", as_json: bool) -> None:
    if as_json:
        touched = [_touched_as_dict(t) for t in found.touched]
        click.echo(to_json({"row": found.row, "places": found.places, "touched": touched}))
        return
    cli_output.show_table(("the row", ""), [(name, str(value)) for name, value in found.row.items()])
    places = [(p["asset"], p["version"], " ".join(f"{n}={v}" for n, v in p.items() if n not in ("asset", "version"))) for p in found.places]
    cli_output.show_table(("where", "version", "as"), places)
    cli_output.show_table(("touched", "version", "how"), [(t.version.asset, t.version.version, t.how) for t in found.touched])


def _touched_as_dict(touched: "Touched") -> dict[str, Any]:
    return {"asset": touched.version.asset, "version": touched.version.version, "how": touched.how}


@audit.command("impact", short_help="What a row, an idea, a source or a run has touched.")
@click.option("--row", metavar="KEY", help="One row; the first digits of its key suffice.")
@click.option("--intent", metavar="TEXT", help="All rows of an idea.")
@click.option(
    "--source",
    metavar="DIGEST",
    help="All rows of a teacher (the first digits of its digest suffice) or a student (student/NAME@VERSION).",
)
@click.option(
    "--run", "run_id", metavar="ID", help="All rows that a run wrote, and the versions that it made; the first digits of its id suffice."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@settings_options
def audit_impact(as_json: bool, row: str | None, intent: str | None, source: str | None, run_id: str | None, **chosen: Any) -> None:
    """Name every version, student and report that a row, an idea, a source or a run has touched."""
    from udrl_pipeline.audit import impact
    from udrl_pipeline.audit.book import Book
    from udrl_pipeline.audit.history import state_of
    from udrl_pipeline.audit.rows import whole_key
    from udrl_pipeline.store import promotions

    questions = (
        (impact.impact_of_row, row),
        (impact.impact_of_intent, intent),
        (impact.impact_of_source, source),
        (impact.impact_of_run, run_id),
    )
    asked = [(ask, value) for ask, value in questions if value is not None]
    if len(asked) != 1:
        raise UdrlError("one question at a time", where="udrl audit impact", remedy="give one of --row, --intent, --source, --run")
    workspace = _store(chosen)
    ask, value = asked[0]
    found = ask(workspace, whole_key(workspace, value) if row else value)
    book = Book(workspace)
    if as_json:
        states = promotions.states(workspace.promotions())
        touched = [
            _touched_as_dict(t)
            | {"current": book.is_current(t.version)}
            | ({"state": state} if (state := state_of(t.version, states)) else {})
            for t in found.touched
        ]
        click.echo(to_json({"what": found.what, "rows": found.rows, "touched": touched}))
        return
    click.echo(cli_output.wrapped("", f"{printable(found.what)}: {cli_output.counted(found.rows, 'row')} in the store"))
    rows = [(t.version.asset, t.version.version + "*" * book.is_current(t.version), t.how) for t in found.touched]
    cli_output.show_table(("touched", "version", "how"), rows)
    click.echo("* current" if found.touched else "it has touched nothing")
