"""`udrl audit`: questions to the ledger. Every answer is a table, or JSON with `--json`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from udrl_pipeline import cli_output
from udrl_pipeline.characters import printable, to_json
from udrl_pipeline.cli_settings import read_settings, settings_options
from udrl_pipeline.errors import UdrlError

if TYPE_CHECKING:
    from udrl_pipeline.audit.lineage import RowTrace
    from udrl_pipeline.store.workspace import Version


@click.group()
def audit() -> None:
    """Ask the ledger what was made from what."""


@audit.command("versions")
@click.argument("asset", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of the table.")
@settings_options
def audit_versions(asset: str | None, as_json: bool, **chosen: Any) -> None:
    """List the versions of ASSET (default: of all assets), the newest first, each with those it was made from."""
    from udrl_pipeline.audit import versions
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    found = versions(workspace, asset)
    current = {name: version.version for name in {v.asset for v in found} if (version := workspace.current(name))}
    if as_json:
        keys = ("asset", "version", "created_at", "rows", "verdict", "parents", "run_id", "code_version", "params", "facts")
        listed = [{key: getattr(v, key) for key in keys} | {"current": current.get(v.asset) == v.version} for v in found]
        click.echo(json.dumps(listed, default=str))
        return
    rows = []
    for v in found:
        mark = "*" if current.get(v.asset) == v.version else ""
        rows.append((v.asset, v.version + mark, f"{v.created_at.astimezone():%Y-%m-%d %H:%M}", f"{v.rows:,}", v.verdict))
        rows += [(f"  from {parent}", version, "", "", "") for parent, version in sorted(v.parents.items())]
    cli_output.show_table(("asset", "version", "time", "rows", "verdict"), rows, right=("rows",))
    click.echo("* current" if found else "no version yet: `udrl run` makes them")


@audit.command("quarantine")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of all rows instead of the summary.")
@settings_options
def audit_quarantine(as_json: bool, **chosen: Any) -> None:
    """Show what the newest version of each asset does without, and why."""
    from udrl_pipeline.audit import quarantine
    from udrl_pipeline.store.workspace import Workspace

    found = quarantine(Workspace(read_settings(**chosen)))
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


@audit.command("verify")
@click.argument("version", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of the faults instead of the table.")
@settings_options
def audit_verify(version: str | None, as_json: bool, **chosen: Any) -> None:
    """Recompute every hash: of the folders, of their rows, and of the ledger's chain. VERSION looks at one version alone.

    Names what was changed, is missing or does not belong, and then ends with exit code 1.
    """
    from udrl_pipeline.audit import resolve, versions
    from udrl_pipeline.audit.verify import verify
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    only = resolve(workspace, version) if version else None
    faults = verify(workspace, only)
    if as_json:
        click.echo(json.dumps([asdict(fault) for fault in faults]))
    elif faults:
        cli_output.show_table(("asset", "version", "what is wrong"), [(f.asset, f.version, f.what) for f in faults])
    else:
        looked_at = 1 if only else len(versions(workspace))
        click.echo(f"{looked_at} version{'s' if looked_at != 1 else ''}: nothing was touched")
    if faults:
        raise click.exceptions.Exit(1)


@audit.command("diff")
@click.argument("before")
@click.argument("after")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
@settings_options
def audit_diff(before: str, after: str, as_json: bool, **chosen: Any) -> None:
    """Tell what changed from version BEFORE to version AFTER of an asset, and why: settings, code, and what it was made from."""
    from udrl_pipeline.audit import resolve
    from udrl_pipeline.audit.difference import difference
    from udrl_pipeline.store.workspace import Workspace

    workspace = Workspace(read_settings(**chosen))
    found = difference(workspace, resolve(workspace, before), resolve(workspace, after))
    if as_json:
        click.echo(to_json(found.as_dict()))
        return
    click.echo(f"{found.a.asset}  {found.a.version} -> {found.b.version}  ({found.a.rows:,} -> {found.b.rows:,} rows)")
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
        cli_output.show_table(("figure", "before", "after"), [(c.name, str(c.before), str(c.after)) for c in found.facts])


@audit.command("trace")
@click.argument("version", required=False)
@click.option("--row", metavar="KEY", help="Follow one row instead of a version.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tree.")
@settings_options
def audit_trace(version: str | None, row: str | None, as_json: bool, **chosen: Any) -> None:
    """Follow VERSION up to the teacher's weights and the files of ideas, and down to the reports made from it."""
    from udrl_pipeline.audit import lineage, resolve
    from udrl_pipeline.store.workspace import Workspace

    if (version is None) == (row is None):
        raise UdrlError("neither a version nor a row, or both", where="udrl audit trace", remedy="name a version, or a row with --row KEY")
    workspace = Workspace(read_settings(**chosen))
    if row:
        _show_row(lineage.trace_row(workspace, row), as_json)
        return
    start = resolve(workspace, version or "")
    up, down = lineage.upwards(workspace, start), lineage.downwards(workspace, start)
    if as_json:
        click.echo(to_json({"up": up.as_dict(), "down": down.as_dict()}))
        return
    click.echo("made from")
    for depth, found, again in up.walk(1):
        click.echo(_line(depth, found) + ("  (as above)" if again else ""))
        if again:
            continue
        for name, value in lineage.origin(found).items():
            told = printable(value) if isinstance(value, str) else to_json(value)
            click.echo(f"{'  ' * (depth + 1)}{name}: {told}")
    click.echo("used by" if down.next else "used by nothing")
    for depth, found, again in list(down.walk())[1:]:
        click.echo(_line(depth, found) + ("  (as above)" if again else ""))


def _line(depth: int, found: "Version") -> str:
    return f"{'  ' * depth}{found.asset} {found.version}  {found.created_at.astimezone():%Y-%m-%d %H:%M}  {found.rows:,} rows"


def _show_row(found: "RowTrace", as_json: bool) -> None:
    if as_json:
        touched = [{"asset": v.asset, "version": v.version} for v in found.touched]
        click.echo(to_json({"row": found.row, "places": found.places, "touched": touched}))
        return
    cli_output.show_table(("the row", ""), [(name, str(value)) for name, value in found.row.items()])
    places = [(p["asset"], p["version"], " ".join(f"{n}={v}" for n, v in p.items() if n not in ("asset", "version"))) for p in found.places]
    cli_output.show_table(("where", "version", "as"), places)
    cli_output.show_table(("touched", "version"), [(v.asset, v.version) for v in found.touched])
