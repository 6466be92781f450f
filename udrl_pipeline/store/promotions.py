"""Which student of a recipe is in use, and every decision that led there, sealed in a chain like the tombstones."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from udrl_pipeline.store.database import Connection
from udrl_pipeline.versioning import canonical, content_hash

Action = Literal["promoted", "refused", "rolled back"]
#: How a student stands. current: in use; refused: judged, and not put into use; former: was in use; candidate: nothing was decided.
State = Literal["current", "candidate", "refused", "former"]


@dataclass(frozen=True)
class Promotion:
    """One decision about a student.

    Attributes:
        asset: `student/<recipe>`.
        version: The student that it is about; of a rollback, the one that was taken out of use.
        decided_by: The gate, which reads the report, or a user.
        in_use: The version of the asset that is in use from then on; None where there is none.
        report: The report that was read; None where there was none.
        figures: What the reason counts. `against`: the student that it was compared with; of a user's act, `newest`: the newest
            student of the asset then, about which the gate has no say any more.
    """

    number: int
    asset: str
    version: str
    action: Action
    decided_by: Literal["gate", "user"]
    in_use: str | None
    report: str | None
    reason: str
    figures: dict[str, Any]
    run_id: str
    created_at: datetime

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number, "asset": self.asset, "version": self.version, "action": self.action, "by": self.decided_by,
            "in_use": self.in_use, "report": self.report, "reason": self.reason, "figures": self.figures, "run_id": self.run_id,
            "created_at": self.created_at.isoformat(),
        }  # fmt: skip


def read(connection: Connection) -> list[Promotion]:
    """Every entry, the oldest first."""
    found = connection.execute(f"SELECT {_COLUMNS} FROM promotions ORDER BY number").fetchall()
    told: list[list[Any]] = [[*row[:8], json.loads(row[8]), *row[9:]] for row in found]
    return [Promotion(*row) for row in told]


def enter(
    connection: Connection,
    asset: str,
    version: str,
    action: Action,
    *,
    by: Literal["gate", "user"],
    in_use: str | None,
    report: str | None,
    reason: str,
    figures: dict[str, Any],
    run_id: str,
) -> Promotion:
    """Enter a decision, sealed with the one before it."""
    number = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM promotions").fetchall()[0][0]
    row = [number, asset, version, action, by, in_use, report, reason, canonical(figures), run_id, datetime.now(UTC)]
    connection.execute(
        f"INSERT INTO promotions ({_COLUMNS}, seal) VALUES ({', '.join('?' * len(row))}, ?)", [*row, _seal(row, _last_seal(connection))]
    )
    return read(connection)[-1]


def edited(connection: Connection) -> Iterator[int]:
    """The numbers of entries that do not carry the seal that they should: they, or the one before, were edited or removed."""
    previous = ""
    for *row, carried in connection.execute(f"SELECT {_COLUMNS}, seal FROM promotions ORDER BY number").fetchall():
        if carried != _seal(row, previous):
            yield row[0]
        previous = carried


def in_use(entries: Iterable[Promotion]) -> dict[str, str]:
    """The version in use of each asset that has one, after these entries."""
    last = {entry.asset: entry.in_use for entry in entries}
    return {asset: version for asset, version in sorted(last.items()) if version}


def ways_back(entries: Iterable[Promotion]) -> list[str]:
    """The versions of one asset that were in use, each by the one before it, and are not rolled back; the last one is in use."""
    stack: list[str] = []
    for entry in entries:
        if entry.action == "promoted":
            stack.append(entry.version)
        elif entry.action == "rolled back":
            stack.pop()
    return stack


def states(entries: Iterable[Promotion]) -> dict[tuple[str, str], tuple[State, Promotion]]:
    """How each student stands about which something was decided, and the decision that says so."""
    found: dict[tuple[str, str], tuple[State, Promotion]] = {}
    used: dict[str, str | None] = {}
    for entry in entries:
        before, used[entry.asset] = used.get(entry.asset), entry.in_use
        if entry.action == "refused":
            found[entry.asset, entry.version] = ("refused", entry)
            continue
        if before and before != entry.in_use:
            found[entry.asset, before] = ("former", entry)
        if entry.in_use:
            found[entry.asset, entry.in_use] = ("current", entry)
    return found


_COLUMNS = "number, asset, version, action, decided_by, in_use, report, reason, figures, run_id, created_at"


def _seal(row: list[Any], previous: str) -> str:
    *told, at = row
    return content_hash([previous, *told, at.astimezone(UTC).isoformat()], 64)


def _last_seal(connection: Connection) -> str:
    found = connection.execute("SELECT seal FROM promotions ORDER BY number DESC LIMIT 1").fetchone()
    return found[0] if found else ""
