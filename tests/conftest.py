"""What all tests share: small settings, a workspace of their own, and a fake teacher that is fast and counts its rows."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from dagster._core.storage.defs_state.base import set_defs_state_storage
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# before any import of these libraries: no test asks a hub, none reports home
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GX_ANALYTICS_ENABLED"] = "false"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# models this small gain nothing from threads, and lose much where these wait for a core that another process has
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the thousands of commits of the stores and of Dagster's histories need not wait for a disk: on one that takes 7 ms the suite took
# twice as long
if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

from udrl_pipeline import settings as settings_module
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.metrics import SWITCHES
from udrl_pipeline.pages import PAGES_ENV
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.database import Database
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.teacher import Refusal, Reply, Request

REPOSITORY = Path(__file__).parent.parent
# models are fetched and converted once for all tests, as for the runs beside them
os.environ.setdefault("UDRL_MODELS", str(REPOSITORY / ".models"))

hypothesis_settings.register_profile(
    "fast", max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
hypothesis_settings.load_profile("fast")

#: How the tests' params.yaml differs from the project's.
SMALL: dict[str, object] = {
    "intents.builtin": 6,
    "teacher.recorded": False,
    "teacher.engine": "transformers",
    "teacher.samples": 1,
    "teacher.chunk_rows": 8,
    "student.init_from": "pruned-teacher",
    "student.epochs": 1.0,
    "student.learning_rate": 1.2e-3,
}
DETAILS = re.findall(
    r"\w+",
    """
    amber angle banner blossom bokeh border bright canvas cedar ceramic cinematic cloud cobalt copper coral corner crimson crystal
    dawn detail drizzle dusk ember fabric feather fern foil frame frost garden glass glow golden grain granite harbour haze headline
    horizon indigo ivory jade lantern lavender leather lens linen macro marble margin meadow mirror mist moonlit mosaic mural muted
    neon oak ochre olive opal orchid palette panel paper pastel pearl pine portrait quartz rain ribbon river rustic saffron sand
    shadow silk silver sketch slate smoke sparkle spruce stone studio sunbeam teal texture timber tulip twilight velvet vignette
    vintage violet walnut watercolour willow window winter wool
    """,
)


class FakeEngine:
    """A teacher that answers at once: about as many words as asked, the same text to the same request.

    Args:
        dies_after: After so many rows the engine fails, in the middle of a chunk.
        refuses: Words; a request whose idea holds one of them is refused.
        seconds_per_row: How slow it is.
    """

    name = "fake"

    def __init__(
        self, dies_after: int | None = None, refuses: tuple[str, ...] = (), seconds_per_row: float = 0.0, version: str = "1"
    ) -> None:
        self.dies_after, self.refuses, self.seconds_per_row, self.version = dies_after, refuses, seconds_per_row, version
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.opened = self.closed = 0

    @property
    def rows(self) -> int:
        """Rows asked of it so far."""
        return len(self.requests)

    def generate(self, requests: list[Request]) -> list[Reply | Refusal]:
        self.batches.append(len(requests))
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        self.closed += 1

    def _answer(self, request: Request) -> Reply | Refusal:
        if self.dies_after is not None and self.rows >= self.dies_after:
            raise TeacherError("the fake teacher died", where="test", remedy="run again")
        self.requests.append(request)
        time.sleep(self.seconds_per_row)
        idea = idea_of(request)
        if any(word in idea for word in self.refuses):
            return Refusal("the fake teacher does not like it")
        text = self.text(request)
        return Reply(text, 2 * len(text.split()), "stop")

    @staticmethod
    def text(request: Request) -> str:
        """The idea, then details drawn by the whole request."""
        words = re.search(r"Words: (\d+)", request.messages[-1]["content"])
        idea, asked = idea_of(request), int(words[1]) if words else 12
        draw = hashlib.sha256(repr(request.messages).encode()).digest() * 20
        details = sorted(DETAILS, key=lambda detail: hashlib.sha256(draw + detail.encode()).digest())
        return " ".join([idea.capitalize() + ",", *details[: max(asked - len(idea.split()), 1)]])


def idea_of(request: Request) -> str:
    """The idea that a request is about."""
    return request.messages[-1]["content"].split("\n")[0].removeprefix("Idea: ")


#: A server that hangs fails its test within a minute. The thread ends the process: event loops and pools of threads wait on after the
#: exception of a signal.
SERVERS = ("app", "batching", "completions", "hostile", "reload", "server")


#: Files that take the longest come first, so that no process of the suite is left alone with one of them at the end.
LONGEST = ("assets_run", "torture", "student_training", "exploration", "evaluation_report", "vllm_engine", "incremental", "dvc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)
    for item in items:
        if item.path.stem.removeprefix("test_serving_") in SERVERS and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(50, method="thread"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (settings_module.PARAMS_ENV, settings_module.PRESET_ENV, "UDRL_TEACHER_API_KEY", "DAGSTER_HOME", PAGES_ENV, *SWITCHES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_instance_of_an_earlier_test() -> Iterator[None]:
    """Dagster's contexts for tests enter an instance twice and leave it once: the next definitions would ask one that is gone."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A params.yaml of one's own: the project's, with few intents and small chunks."""
    return small_params(tmp_path)


