"""`artifacts: s3://...`: versions in an object store, against a real server that speaks S3."""

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from conftest import FakeEngine
from servers import s3_server
from test_workspace import record as record_version
from test_workspace import write_rows
from udrl_pipeline import corpus
from udrl_pipeline.audit.forget import forget_intent
from udrl_pipeline.audit.verify import Fault, verify
from udrl_pipeline.cli import main
from udrl_pipeline.errors import CorruptArtifact, RemoteError, SettingsError, StoreUnwritable
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.remote import Remote
from udrl_pipeline.store.workspace import Expected, Quarantined, Version, Workspace
from udrl_pipeline.versioning import file_sha256


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def s3(address: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fsspec's view of the store; there is an empty bucket `udrl`."""
    import s3fs

    told = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in told.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # a store that is away is told at once
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
    filesystem = s3fs.S3FileSystem(use_listings_cache=False)
    filesystem.mkdir("udrl")
    return filesystem


@pytest.fixture
def new_client() -> Iterator[None]:
    """fsspec keeps one client a process; this test's has another endpoint or other credentials."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def machine(load: Callable[..., Settings], s3: Any, tmp_path: Path) -> Callable[..., Workspace]:
    """A workspace with a cache of its own, by name; the first one's ledger is taken along."""

    def start(name: str, overrides: dict[str, object] = {}) -> Workspace:
        settings = load({"artifacts": "s3://udrl/project", "artifacts_cache": name} | overrides)
        if not (tmp_path / name).exists() and (tmp_path / "one").exists():
            (tmp_path / name).mkdir()
            shutil.copy(tmp_path / "one" / "udrl.duckdb", tmp_path / name)
        return Workspace(settings, run_id=f"run-{name}")

    return start


def record(workspace: Workspace, **others: Any) -> Version:
    return record_version(workspace, **{"parents": {}} | others)


def names(s3: Any, under: str = "udrl/project") -> list[str]:
    return sorted(path.removeprefix(f"{under}/") for path in s3.find(under))


def digest_of(workspace: Workspace, name: str) -> str:
    return file_sha256(workspace.folder / "corpus" / "v1" / name)[:16]


def test_a_version_is_published_under_names_that_tell_its_content(machine: Callable[..., Workspace], s3: Any) -> None:
    workspace = machine("one")
    workspace.begin_run()
    made = record(workspace)
    assert names(s3) == sorted([
        "udrl.json", "corpus/v1/manifest.json", f"corpus/v1/{digest_of(workspace, 'inner/note.txt')}/inner/note.txt",
        f"corpus/v1/{digest_of(workspace, 'rows.parquet')}/rows.parquet",
    ])  # fmt: skip
    manifest = json.loads(s3.cat("udrl/project/corpus/v1/manifest.json"))
    assert manifest == workspace.manifest("corpus", "v1")
    assert manifest["files"] == made.files
    assert not list(workspace.folder.glob(".unsent/**/*.json"))


def test_the_manifest_is_the_last_object_and_is_put_only_where_there_is_none(
    machine: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, put = machine("one"), []
    assert workspace.remote
    filesystem = workspace.remote._filesystem
    send, pipe = filesystem.put_file, filesystem.pipe_file
    monkeypatch.setattr(
        filesystem, "put_file", lambda here, there: put.append((there.rpartition("/")[2], "overwrite")) or send(here, there)
    )
    monkeypatch.setattr(filesystem, "pipe_file", lambda path, data, mode: put.append((path[-13:], mode)) or pipe(path, data, mode=mode))
    record(workspace)
    assert put == [("note.txt", "overwrite"), ("rows.parquet", "overwrite"), ("manifest.json", "create")]


def test_another_machine_fetches_what_the_ledger_names(machine: Callable[..., Workspace]) -> None:
    one = machine("one")
    made = record(one)
    other = machine("other")
    assert not (other.folder / "corpus").exists()
    assert other.is_there("corpus", "v1") is True
    assert other.is_there("corpus", "v2") is False
    reused = other.reuse("corpus", "f1")
    assert reused is not None
    assert (reused.version, reused.files, reused.made_now) == ("v1", made.files, False)
    assert (other.version_folder("corpus", "v1") / "inner" / "note.txt").read_text() == "a note"
    assert other.manifest("corpus", "v1") == one.manifest("corpus", "v1")
    assert list((other.folder / ".fetched").iterdir()) == []


def test_an_upload_that_failed_is_taken_up_where_it_stopped(
    machine: Callable[..., Workspace], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, sent = machine("one"), []
    assert workspace.remote
    filesystem = workspace.remote._filesystem
    send = filesystem.put_file

    def lose_the_second(here: str, there: str) -> None:
        if there.endswith("rows.parquet"):
            raise TimeoutError("the network is gone")
        send(here, there)

    monkeypatch.setattr(filesystem, "put_file", lose_the_second)
    judged = {"expectations": [Expected("unique", True, True, {"broken": 0})], "quarantined": [Quarantined("key", "short", "3 words", "a")]}
    with pytest.raises(RemoteError, match="cannot be reached") as failed:
        record(workspace, **judged)
    assert "params.yaml: artifacts" in failed.value.where
    assert workspace.find("corpus", "v1") is None
    assert [name.rpartition("/")[2] for name in names(s3)] == ["note.txt"]

    again = Workspace(workspace.settings, run_id="run-2")
    assert again.remote
    monkeypatch.setattr(
        again.remote._filesystem, "put_file", lambda here, there: sent.append(there.rpartition("/")[2]) or send(here, there)
    )
    made = again.reuse("corpus", "f1")  # what a build asks first: nothing is made again
    assert made is not None
    assert (made.version, made.rows, made.facts, sent) == ("v1", 50, {"mean": 0.5}, ["rows.parquet"])
    assert [(v.version, v.run_id, v.verdict) for v in again.ledger()] == [("v1", "run-2", "PASS")]
    assert again.expectations("corpus", "v1") == judged["expectations"]
    assert again.reuse("corpus", "f1") == again.current("corpus")
    assert len(again.ledger()) == 1
    assert verify(again) == []


def test_a_run_that_was_killed_after_it_had_entered_a_version_enters_it_once(machine: Callable[..., Workspace]) -> None:
    workspace = machine("one")
    left = workspace._unsent("corpus", "f1")
    insert = workspace._insert_version

    def killed(*arguments: Any) -> None:
        insert(*arguments)
        raise KeyboardInterrupt

    workspace._insert_version = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        record(workspace)
    assert left.exists()
    again = Workspace(workspace.settings, run_id="run-2")
    assert again.reuse("corpus", "f1") == again.current("corpus")
    assert (len(again.ledger()), left.exists()) == (1, False)


def test_of_two_who_publish_the_same_version_the_first_one_counts(machine: Callable[..., Workspace], s3: Any) -> None:
    first = record(machine("one"))

    def write_otherwise(folder: Path) -> None:
        write_rows(folder)
        (folder / "inner" / "note.txt").write_text("A NOTE", encoding="utf-8")

    other = machine("other")
    assert other.remote
    other.database.path.unlink()  # a ledger of its own
    hidden, other.remote.fetch = other.remote.fetch, lambda *_: False  # type: ignore[method-assign]

    def meanwhile(folder: Path) -> None:
        write_otherwise(folder)
        other.remote.fetch = hidden  # type: ignore[method-assign, union-attr]

    made = record(other, write=meanwhile)
    assert made.files == first.files
    assert (other.version_folder("corpus", "v1") / "inner" / "note.txt").read_text() == "a note"
    assert other.find("corpus", "v1").files == first.files  # type: ignore[union-attr]
    assert verify(other) == []


def test_a_store_that_knows_no_conditional_put_is_written_after_a_look(
    machine: Callable[..., Workspace], s3: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = machine("one")
    assert workspace.remote
    filesystem = workspace.remote._filesystem
    pipe = filesystem.pipe_file

    def plain(path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise OSError(38, "A header you provided implies functionality that is not implemented")
        pipe(path, data)

    monkeypatch.setattr(filesystem, "pipe_file", plain)
    record(workspace)
    assert "corpus/v1/manifest.json" in names(s3)
    assert "knows no conditional put" in caplog.text


def test_versions_from_before_the_url_are_published_when_they_are_reused(
    machine: Callable[..., Workspace], load: Callable[..., Settings], s3: Any
) -> None:
    before = Workspace(load({"artifacts": "one"}), run_id="run-0")
    record(before)
    workspace = machine("one")
    assert [fault.what for fault in verify(workspace)] == ["s3://udrl/project/corpus/v1/manifest.json: the object is missing"]
    assert workspace.reuse("corpus", "f1") is not None
    assert "corpus/v1/manifest.json" in names(s3)
    assert verify(workspace) == []


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda s3, path: s3.rm(path), "rows.parquet: the object is missing"),
        (lambda s3, path: s3.pipe(path, s3.cat(path)[:-1] + b"?"), "rows.parquet: the object was changed"),
        (lambda s3, path: s3.rm("udrl/project/corpus/v1/manifest.json"), "manifest.json: the object is missing"),
        (lambda s3, path: s3.pipe("udrl/project/corpus/v1/manifest.json", b"{"), "manifest.json: no readable manifest"),
        (
            lambda s3, path: s3.pipe("udrl/project/corpus/v1/manifest.json", b'{"files": {}}'),
            "manifest.json: its files are not the ledger's",
        ),
    ],
)
def test_an_object_that_was_touched_is_named(
    machine: Callable[..., Workspace], s3: Any, harm: Callable[[Any, str], object], what: str
) -> None:
    workspace = machine("one")
    record(workspace)
    assert verify(workspace) == []
    harm(s3, f"udrl/project/corpus/v1/{digest_of(workspace, 'rows.parquet')}/rows.parquet")
    [fault] = verify(workspace)
    assert (fault.asset, fault.version) == ("corpus", "v1")
    assert fault.what.startswith("s3://udrl/project/corpus/v1/")
    assert what in fault.what


def test_a_changed_object_is_not_taken_over(machine: Callable[..., Workspace], s3: Any) -> None:
    one = machine("one")
    record(one)
    s3.pipe(f"udrl/project/corpus/v1/{digest_of(one, 'rows.parquet')}/rows.parquet", b"other bytes")
    other = machine("other")
    with pytest.raises(CorruptArtifact, match="the object was changed") as found:
        other.version_folder("corpus", "v1")
    assert found.value.where == f"s3://udrl/project/corpus/v1/{digest_of(one, 'rows.parquet')}/rows.parquet"
    assert list(other.folder.glob("corpus/*")) == []


def test_a_published_version_that_no_ledger_holds_is_named(machine: Callable[..., Workspace], s3: Any) -> None:
    workspace = machine("one")
    record(workspace)
    s3.pipe("udrl/project/student/udrl/0123456789abcdef/manifest.json", b'{"files": {}}')
    told = "what was published of it is not in the ledger (a run was killed here, or another ledger's made it)"
    assert verify(workspace) == [Fault("student/udrl", "0123456789abcdef", told)]


def test_what_was_forgotten_is_in_no_object_and_leaves_other_caches(
    machine: Callable[..., Workspace], s3: Any, teacher: FakeEngine
) -> None:
    one = machine("one", {"intents.builtin": 3})
    intents.build(one)
    version = corpus.build(one).version
    idea = corpus.read_rows(one, version).intent.iloc[0]
    other = machine("other", {"intents.builtin": 3})
    assert idea in set(corpus.read_rows(other, version).intent)
    forget_intent(one, idea, "asked to")
    assert verify(one) == []
    shutil.copy(one.database.path, other.database.path)
    assert verify(other) == []
    assert idea not in set(corpus.read_rows(other, version).intent)
    left = one.folder.parent / "left"
    s3.get("udrl/project", str(left), recursive=True)
    assert len(list(left.glob("**/rows.parquet"))) == 1
    assert [file for file in left.glob("**/*.parquet") if idea.encode() in file.read_bytes()] == []
    shutil.rmtree(other.folder / corpus.ASSET)
    assert idea not in set(corpus.read_rows(other, version).intent)


# -- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "environment", "what", "remedy"),
    [
        ({"artifacts": "s3://no-such-bucket/x"}, {}, "there is no such bucket", "create it"),
        ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached (EndpointConnectionError", "AWS_ENDPOINT_URL"),
        ({"artifacts": "nope://x"}, {}, "fsspec knows no such store", "s3://bucket/prefix"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_before_any_work(
    load: Callable[..., Settings], s3: Any, new_client: None, monkeypatch: pytest.MonkeyPatch,
    overrides: dict[str, object], environment: dict[str, str], what: str, remedy: str,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace(load({"artifacts": "s3://udrl/project"} | overrides))
    with pytest.raises(RemoteError) as found:
        workspace.begin_run()
    assert what in found.value.what
    assert "params.yaml: artifacts" in found.value.where
    assert remedy in found.value.remedy


def test_wrong_credentials_are_told(machine: Callable[..., Workspace], s3: Any, address: str) -> None:
    def ask_for_credentials(after: str) -> None:
        urllib.request.urlopen(
            urllib.request.Request(f"{address}/moto-api/reset-auth", after.encode(), {"Content-Type": "text/plain"})
        ).close()

    ask_for_credentials("0")
    try:
        with pytest.raises(RemoteError, match="the object store refuses") as found:
            machine("one").begin_run()
    finally:
        ask_for_credentials("inf")
    assert "AWS_ACCESS_KEY_ID" in found.value.remedy


def test_no_credentials_at_all_are_told(
    machine: Callable[..., Workspace], new_client: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RemoteError, match="the object store refuses") as found:
        machine("one").begin_run()
    assert "NoCredentialsError" in found.value.what


def test_a_missing_package_is_told(s3: Any, new_client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"].__dict__["_registry"], "s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(RemoteError, match="needs a package") as found:
        Remote("s3://udrl/project", tmp_path).prepare()
    assert "udrl_pipeline[s3]" in found.value.remedy


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_store(machine: Callable[..., Workspace]) -> None:
    record(machine("one"))
    other = machine("other")
    (other.folder / ".fetched").touch()
    with pytest.raises(StoreUnwritable):
        other.version_folder("corpus", "v1")


def test_a_url_holds_no_credentials(load: Callable[..., Settings]) -> None:
    with pytest.raises(SettingsError, match="must hold no credentials"):
        load({"artifacts": "s3://key:secret@bucket/prefix"})


def test_a_user_reads_a_sentence(
    new_client: None, machine: Callable[..., Workspace], params: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(machine("one"))
    __import__("s3fs").S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    chosen = ["--params", str(params), "--set", "artifacts=s3://udrl/project", "--set", "artifacts_cache=one"]
    done = CliRunner().invoke(main, ["audit", "verify", *chosen])
    assert done.exit_code == 2
    assert "s3://udrl/project/corpus/v1/manifest.json (params.yaml: artifacts): the object store cannot be reached" in done.output
    assert "Traceback" not in done.output
