"""What versions have lost since they were made: the rows that tombstones took out of their files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from udrl_pipeline.audit.book import Book, Key
from udrl_pipeline.store.names import STUDENTS
from udrl_pipeline.store.tombstones import ForgottenFile, Tombstone
from udrl_pipeline.store.workspace import Version


@dataclass(frozen=True, slots=True)
class Loss:
    """What one tombstone took out of one version.

    Attributes:
        rows: How many; 0 where the files were deleted, None where the tombstone is from before it was counted.
    """

    stone: Tombstone
    rows: int | None
    deleted: bool = False


Losses = Mapping[Key, Sequence[Loss]]


def files_of(book: Book, stones: Sequence[Tombstone], version: Version) -> Iterator[tuple[Tombstone, ForgottenFile]]:
    """The files of a version that held what was forgotten. A version that was made again since then is whole."""
    for stone in stones:
        for file in stone.files:
            if (file.asset, file.version) == (version.asset, version.version) and book.place(version) < stone.makings:
                yield stone, file


def losses(book: Book, stones: Sequence[Tombstone]) -> dict[Key, list[Loss]]:
    """What each version that lacks something has lost, the oldest tombstone first."""
    found: dict[Key, list[Loss]] = {}
    for key in dict.fromkeys((file.asset, file.version) for stone in stones for file in stone.files):
        if key in book.versions:
            lost = {stone.number: Loss(stone, file.rows, file.after is None) for stone, file in files_of(book, stones, book.versions[key])}
            if lost:
                found[key] = list(lost.values())
    return found


def lost_rows(version: Version, lost: Losses) -> int | None:
    """How many rows a version has lost; None where that was not counted."""
    counts = [loss.rows for loss in lost.get((version.asset, version.version), ())]
    return None if None in counts else sum(count for count in counts if count)


def size(version: Version, lost: Losses) -> str:
    """How large a version was when it was made, and what it has lost since; what a student counts are the sequences it has read."""
    noun = "sequence" if version.asset.startswith(STUDENTS) else "row"
    told = f"{version.rows:,} {noun}{'s' if version.rows != 1 else ''}"
    since = lost.get((version.asset, version.version), ())
    if any(loss.deleted for loss in since):
        return f"{told}, deleted since"
    rows = lost_rows(version, lost)
    return told if rows == 0 else f"{told}, {'some' if rows is None else f'{rows:,}'} forgotten since"
