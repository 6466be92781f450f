"""Rows worked on by the workers of a Ray cluster: sharded by Ray Data, written as Parquet, handed to the one process that commits them.

The plan (a row group a shard) and what the workers make of it (parts, each written aside and renamed) lie in `scratch`, which every node
sees; through Ray's object store go the numbers of shards alone. So a lost node takes at most the parts with it that it was at work on: Ray
starts the worker elsewhere and the shard again, which goes on behind its last part. A run that was killed leaves its parts to the next one.
"""

import logging
import math
import os
import pickle
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from udrl_pipeline.errors import ClusterError, UdrlError
from udrl_pipeline.settings import RaySettings
from udrl_pipeline.store.database import typed_errors
from udrl_pipeline.store.workspace import Workspace

logger = logging.getLogger(__name__)

#: Where shards lie in the scratch folder of their asset.
SHARDS, PLAN, PART = "shards", "plan.parquet", ".part.parquet"
SHARDS_PER_WORKER = 4
#: Bytes of the object store of a cluster that a step starts for itself: nothing but numbers of shards lies there.
OBJECT_STORE = 2**28
#: How long a file that a worker has written may take to be seen here (network file systems).
SEEN_WITHIN_S = 60.0
SHARED = "set `scratch` in params.yaml to a folder that every node sees under this path"


class Work(Protocol):
    """What a worker does with rows; opened once a worker."""

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        """What was made of the rows, with their `row_key`."""

    def close(self) -> None:
        """End what was opened."""


@dataclass(frozen=True)
class Sizes:
    """Rows of a shard, of the first part that a worker makes, and of the part after one of so many rows in so many seconds."""

    shard: int
    first: int
    following: Callable[[int, float], int]


@dataclass(frozen=True)
class Made:
    """What came of a shard: the table of `Work` (none: nothing), and what could not be made (row_key), with the reason."""

    rows: pd.DataFrame | None
    left: Sequence[str] = ()
    reason: str = ""


@dataclass(frozen=True)
class Told:
    """What a worker tells of a shard: its files, what could not be made (row_key) and why; or what ends the run."""

    parts: Sequence[str] = ()
    left: Sequence[str] = ()
    reason: str = ""
    fatal: UdrlError | None = None


def shard_rows(rows: int, most: int, options: RaySettings) -> int:
    """Rows of a shard, so that each worker gets several: the last ones to end are waited for less."""
    return max(1, min(most, math.ceil(rows / (SHARDS_PER_WORKER * options.workers))))


