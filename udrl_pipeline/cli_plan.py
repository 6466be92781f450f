"""`udrl plan`: what a number of rows costs, on paper."""

import math
from typing import TYPE_CHECKING, Any

import click

from udrl_pipeline import cli_output
from udrl_pipeline.characters import to_json
from udrl_pipeline.cli_settings import read_settings, settings_options
from udrl_pipeline.errors import PlanError

if TYPE_CHECKING:
    from udrl_pipeline.plan import Limit, Plan


@click.command(short_help="What 1e6, 1e8, 1e9 rows cost, and what gives way first.")
@click.option("--rows", type=float, multiple=True, help="A number of rows, such as 1e7; repeatable.  [default: 1e6, 1e8 and 1e9]")
@click.option("--teacher-tokens-per-s", type=float, metavar="RATE", help="Of one teacher.  [default: the measured one, without a GPU]")
@click.option("--gpus", type=int, metavar="N", help="GPUs with a teacher each; with --teacher-tokens-per-s of one of them.")
@click.option("--training-tokens-per-s", type=float, metavar="RATE", help="Of all processes of a training.  [default: the measured one]")
@click.option("--scored-rows-per-s", type=float, metavar="RATE", help="Of all scorers.  [default: the measured one]")
@click.option("--memory-gb", type=float, default=24, show_default=True, metavar="GB", help="Memory of the machine.")
@click.option("--days", type=float, default=7, show_default=True, metavar="DAYS", help="How long one step may take.")
@click.option("--versions", type=int, default=1, show_default=True, metavar="N", help="Snapshots of corpus and dataset that are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
@settings_options
def plan(
    rows: tuple[float, ...], as_json: bool, params: str | None, preset: str | None, overrides: tuple[str, ...], **machine: Any
) -> None:
    """Tell what rows would cost in each step, and at how many of them what gives way. Nothing is run or read but params.yaml.

    The rates are those that were measured on two CPU cores (docs/scale.md). Those of a GPU are yours to give:

    udrl plan --rows 1e7 --gpus 8 --teacher-tokens-per-s RATE
    """
    from udrl_pipeline.plan import MOST_ROWS, SIZES, Machine, make_plan

    for number in rows:
        if not (math.isfinite(number) and 1 <= number <= MOST_ROWS):
            raise PlanError(f"{number:g} is no number of rows", where="--rows", remedy=f"give one from 1 to {MOST_ROWS:g}")
    made = make_plan(read_settings(params, preset, overrides), Machine(**machine))
    asked = sorted(set(rows or SIZES))
    if as_json:
        click.echo(to_json({"machine": machine, **made.as_dict(asked)}))
        return
    _show_costs(made)
    _show_sizes(made, asked)
    _show_limits(made, asked)


def _show_costs(made: "Plan") -> None:
    """Each part's share of a million rows."""
    click.echo(f"The settings stand for {made.rows_now:,} rows. A million costs:")
    lines, before = [], ""
    for part in made.parts:
        costs = part.costs(1e6)
        lines.append((part.step if part.step != before else "", part.name, *map(_cell, costs, costs.values())))
        before = part.step
    cli_output.show_table(("step", "part", "hours", "tokens", "disk", "memory"), lines, right=("hours", "tokens", "disk", "memory"))


def _show_sizes(made: "Plan", sizes: list[float]) -> None:
    headers = ("rows", "corpus h", "dataset h", "student h", "all h", "disk", "memory")
    lines = []
    for rows in sizes:
        whole = made.costs(rows)
        steps = [made.costs(rows, step) for step in ("teacher_corpus", "labeled_dataset", "student")]
        hours = [_hours(costs["hours"]) for costs in (*steps, whole)]
        lines.append((_number(rows), *hours, _cell("bytes", whole["bytes"]), _cell("memory_bytes", whole["memory_bytes"])))
    cli_output.show_table(headers, lines, right=headers)


def _show_limits(made: "Plan", sizes: list[float]) -> None:
    """What gives way, up to the first that stands at all of the sizes; and what to do about each."""
    following = made.next(sizes[-1])
    limits = [*made.met(sizes[-1]), *([following] if following else [])]
    click.echo("What gives way from how many rows on, and how many times over it is at these:")
    headers = ("", "gives way", "from", *map(_number, sizes))
    lines = [(str(n), met.name, _number(met.rows), *(_times(rows, met) for rows in sizes)) for n, met in enumerate(limits, start=1)]
    cli_output.show_table(headers, lines, right=("", *headers[2:]))
    for n, limit in enumerate(limits, start=1):
        click.echo(cli_output.wrapped(f"{n:>2}  ", f"{limit.setting or 'no setting yet'}: {limit.change}"))


def _times(rows: float, limit: "Limit") -> str:
    if rows <= limit.rows:
        return ""
    return f"{rows / limit.rows:,.2g} x" if 0 < rows < 100 * limit.rows else f"{rows / limit.rows:,.0f} x" if limit.rows else "always"


def _number(rows: float) -> str:
    """1e6, 3.3e6, 500."""
    return f"{rows:.2g}".replace("e+0", "e").replace("e+", "e")


def _cell(name: str, value: float) -> str:
    if name == "hours":
        return _hours(value)
    return _short(value, "B" if "bytes" in name else "") if value else ""


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value else ""


def _short(value: float, unit: str) -> str:
    """Three digits at most, with a prefix: 383 MB."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:,.3g} {prefix}{unit}" if value < 1000 * size else f"{value / size:,.0f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()
