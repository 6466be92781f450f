"""For every file and setting that a user can touch: a typed error that names place and remedy, and nothing is lost.

Each case harms one thing in a project that is up to date, sees the error, mends it, and finds everything as it was, without
a row asked of the teacher. The modules' own tests hold the finer cases.
"""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from conftest import REPOSITORY, FakeEngine
from udrl_pipeline import corpus
from udrl_pipeline import settings as settings_module
from udrl_pipeline.cli import main
from udrl_pipeline.errors import (
    CorruptArtifact,
    IntentsError,
    ModelError,
    SettingsError,
    StoreLocked,
    StoreUnwritable,
    TaskError,
    TeacherError,
    UdrlError,
)
from udrl_pipeline.intents import asset
from udrl_pipeline.store.database import Database
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.teacher import open_engine
from udrl_pipeline.versioning import files_sha256

Overrides = dict[str, Any]


@dataclass
class Project:
    """A user's folder: params.yaml, ideas.csv, a task of their own, and a model; intents and corpus are up to date."""

    folder: Path
    before: tuple[object, ...] = ()

    @property
    def params(self) -> Path:
        return self.folder / "params.yaml"

    def build(self, overrides: Overrides | None = None) -> Version:
        workspace = Workspace(settings_module.load(self.params, preset="", overrides=overrides))
        asset.build(workspace)
        return corpus.build(workspace)

    def state(self) -> tuple[object, ...]:
        """What must not be lost: the published files, the rows, and which versions are current."""
        workspace = Workspace(settings_module.load(self.params, preset=""))
        with workspace.database.reader() as connection:
            rows = connection.execute("SELECT * FROM rows ORDER BY row_key").fetchall()
        files = {name: files_sha256(workspace.folder / name) for name in ("intents", "teacher_corpus")}
        return files, rows, workspace.parents("intents", "teacher_corpus")

    def version_file(self, name: str) -> Path:
        (found,) = (self.folder / "artifacts").glob(f"{name}")
        return found


Harm = Callable[[Project], AbstractContextManager[Overrides | None]]


@contextmanager
def replaced(file: Path, content: str | bytes | None) -> Iterator[None]:
    """A file with other content (None: without the file), as it was again afterwards."""
    before = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    yield
    file.write_bytes(before)


def set_to(**overrides: object) -> Harm:
    @contextmanager
    def harm(_: Project) -> Iterator[Overrides]:
        yield {key.replace("__", "."): value for key, value in overrides.items()}

    return harm


def with_file(name: str, content: str | bytes | None) -> Harm:
    return lambda project: replaced(project.folder / name, content)  # type: ignore[return-value]


def with_version_file(pattern: str, change: Callable[[bytes], bytes | None]) -> Harm:
    def harm(project: Project) -> AbstractContextManager[None]:
        file = project.version_file(pattern)
        return replaced(file, change(file.read_bytes()))

    return harm  # type: ignore[return-value]


