"""What the commands print: results on stdout, everything else on stderr, readable at 80 columns."""

import json
import logging
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from udrl_pipeline.characters import printable


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did for one asset."""

    asset: str
    version: str
    changed: bool
    seconds: float
    teacher_rows: int = 0
    teacher_tokens: int = 0
    train_steps: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """What stopped an asset: an input that is at fault, a blocking check, or a mistake of the program; or two books that disagree."""

    asset: str
    cause: Literal["input", "check", "books", "program"]
    name: str
    message: str


@dataclass
class Run:
    """How a run went."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    report: str | None = None
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        causes = {failure.cause for failure in self.failures}
        return 2 if "input" in causes else 1 if causes else 0


def safe(text: str) -> str:
    """Lines that a terminal shows and does not obey."""
    return "\n".join(printable(line) for line in text.split("\n"))


class _AboveBars(logging.Handler):
    """Log lines that do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # here: its import takes longer than some commands work

        tqdm.write(safe(self.format(record)), file=sys.stderr)


def progress_to_stderr() -> None:
    """Show what the library logs."""
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter("  %(message)s"))
    logger = logging.getLogger("udrl_pipeline")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def announce(asset: str, number: int, of: int) -> None:
    """Say which asset is being made."""
    from tqdm import tqdm

    tqdm.write(f"[{number}/{of}] {asset}", file=sys.stderr)


def show_run(run: Run, as_json: bool) -> None:
    """The end of `udrl run`: a table, or one line of JSON, on stdout; what went wrong on stderr."""
    complain(run)
    if as_json:
        print(json.dumps(run_as_json(run)), flush=True)
        return
    if not run.outcomes:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in ("asset", "version", "new"):
        table.add_column(header, no_wrap=True)
    for header in ("seconds", "teacher\nrows", "teacher\ntokens", "train\nsteps"):
        table.add_column(header, justify="right", no_wrap=True)
    for o in run.outcomes:
        changed = "[bold]yes[/]" if o.changed else "no"
        table.add_row(o.asset, o.version, changed, f"{o.seconds:.1f}", f"{o.teacher_rows:,}", f"{o.teacher_tokens:,}", f"{o.train_steps:,}")
    console = Console()
    console.print(table)
    if run.report:
        console.print(Text(f"report: {safe(run.report)}"), soft_wrap=True)


def run_as_json(run: Run) -> dict[str, object]:
    """Per asset what was made; the keys `failures` and `not_run` are there only when something went wrong."""
    found: dict[str, object] = {
        "assets": {o.asset: {name: value for name, value in asdict(o).items() if name != "asset"} for o in run.outcomes},
        "report": run.report,
    }
    if run.failures:
        found["failures"] = [asdict(failure) for failure in run.failures]
    if run.not_run:
        found["not_run"] = run.not_run
    return found


def complain(run: Run) -> None:
    """What went wrong, on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for failure in run.failures:
        if failure.cause == "check":
            console.print(_red("check failed", f"  {failure.asset}: {failure.name}, {failure.message}"))
        elif failure.cause == "input":
            error(failure.message, failure.asset)
        elif failure.cause == "books":
            console.print(_red("the books disagree", f"  {failure.asset}: {failure.message}"))
            console.print("  -> `udrl audit verify` tells whether the ledger is whole; a run of the asset enters its version in both")
        else:
            console.print(_red("this is a mistake of the program", f"  {failure.asset}\n{failure.message}"))
    if checked := sorted({failure.asset for failure in run.failures if failure.cause == "check"}):
        console.print(
            f"  -> `udrl audit quarantine` shows what {' and '.join(checked)} would do without, and why; the last good version stays"
        )
    if run.interrupted:
        console.print("[red]interrupted[/]  the next run resumes where this one stopped")
    if run.not_run:
        console.print(f"not made: {', '.join(run.not_run)}")


def error(message: str, asset: str = "") -> None:
    """A `UdrlError` for people: what and where in the first line, the remedy in the second."""
    Console(stderr=True, soft_wrap=True).print(_red("error", f"  {asset + '  ' if asset else ''}{message}"))


def _red(word: str, rest: str) -> Text:
    """A line that begins with a word in red. A `Text` is printed as it is: nothing in it counts as markup, a link or an emoji."""
    return Text.assemble((word, "red"), safe(rest))


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table on stdout; `right` names the columns of numbers. Where it is too wide the last column folds."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in headers:
        last = header == headers[-1]
        table.add_column(header, justify="right" if header in right else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    Console(highlight=False).print(table)


def counted(number: int, noun: str) -> str:
    """A number of things in words."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def wrapped(start: str, text: str) -> str:
    """A line that begins with `start`, broken at 80 columns, what follows standing below the text; below `start` where its first word
    would not fit beside it."""
    first = len(text.split(" ", 1)[0])
    if start.strip() and len(start) + first > 80:
        below = " " * max(0, min(len(start) - len(start.lstrip()) + 2, 80 - first))
        return f"{start.rstrip()}\n{wrapped(below, text)}"
    return textwrap.fill(text, 80, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False, break_on_hyphens=False)