@contextmanager
def connected(options: RaySettings) -> Iterator[Any]:
    """The module `ray`, connected to the cluster that the settings name; one that was connected before stays so.

    Raises:
        ClusterError: Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ClusterError("Ray is not installed", where="params.yaml: cluster", remedy="run `make ray`, or set `cluster: null`") from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports home otherwise
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    started = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.WARNING, **started)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"the cluster cannot be reached: {str(error).splitlines()[0]}", where=f"ray.address: {address}",
            remedy="start it (`ray start --head`), run on one of its machines, or correct ray.address in params.yaml",
        ) from error  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()


def work_on(workspace: Workspace, asset: str, rows: pd.DataFrame, start: Callable[[], Work], sizes: Sizes, gpus: float) -> Generator[Made]:
    """Have the cluster work on rows (with a `row_key`), and tell of each shard as it ends. What is handed out is the caller's to commit
    before it asks for more; then the files are dropped.

    Args:
        start: Opens the work on a worker; it is pickled.
        gpus: What a worker takes of them.

    Raises:
        ClusterError: There is no such cluster, or its nodes do not see the scratch folder.
        UdrlError: The work cannot be opened on a worker.
    """
    options, folder = workspace.settings.ray, workspace.scratch_folder(asset, SHARDS)
    for found in _left_behind(folder):
        yield Made(found)
        rows = rows[~rows.row_key.isin(found.row_key)]
    if rows.empty:
        return
    shards = folder / uuid.uuid4().hex
    shards.mkdir()
    parquet.write_table(pa.Table.from_pandas(rows, preserve_index=False), shards / PLAN, row_group_size=sizes.shard)
    number = math.ceil(len(rows) / sizes.shard)
    workers = min(options.workers, number)
    with connected(options) as ray:
        _warn_of_what_no_node_has(ray, options.cpus, gpus)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        done = ray.data.from_arrow([pa.table({"shard": [shard]}) for shard in range(number)]).map_batches(
            _Worker,
            fn_constructor_kwargs={"folder": shards, "start": start, "sizes": sizes, "attempts": options.attempts},
            batch_size=1,
            # no fixed number: one whose node is gone could wait for ever for the place that an idle one holds
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=workers,
                initial_size=workers,
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=options.cpus,
            num_gpus=gpus,
        )
        for batch in done.iter_batches(batch_size=1, prefetch_batches=0):
            told: Told = pickle.loads(batch["told"][0])
            if told.fatal:
                raise told.fatal
            made = [_read(shards / part) for part in told.parts]
            yield Made(pd.concat(made, ignore_index=True) if made else None, told.left, told.reason)
    workspace.drop_scratch(asset, SHARDS)


def _left_behind(folder: Path) -> Generator[pd.DataFrame]:
    """What workers of runs that did not end had finished, once; a file that cannot be read is not there."""
    for shards in [path for path in folder.iterdir() if path.is_dir()]:
        for part in sorted(shards.glob(f"*{PART}")):
            try:
                yield pd.read_parquet(part)
            except (OSError, pa.ArrowException) as error:
                logger.warning("%s cannot be read, so its rows are made again: %s", part, error)
        shutil.rmtree(shards, ignore_errors=True)


def _read(part: Path) -> pd.DataFrame:
    until = time.monotonic() + SEEN_WITHIN_S
    while not part.exists():
        if time.monotonic() > until:
            raise ClusterError("a worker wrote it, and it is not seen here", where=str(part), remedy=SHARED)
        time.sleep(0.2)
    return pd.read_parquet(part)


def _warn_of_what_no_node_has(ray: Any, cpus: float, gpus: float) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        logger.warning("none of %d nodes has the %g CPUs and %g GPUs that a worker takes: waiting for one that has", len(nodes), cpus, gpus)


class _Worker:
    """Works on one shard after the other. It fails by telling, not by an error: the other shards go on."""

    def __init__(self, folder: Path, start: Callable[[], Work], sizes: Sizes, attempts: int) -> None:
        self._folder, self._start, self._sizes, self._attempts = folder, start, sizes, attempts
        self._work: Work | None = None
        self._size = sizes.first

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        shard = int(batch["shard"][0])
        try:
            left, reason = self._make(shard)
            told = Told(self._parts(shard), left, reason)
        except UdrlError as error:  # not this shard's fault: the run ends with it
            told = Told(fatal=error)
        except Exception as error:
            logger.exception("shard %d", shard)
            told = Told(fatal=ClusterError(f"a worker failed: {type(error).__name__}: {error}", where=socket.gethostname()))
        return {"told": [pickle.dumps(told)]}

    @cached_property
    def _plan(self) -> parquet.ParquetFile:
        plan = self._folder / PLAN
        if not plan.exists():
            raise ClusterError(f"is not seen by a worker on {socket.gethostname()}", where=str(plan), remedy=SHARED)
        return parquet.ParquetFile(plan)

    def _make(self, shard: int) -> tuple[list[str], str]:
        """Make the parts of a shard that are not there. Returns which rows could not be made, and why."""
        rows = self._plan.read_row_group(shard).to_pandas()
        while True:
            have = {key for part in self._parts(shard) for key in pd.read_parquet(self._folder / part, columns=["row_key"]).row_key}
            left = rows[~rows.row_key.isin(have)]
            begun = sorted(self._folder.glob(f"{shard}.begun.*"))
            if left.empty:
                return [], ""
            if len(begun) >= self._attempts:
                reasons = [text for file in begun if (text := file.read_text(encoding="utf-8"))]
                return left.row_key.tolist(), reasons[-1] if reasons else f"its worker died {len(begun)} times"
            mark = self._folder / f"{shard}.begun.{len(begun)}"
            mark.touch()
            if self._opened(last=len(begun) + 1 == self._attempts):
                self._make_parts(shard, left, mark)

    def _opened(self, last: bool) -> bool:
        """Whether the work can be asked; at the last attempt an error tells why not."""
        try:
            self._work = self._work or self._start()
        except Exception:
            if last:
                raise
            time.sleep(1)  # what stands in its way, such as the memory of one that was killed, may go
        return self._work is not None

    def _make_parts(self, shard: int, rows: pd.DataFrame, mark: Path) -> None:
        """Make and write part after part; an error of the work is entered into `mark` and ends it."""
        done = 0
        while done < len(rows):
            began, size = time.monotonic(), self._size
            try:
                assert self._work is not None
                made = self._work(rows.iloc[done : done + size])
            except Exception as error:
                told = error.what if isinstance(error, UdrlError) else f"{type(error).__name__}: {error}"
                logger.warning("shard %d failed: %s", shard, told)
                mark.write_text(told, encoding="utf-8")
                self._close()
                return
            file = self._folder / f"{shard}.{uuid.uuid4().hex}{PART}"
            staged = file.with_suffix(".staged")
            with typed_errors(file):
                made.to_parquet(staged, index=False)
                staged.replace(file)
            if len(made) == size:  # what is left of a shard tells nothing of a larger part
                self._size = self._sizes.following(size, time.monotonic() - began)
            done += size

    def _parts(self, shard: int) -> list[str]:
        return sorted(path.name for path in self._folder.glob(f"{shard}.*{PART}"))

    def _close(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.close()

    def __del__(self) -> None:
        self._close()
