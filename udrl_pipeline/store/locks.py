"""Who makes an asset: one process at a time, named beside the lock that it holds."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from udrl_pipeline.errors import StoreLocked
from udrl_pipeline.store.database import typed_errors

logger = logging.getLogger(__name__)

FOLDER = ".locks"
#: The file beside a lock that says who holds it.
HOLDER = ".holder.json"


@dataclass(frozen=True)
class Holder:
    """A process that makes an asset; or was killed while it did (`lives` is false)."""

    asset: str
    run_id: str
    process: int
    since: datetime
    lives: bool


@contextmanager
def hold(artifacts: Path, asset: str, run_id: str, wait_s: float) -> Iterator[None]:
    """Keep other processes from making an asset. The operating system frees the lock when its holder dies; what that one had half
    written is cleared away.

    Raises:
        StoreLocked: Another process makes it, and still does after `wait_s` seconds.
    """
    path = artifacts / FOLDER / f"{asset.replace('/', '-')}.lock"
    held = FileLock(path, timeout=wait_s)
    with typed_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire()
        except Timeout:
            raise StoreLocked(f"another process is making {asset}", where=str(path), remedy="wait until that run has ended") from None
    holder = path.with_suffix(HOLDER)
    try:
        told = {"asset": asset, "run_id": run_id, "process": os.getpid(), "since": datetime.now(UTC).isoformat()}
        try:
            holder.write_text(json.dumps(told), encoding="utf-8")
        except OSError as error:  # a full disk stops nobody who finds everything made
            logger.warning("`udrl status` cannot tell who makes %s: %s", asset, error)
        for left in (artifacts / asset).glob(".*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        try:
            holder.unlink(missing_ok=True)
        finally:
            held.release()


def holders(artifacts: Path) -> list[Holder]:
    """Who makes an asset now, and who was killed while making one that nobody has made since; waits for nobody."""
    found = []
    for file in sorted((artifacts / FOLDER).glob(f"*{HOLDER}")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue  # it has just ended, or just begun
        lock = FileLock(file.with_name(file.name.removesuffix(HOLDER) + ".lock"), timeout=0)
        try:
            with lock:
                lives = False
        except Timeout:
            lives = True
        found.append(Holder(told["asset"], told["run_id"], told["process"], datetime.fromisoformat(told["since"]), lives))
    return found
