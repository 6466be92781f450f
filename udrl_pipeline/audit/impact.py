"""What has a row, an idea, a source or a run touched? Every version that holds it, and every student and report made from these."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from udrl_pipeline.audit.book import Book, Key
from udrl_pipeline.audit.losses import losses
from udrl_pipeline.audit.rows import Rows, Standing, intents_holding, rows_where, set_aside, standing, standing_before
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.intents import normalise
from udrl_pipeline.store.names import CORPUS, EXPORTS, REPORT, SEEN_FILE, STUDENTS
from udrl_pipeline.store.tombstones import Tombstone, about, subject_of
from udrl_pipeline.store.workspace import Version, Workspace

BY_ROW, BY_INTENT = "row_key = ?", "intent_key = ?"


@dataclass(frozen=True, slots=True)
class Touched:
    """A version that has to do with certain rows, and how; `learned` where it is a student that was trained on them."""

    version: Version
    how: str
    learned: bool = False


@dataclass(frozen=True)
class Impact:
    """What rows have touched.

    Attributes:
        what: The question, in words.
        rows: How many rows of the store it is about.
        touched: In the order of the ledger.
    """

    what: str
    rows: int
    touched: list[Touched]


def impact_of_row(workspace: Workspace, key: str) -> Impact:
    """What one row has touched, also where it was forgotten since.

    Raises:
        UdrlError: There never was such a row.
    """
    return _of_rows(workspace, f"row {key}", BY_ROW, key, remedy="row keys stand in the versions' rows.parquet")


def impact_of_intent(workspace: Workspace, text: str) -> Impact:
    """What the rows of an idea have touched, also where it was forgotten since.

    Raises:
        UdrlError: Nothing was ever made for it.
    """
    return _of_rows(workspace, f"idea {text!r}", BY_INTENT, normalise(text), remedy="write the idea as its file has it")


def _of_rows(workspace: Workspace, what: str, condition: str, value: str, remedy: str) -> Impact:
    rows, book = rows_where(workspace, condition, value), Book(workspace)
    with ThreadPoolExecutor(1) as beside:
        holding = beside.submit(intents_holding, workspace, book, value) if condition == BY_INTENT else None
        where = standing(workspace, book, rows)
    ideas = holding.result() if holding else []
    if not rows and not ideas:
        if stones := about(workspace.tombstones(), subject_of(value) if condition == BY_INTENT else value):
            return _of_forgotten(workspace, book, what, stones)
        raise UdrlError(f"there is no {what}", where=workspace.database.where, remedy=remedy)
    found = {key: Touched(book.versions[key], "holds the idea") for key in ideas}
    found |= {key: Touched(book.versions[key], _held(held)) for key, held in where.tables.items()}
    found |= {key: Touched(book.versions[key], "its table is gone: whether it holds them is not known") for key in where.unknown}
    for asset, version, _, reason in set_aside(workspace, list(rows)):
        if (asset, version) in book.versions:
            found.setdefault((asset, version), Touched(book.versions[asset, version], f"set aside: {reason}"))
    found |= {(t.version.asset, t.version.version): t for t in touched_by(workspace, book, where)}
    return Impact(what, len(rows), [found[key] for key in book.versions if key in found])


def _of_forgotten(workspace: Workspace, book: Book, what: str, stones: list[Tombstone]) -> Impact:
    """What it had touched when it was forgotten, and what was made of that since: tombstones keep the keys of its rows."""
    where = standing_before(workspace, book, stones)
    found: dict[Key, Touched] = {}
    for key, of_it in losses(book, stones).items():
        held = "showed it" if of_it[-1].deleted else f"held {_rows(of_it[-1].rows)}" if key in where.tables else "held the idea"
        found[key] = Touched(book.versions[key], f"{held} until tombstone {of_it[-1].stone.number}{', deleted' * of_it[-1].deleted}")
    for asset, version, _, reason in set_aside(workspace, sorted({key for stone in stones for key in stone.row_keys})):
        if (asset, version) in book.versions:
            found.setdefault((asset, version), Touched(book.versions[asset, version], f"set aside: {reason}"))
    for touched in touched_by(workspace, book, where):
        found.setdefault((touched.version.asset, touched.version.version), touched)
    told = ", ".join(f"tombstone {stone.number}: {stone.reason}" for stone in stones)
    return Impact(f"{what}, forgotten ({told})", 0, [found[key] for key in book.versions if key in found])


def learned_forgotten(workspace: Workspace, book: Book, stones: list[Tombstone]) -> list[Touched]:
    """The students and exports that have learned what tombstones took out; the current ones first."""
    found = [touched for touched in touched_by(workspace, book, standing_before(workspace, book, stones)) if touched.learned]
    return sorted(found, key=lambda touched: not book.is_current(touched.version))


def impact_of_source(workspace: Workspace, digest: str) -> Impact:
    """What the rows of a source (a teacher's digest, or `student/udrl@version`; its first digits suffice) have touched.

    Raises:
        UdrlError: No version holds a row of it, or the digits fit several.
    """
    return _of_holdings(workspace, "source", digest)


def impact_of_run(workspace: Workspace, run_id: str) -> Impact:
    """What a run has touched: the versions that it made, and those that hold rows that it wrote.

    Raises:
        UdrlError: There is no such run.
    """
    return _of_holdings(workspace, "run_id", run_id)


def _of_holdings(workspace: Workspace, column: str, digits: str) -> Impact:
    book, what = Book(workspace), "run" if column == "run_id" else "source"
    with workspace.database.reader() as connection:
        held = connection.execute(
            f"""SELECT asset, version, {column}, CAST(sum(rows) AS BIGINT) FROM holdings WHERE starts_with({column}, ?)
                GROUP BY asset, version, {column}""",
            [digits],
        ).fetchall()
        counted = f"SELECT {column}, count(*) FROM rows WHERE starts_with({column}, ?) GROUP BY {column}"
        stored = connection.execute(counted, [digits]).fetchall()
    made = {(v.asset, v.version): v.run_id for v in book.makings if what == "run" and v.run_id.startswith(digits)}
    names = {name for _, _, name, _ in held} | {name for name, _ in stored} | set(made.values())
    if len(names) != 1 or not digits:
        raise UdrlError(
            f"there is no {what} {digits!r}" if not names else f"{digits!r} is more than one {what}",
            where=workspace.database.where,
            remedy=f"say which: {', '.join(sorted(names)[:5])}" if names else f"`udrl audit trace VERSION` shows each version's {what}",
        )
    found = {(asset, version): Touched(book.versions[asset, version], f"holds {_rows(rows)}") for asset, version, _, rows in held}
    found = {key: Touched(book.versions[key], "made by it") for key in made} | found
    for key in reversed([key for key in book.versions if key in found]):  # the nearest is the one to name
        for version in book.descendants(book.versions[key]):
            found.setdefault((version.asset, version.version), Touched(version, f"made from {key[0]} {key[1]}"))
    return Impact(f"{what} {names.pop()}", sum(rows for _, rows in stored), [found[key] for key in book.versions if key in found])


def touched_by(workspace: Workspace, book: Book, where: Standing) -> list[Touched]:
    """The students and reports made from the versions that hold certain rows, in the order of the ledger."""
    below: set[Key] = set()
    for key in where.tables:
        version = book.versions[key]
        # a student learns from datasets, which set rows aside; only a report also looks at the corpus itself
        made = (v for v in book.children(version) if v.asset == REPORT) if version.asset == CORPUS else book.descendants(version)
        below |= {(v.asset, v.version) for v in made} - where.tables.keys()
    return [_touched(workspace, book, version, where.times) for key, version in book.versions.items() if key in below]


def _touched(workspace: Workspace, book: Book, version: Version, times: Mapping[Key, int]) -> Touched:
    if version.asset.startswith(EXPORTS):
        [student] = book.parents(version)
        of_student = _touched(workspace, book, student, times)
        return Touched(version, f"the export of {student.asset} {student.version}: {of_student.how}", of_student.learned)
    if not version.asset.startswith(STUDENTS):
        return Touched(version, "made from a version that holds them")
    if own := times.get((version.asset, version.version)):
        return Touched(version, f"trained on them, {own} time{'s' if own != 1 else ''}", learned=True)
    for earlier in _started_from(book, version):
        if times.get((earlier.asset, earlier.version)):
            return Touched(version, f"goes on from {earlier.asset} {earlier.version}, which was trained on them", learned=True)
    if not (workspace.version_folder(version.asset, version.version) / SEEN_FILE).exists():
        return Touched(version, "made from a version that holds them; what it was trained on is not recorded", learned=True)
    return Touched(version, "not trained on them")


def _started_from(book: Book, student: Version) -> list[Version]:
    """The students that a student goes on from, the nearest first."""
    found: list[Version] = []
    waiting = [student]
    while waiting:
        for parent in book.parents(waiting.pop(0)):
            if parent.asset.startswith(STUDENTS) and parent not in found:
                found.append(parent)
                waiting.append(parent)
    return found


def _rows(count: int | None) -> str:
    return "rows" if count is None else f"{count:,} row{'s' if count != 1 else ''}"


def _held(rows: Rows) -> str:
    count = f"holds {_rows(len(rows))}"
    if "split" not in rows[0]:
        return count
    splits = ", ".join(f"{n} {split}" for split, n in Counter(row["split"] for row in rows).most_common())
    return f"{count} ({splits})"
