"""What `udrl status` prints."""

import textwrap
from datetime import datetime

import click

from udrl_pipeline.characters import printable, to_json
from udrl_pipeline.cli_output import show_table
from udrl_pipeline.status import Status

#: Seconds of each unit of an age, the largest first.
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def show_status(found: Status, as_json: bool) -> None:
    """Tables on stdout, or one JSON object."""
    if as_json:
        click.echo(to_json(found.as_dict()))
        return
    if found.locked:
        _say("ledger", "another process writes to it just now: ask again")
    rows = []
    for s in found.assets:
        made = s.current
        told = (made.version, age(made.created_at, found.at), f"{made.rows:,}", s.verdict) if made else ("none yet", "", "", s.verdict)
        rows.append((s.asset, *told, "stale" if s.stale else ""))
    if rows:
        show_table(("asset", "version", "age", "rows", "verdict", ""), rows, right=("age", "rows"))
    for s in found.assets:
        if s.stale:
            _say("stale", f"{s.asset}: {s.stale}")
    for r in found.running:
        since = f" for {age(r.since, found.at)}" if r.since else ""
        _say(r.state, f"{r.asset or 'a run'}{since}, run {r.run_id}{f', process {r.process}' if r.process else ''}")
    for f in found.failed:
        at = f"{f.at.astimezone():%Y-%m-%d %H:%M}, " if f.at else ""
        _say("failed", f"{f.asset or 'a run'}: {f.message} ({f.cause}, {at}run {f.run_id})")
    for (asset, reason), count in found.quarantined.items():
        _say("set aside", f"{asset}: {count:,} {reason}")
    for student in found.students:
        _say(student.state, f"{student.student.asset} {student.student.version}: {student.why}")
    if not any(s.stale for s in found.assets) and found.assets:
        click.echo("everything is up to date")


def _say(what: str, text: str) -> None:
    start = f"{what:<10} "
    click.echo(textwrap.fill(printable(text), 80, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False))


def age(then: datetime, now: datetime) -> str:
    """How long ago, in its largest unit."""
    seconds = max(0, round((now - then).total_seconds()))
    unit, length = next(((unit, length) for unit, length in UNITS if seconds >= length), UNITS[-1])
    return f"{seconds // length} {unit}"