def small_params(folder: Path) -> Path:
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    for key, value in SMALL.items():
        section, name = key.split(".")
        values[section][name] = value
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


@pytest.fixture
def load(params: Path) -> Callable[..., Settings]:
    """Settings of one's own params.yaml with overrides, as in `load({"teacher.samples": 2})`."""
    return lambda overrides=None: settings_module.load(params, preset="", overrides=overrides)


def of_preset(name: str) -> dict[str, object]:
    """A preset as overrides for `load`, less its folder."""
    values = yaml.safe_load((REPOSITORY / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {f"{section}.{key}": value for section, chosen in values.items() if isinstance(chosen, dict) for key, value in chosen.items()}


@pytest.fixture
def settings(load: Callable[..., Settings]) -> Settings:
    return load()


@pytest.fixture
def workspace(settings: Settings) -> Workspace:
    return Workspace(settings, run_id="run-1")


@pytest.fixture
def use_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeEngine], FakeEngine]:
    """Make the corpus open this engine from now on."""

    def use(engine: FakeEngine) -> FakeEngine:
        def start(*_: object, **__: object) -> FakeEngine:
            engine.opened += 1
            return engine

        monkeypatch.setattr("udrl_pipeline.corpus.open_engine", start)
        return engine

    return use


@pytest.fixture
def teacher(use_engine: Callable[[FakeEngine], FakeEngine]) -> FakeEngine:
    """A fake teacher in place of the real one; `use_engine` puts in another."""
    return use_engine(FakeEngine())


@contextmanager
def stores_kept_open() -> Iterator[None]:
    """Open each DuckDB file once, not forty times a run: that is 15 ms each time, most of what a run with fakes takes.

    For what looks at a store from this process alone. Who else may read and write it is proven where this is not used.
    """
    opened: dict[Path, tuple[int, duckdb.DuckDBPyConnection]] = {}

    def connect(self: Database, read_only: bool) -> duckdb.DuckDBPyConnection:
        file = self.path.stat().st_ino
        if self.path in opened and opened[self.path][0] != file:  # another one has been put in its place
            opened.pop(self.path)[1].close()
        if self.path not in opened:
            opened[self.path] = file, duckdb.connect(str(self.path))
        return opened[self.path][1].cursor()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "_connect", connect)
        yield
    for _, connection in opened.values():
        connection.close()


@pytest.fixture
def kept_open() -> Iterator[None]:
    with stores_kept_open():
        yield


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A Ray cluster of three nodes (processes of their own) with a core each, which can unpickle what the tests define."""
    with ray_nodes(include_dashboard=False) as cluster:
        yield cluster


@contextmanager
def ray_nodes(**head: Any) -> Iterator[Any]:
    """Such a cluster.

    Args:
        head: What its head node is told beside that.
    """
    ray = pytest.importorskip("ray", reason="Ray is not installed (`make ray`)")
    from ray.cluster_utils import Cluster

    own = [module for name, module in sys.modules.items() if name == "conftest" or name.startswith("test_")]
    for module in own:
        ray.cloudpickle.register_pickle_by_value(module)
    of_a_node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=of_a_node | head)
    try:
        for _ in range(2):
            cluster.add_node(**of_a_node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        for module in own:
            ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB, so that it can be full. Needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