@contextmanager
def held_by_another_process(project: Project) -> Iterator[None]:
    script = "import duckdb, sys, time; held = duckdb.connect(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    file = str(project.folder / "artifacts" / "udrl.duckdb")
    holder = subprocess.Popen([sys.executable, "-c", script, file], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield
    holder.kill()
    holder.communicate()


@contextmanager
def a_server_that_is_down(_: Project) -> Iterator[Overrides]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    yield {"teacher.engine": "server", "teacher.samples": 2, "teacher.server.base_url": url, "teacher.server.retries": 0}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def own_task(**changes: object) -> str:
    task = yaml.safe_load((REPOSITORY / "udrl_pipeline/tasks/image.yaml").read_text(encoding="utf-8"))
    return yaml.safe_dump({**task, "task": "poster", **changes})


MODEL = {"teacher.samples": 2, "teacher.model.file": ""}  # rows are missing, so that the teacher is opened
EXAMPLES = yaml.safe_load((REPOSITORY / "udrl_pipeline/tasks/image.yaml").read_text(encoding="utf-8"))["examples"]
OTHER_DIGEST = "0" * 64
CASES: dict[str, tuple[Harm, type[UdrlError], str, str]] = {
    # what is harmed: how, the error, the place that it names, and what it says
    "params.yaml: an unknown key": (set_to(teacher__sample=2), SettingsError, "params.yaml", "unknown key teacher.sample"),
    "params.yaml: a wrong type": (set_to(teacher__samples="many"), SettingsError, "params.yaml", "teacher.samples = 'many'"),
    "params.yaml: out of range": (set_to(teacher__top_p=1.5), SettingsError, "params.yaml", "teacher.top_p = 1.5"),
    "params.yaml: no YAML": (with_file("params.yaml", "teacher: ["), SettingsError, "params.yaml", "not valid YAML"),
    "params.yaml: missing": (with_file("params.yaml", None), SettingsError, "params.yaml", "no such file"),
    "a task file: missing": (with_file("tasks/poster.yaml", None), TaskError, "tasks.names", "no task file poster.yaml"),
    "a task file: no YAML": (with_file("tasks/poster.yaml", "task: ["), TaskError, "poster.yaml", "cannot be read"),
    "a task file: no slot": (
        with_file("tasks/poster.yaml", own_task(request="Idea")),
        TaskError,
        "poster.yaml",
        "must hold the slot {intent}",
    ),
    "a task file: too few examples": (
        with_file("tasks/poster.yaml", own_task(examples=EXAMPLES[:5])),
        TaskError,
        "poster.yaml",
        "examples: Tuple should have at least 6",
    ),
    "a task file: another name": (with_file("tasks/poster.yaml", own_task(task="flyer")), TaskError, "poster.yaml", "calls itself 'flyer'"),
    "the folder of tasks: missing": (set_to(tasks__folder="nowhere"), TaskError, "nowhere", "no such folder"),
    "an intents file: missing": (with_file("ideas.csv", None), IntentsError, "ideas.csv", "no such file or folder"),
    "an intents file: empty": (with_file("ideas.csv", ""), IntentsError, "ideas.csv:1", "has no column `intent`"),
    "an intents file: another column": (with_file("ideas.csv", "thought\nfox\n"), IntentsError, "ideas.csv:1", "has no column `intent`"),
    "an intents file: UTF-16": (with_file("ideas.csv", "intent\nfox\n".encode("utf-16")), IntentsError, "ideas.csv", "is UTF-16"),
    "an intents file: no line is good": (
        with_file("ideas.csv", "intent\n\x07\n"),
        IntentsError,
        "params.yaml: intents",
        "no intent is left",
    ),
    "an intents file: no such kind": (set_to(intents__sources=["params.yaml"]), IntentsError, "params.yaml", "is no intents file (.yaml)"),
    "the model: nothing there": (set_to(**MODEL, teacher__model__ref="path:nowhere"), ModelError, "path:nowhere", "nothing is there"),
    "the model: another digest": (
        set_to(**MODEL, teacher__model__ref="path:own", teacher__model__sha256=OTHER_DIGEST),
        ModelError,
        "path:own",
        f", not {OTHER_DIGEST}",
    ),
    "the model: weights that can run code": (
        set_to(**{**MODEL, "teacher.model.file": "pytorch_model.bin"}, teacher__model__ref="path:own", teacher__model__sha256=None),
        ModelError,
        "pytorch_model.bin",
        "is neither a GGUF file nor model.safetensors",
    ),
    "the model: a hub that cannot be reached": (
        set_to(**MODEL, teacher__model__ref="hf:nobody/nothing"),
        ModelError,
        "hf:nobody/nothing",
        "cannot be fetched from the hub",
    ),
    "the teacher's server: down": (a_server_that_is_down, TeacherError, "http://127.0.0.1:", "the endpoint does not answer"),
    "the artifacts: a file": (set_to(artifacts="ideas.csv"), StoreUnwritable, "ideas.csv", "cannot be written"),
    "the DuckDB file: held": (held_by_another_process, StoreLocked, "udrl.duckdb", "another process holds the file"),
    "the DuckDB file: damaged": (with_file("artifacts/udrl.duckdb", b"no database" * 999), CorruptArtifact, "udrl.duckdb", "is damaged"),
    "a snapshot: one bit changed": (
        with_version_file("intents/*/intents.parquet", flipped),
        CorruptArtifact,
        "artifacts/intents/",
        "intents.parquet (changed)",
    ),
    "a snapshot: a file missing": (
        with_version_file("teacher_corpus/*/rows.parquet", lambda _: None),
        CorruptArtifact,
        "artifacts/teacher_corpus/",
        "rows.parquet (missing)",
    ),
    "a manifest: cut": (
        with_version_file("teacher_corpus/*/manifest.json", lambda data: data[:100]),
        CorruptArtifact,
        "manifest.json",
        "no readable manifest",
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    values["intents"] |= {"builtin": 0, "sources": ["ideas.csv"]}
    values["tasks"] |= {"names": ["image", "poster"], "folder": "tasks"}
    values["teacher"] |= {"recorded": False, "engine": "transformers", "samples": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / "ideas.csv").write_text("intent\nred fox\nold lighthouse\n", encoding="utf-8")
    for name in ("tasks", "own"):
        (folder / name).mkdir()
    (folder / "tasks" / "poster.yaml").write_text(own_task(), encoding="utf-8")
    (folder / "own" / "model.safetensors").write_bytes(b"weights")
    (folder / "own" / "pytorch_model.bin").write_bytes(b"weights")
    project = Project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "open_engine", lambda _: FakeEngine())
        patch.setattr(Database.__init__, "__defaults__", (0.5,))  # seconds to wait for another process
        patch.setenv("UDRL_MODELS", str(folder / "models"))
        project.build()
        project.before = project.state()
        patch.setattr(corpus, "open_engine", open_engine)  # from here on nothing may be asked of a teacher
        yield project


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_a_typed_error_that_names_place_and_remedy_and_loses_nothing(project: Project, case: str) -> None:
    harm, error, where, says = CASES[case]
    with harm(project) as overrides, pytest.raises(error) as caught:
        project.build(overrides)
    assert type(caught.value) is error
    assert where in caught.value.where
    assert says in caught.value.what
    assert caught.value.remedy
    assert str(caught.value) == f"{caught.value.where}: {caught.value.what}\n  -> {caught.value.remedy}"
    assert project.state() == project.before


def test_a_project_that_was_mended_is_up_to_date(project: Project) -> None:
    assert project.build().made_now is False


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("params.yaml", "the DuckDB file"))])
def test_the_command_tells_it_on_stderr_and_ends_with_2(project: Project, case: str) -> None:
    harm, _, where, says = CASES[case]
    with harm(project) as overrides:
        arguments = [f"--set={key}={value}" for key, value in (overrides or {}).items()]
        result = CliRunner().invoke(main, ["audit", "versions", "--params", str(project.params), *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    told = " ".join(result.stderr.split())
    assert says in told
    assert "->" in told
    assert where in told


def test_a_wrong_preset_ends_the_command_with_2(project: Project) -> None:
    result = CliRunner().invoke(main, ["audit", "versions", "--params", str(project.params), "--preset", "night"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no preset named 'night'" in " ".join(result.stderr.split())
