"""Questions to the ledger. Here: which versions there are, and what was set aside; a module for each further question."""

from dataclasses import dataclass

from udrl_pipeline.errors import UdrlError
from udrl_pipeline.store.workspace import Quarantined, Version, Workspace


def versions(workspace: Workspace, asset: str | None = None) -> list[Version]:
    """Every version of an asset (default: of all), the newest first. One that was made again counts from then on.

    Raises:
        UdrlError: The asset has no version.
    """
    with workspace.database.reader() as connection:
        found = connection.execute(
            """SELECT asset, version FROM versions WHERE asset = ? OR ? IS NULL
               GROUP BY asset, version ORDER BY max(rowid) DESC""",
            [asset, asset],
        ).fetchall()
        known = [name for (name,) in connection.execute("SELECT DISTINCT asset FROM versions ORDER BY asset").fetchall()]
    if asset and not found:
        raise UdrlError(
            f"no version of {asset!r}", where=str(workspace.folder), remedy=f"assets with versions: {', '.join(known) or 'none'}"
        )
    return [version for name, text in found if (version := workspace.find(name, text))]


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
            """WITH newest AS (
                   SELECT asset, version FROM versions
                   QUALIFY row_number() OVER (PARTITION BY asset ORDER BY rowid DESC) = 1
               )
               SELECT asset, version, item, reason, detail, text FROM quarantine JOIN newest USING (asset, version)
               ORDER BY asset, reason, item"""
        ).fetchall()
    return [SetAside(asset, version, Quarantined(*row)) for asset, version, *row in found]


def resolve(workspace: Workspace, name: str) -> Version:
    """The version that a user means: `VERSION`, its first digits, or `ASSET@VERSION` where two assets share them.

    Raises:
        UdrlError: There is none, or more than one.
    """
    asset, _, digits = name.rpartition("@")
    found = [v for v in versions(workspace) if v.version.startswith(digits) and asset in ("", v.asset)] if digits else []
    if len(found) == 1:
        return found[0]
    which = ", ".join(f"{v.asset}@{v.version}" for v in found[:5])
    raise UdrlError(
        f"{name!r} is more than one version" if found else f"there is no version {name!r}",
        where=str(workspace.folder),
        remedy=f"say which: {which}" if found else "`udrl audit versions` lists them",
    )
