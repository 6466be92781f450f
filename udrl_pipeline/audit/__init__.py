"""Questions to the ledger. Here: which versions there are, and what was set aside; a module for each further question."""

from dataclasses import dataclass

from udrl_pipeline.audit.book import Book
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.workspace import Quarantined, Version, Workspace


def versions(workspace: Workspace, asset: str | None = None, book: Book | None = None) -> list[Version]:
    """Every version of an asset (default: of all), the newest first. One that was made again counts from then on.

    Args:
        book: The ledger, where it was read already.

    Raises:
        UdrlError: The asset has no version.
    """
    book = book or Book(workspace)
    newest = list({(made.asset, made.version): None for made in reversed(book.makings)})
    if asset and asset not in {name for name, _ in newest}:
        known = ", ".join(sorted({name for name, _ in newest})) or "none"
        raise UdrlError(f"no version of {asset!r}", where=str(workspace.folder), remedy=f"assets with versions: {known}")
    return [book.versions[key] for key in newest if asset in (None, key[0])]


@dataclass(frozen=True, slots=True)
class SetAside:
    """One row or line in quarantine, and the version that does without it."""

    asset: str
    version: str
    row: Quarantined


def quarantine(workspace: Workspace) -> list[SetAside]:
    """What the newest version of each asset does without, whether that version passed or not; sorted by asset, reason and item."""
    with workspace.database.reader() as connection:
        found = connection.execute(
            """WITH newest AS (SELECT asset, version FROM versions WHERE rowid IN (SELECT max(rowid) FROM versions GROUP BY asset))
               SELECT asset, version, item, reason, detail, text FROM quarantine JOIN newest USING (asset, version)
               ORDER BY asset, reason, item"""
        ).fetchall()
    return [SetAside(asset, version, Quarantined(*row)) for asset, version, *row in found]


def resolve(workspace: Workspace, name: str, book: Book | None = None) -> Version:
    """The version that a user means: `VERSION`, its first digits, or `ASSET@VERSION` where two assets share them; `ASSET` is the
    asset's current version, and `ASSET~n` the one n before it (of those that passed their checks). `book` is the ledger, where it was
    read already.

    Raises:
        UdrlError: There is none, or more than one.
    """
    known = versions(workspace, book=book)
    asset, tilde, back = name.partition("~")
    if asset in {version.asset for version in known} and (back.isdecimal() or not tilde):
        found = [v for v in known if v.asset == asset and v.verdict == "PASS"][int(back or 0) :][:1]
    else:
        asset, _, digits = name.rpartition("@")
        found = [v for v in known if v.version.startswith(digits) and asset in ("", v.asset)] if digits else []
    if len(found) == 1:
        return found[0]
    which = ", ".join(f"{v.asset}@{v.version}" for v in found[:5])
    meant = sorted({v.asset for v in known if v.asset.startswith(f"{name.partition('~')[0]}/")})
    raise UdrlError(
        f"{name!r} is more than one version" if found else f"there is no version {name!r}",
        where=str(workspace.folder),
        remedy=f"say which: {which}" if found else f"say which: {', '.join(meant)}" if meant else "`udrl audit versions` lists them",
    )
