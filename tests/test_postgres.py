"""`store: postgresql://...`: ledger and rows in a real Postgres, by several writers; the same versions as in DuckDB."""

import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner

from conftest import FakeEngine
from servers import free_port, postgres_server
from test_workspace import record
from udrl_pipeline import audit, corpus
from udrl_pipeline.audit.checkout import checkout
from udrl_pipeline.audit.export import as_json
from udrl_pipeline.audit.forget import forget_intent
from udrl_pipeline.audit.impact import impact_of_run
from udrl_pipeline.audit.rows import rows_where
from udrl_pipeline.audit.verify import Fault, verify
from udrl_pipeline.cli import main
from udrl_pipeline.errors import RemoteError, SettingsError, StoreLocked, StoreUnwritable
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.database import migrations
from udrl_pipeline.store.postgres import PostgresDatabase
from udrl_pipeline.store.workspace import Expected, Quarantined, Workspace

psycopg2 = pytest.importorskip("psycopg2", reason="needs psycopg2 (the extra `postgres`)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server's address, without a database."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as port:
        yield f"postgresql://udrl@127.0.0.1:{port}"


@pytest.fixture
def url(server: str) -> str:
    """An empty database, in which texts are in the order of no language."""
    with closing(psycopg2.connect(f"{server}/udrl")) as connection:
        connection.autocommit = True
        connection.cursor().execute("DROP DATABASE IF EXISTS store WITH (FORCE)")
        connection.cursor().execute("CREATE DATABASE store")
    return f"{server}/store"


@pytest.fixture
def machine(load: Callable[..., Settings], url: str) -> Callable[..., Workspace]:
    """A workspace with a folder of its own, by name; all have one ledger."""
    return lambda name, overrides={}: Workspace(load({"store": url, "artifacts": name} | overrides), run_id=f"run-{name}")


def ask(url: str, question: str) -> list[Any]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchall() if cursor.description else []


# -- tables -------------------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_migrations_in_a_schema_of_their_own(machine: Callable[..., Workspace], url: str) -> None:
    ask(url, "CREATE TABLE runs (dagster INTEGER)")  # Dagster's history may be in the same database
    workspace = machine("one")
    workspace.begin_run()
    found = ask(
        url, "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema IN ('udrl', 'public') ORDER BY 1, 2"
    )
    assert [name for schema, name in found if schema == "udrl"] == [
        "holders", "holdings", "migrations", "parents", "promotions", "quality_results", "quarantine", "rows", "runs", "scores",
        "tombstones", "versions",
    ]  # fmt: skip
    assert [name for schema, name in found if schema == "public"] == ["runs"]
    assert [name for (name,) in ask(url, "SELECT name FROM udrl.migrations ORDER BY name")] == sorted(migrations())
    assert ask(url, "SELECT run_id FROM udrl.runs") == [("run-one",)]


def test_a_newer_migration_is_applied_to_tables_that_are_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with PostgresDatabase(url).writer() as connection:
        connection.execute("INSERT INTO scores VALUES ('first', 'v1', 0.5)")
    newer = {**migrations(), "9999_note.sql": "CREATE TABLE notes (note VARCHAR, weight DOUBLE)"}
    monkeypatch.setattr("udrl_pipeline.store.postgres.migrations", lambda: newer)
    with PostgresDatabase(url).writer() as connection:
        connection.execute("INSERT INTO notes (note, weight) VALUES ('a', 0.5)")
        assert connection.execute("SELECT note, weight, rowid FROM notes").fetchall() == [("a", 0.5, 1)]
        assert connection.execute("SELECT row_key FROM scores").fetchall() == [("first",)]


def test_two_who_come_first_make_the_tables_once(url: str) -> None:
    failed: list[BaseException] = []

    def use() -> None:
        try:
            with PostgresDatabase(url).reader() as connection:
                assert connection.execute("SELECT count(*) FROM versions").fetchall() == [(0,)]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert ask(url, "SELECT count(*) FROM udrl.migrations") == [(len(migrations()),)]


@pytest.mark.parametrize(
    "text", ["plain", "tab\tand\nlines\r\\N \\", "\x00 a control character", "50% ? %s", "Zürich 東京 👍", "", "NULL", "\\N"]
)
def test_texts_come_back_as_they_were(url: str, text: str) -> None:
    database = PostgresDatabase(url)
    with database.writer() as connection:
        connection.execute("INSERT INTO scores VALUES (?, 'as a value', 0.5)", [text])
        frame = pd.DataFrame({"row_key": [text], "scorer_version": ["as a table"], "relevance": [0.1 + 0.2]})
        connection.register("frame", frame)
        connection.execute("INSERT INTO scores SELECT * FROM frame ON CONFLICT DO NOTHING")
    with database.reader() as connection:
        found = connection.execute("SELECT row_key, relevance FROM scores WHERE row_key = ? ORDER BY relevance", [text]).fetchall()
        assert found == [(text, 0.1 + 0.2), (text, 0.5)]


def test_a_frame_is_what_duckdb_makes_of_it(machine: Callable[..., Workspace], load: Callable[..., Settings]) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    row = ("key-é", "image", "A kite", "a kite", "text", 7, "stop", "e", "1", "s", "t", "{}", 5, "[]", 0, "run", now, False)
    frames = []
    for workspace in (machine("one"), Workspace(load({"artifacts": "duckdb"}))):
        corpus.commit_rows(workspace, [row, ("key-b", *row[1:]), ("key-B", *row[1:])])
        corpus.commit_rows(workspace, [("key-b", "other", *row[2:])])
        frames.append(corpus.find_rows(workspace, ["key-é", "key-b", "key-B", "none"]))
    ours, theirs = frames
    assert ours.row_key.tolist() == ["key-B", "key-b", "key-é"]  # by their bytes
    assert ours.task.tolist() == ["image"] * 3
    theirs["created_at"] = theirs.created_at.dt.tz_convert("UTC")
    pd.testing.assert_frame_equal(ours, theirs)


# -- writers ------------------------------------------------------------------------------------------------------------


def test_a_writer_that_raises_has_written_nothing(url: str) -> None:
    database = PostgresDatabase(url)
    with pytest.raises(RuntimeError, match="stop"), database.writer() as connection:
        connection.execute("INSERT INTO scores VALUES ('key', 'v1', 0.5)")
        raise RuntimeError("stop")
    with database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(0,)]


def test_who_reads_waits_for_nobody_and_sees_one_state(url: str) -> None:
    database = PostgresDatabase(url, wait_s=0.2)
    with database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(0,)]
        with database.writer() as writing:
            writing.execute("INSERT INTO scores VALUES ('key', 'v1', 0.5)")
            with database.reader() as other:
                assert other.execute("SELECT count(*) FROM scores").fetchall() == [(0,)]
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(0,)]
    with database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(1,)]


def test_what_is_kept_open_is_read_over_one_connection_as_it_stood_at_first(url: str) -> None:
    database, other = PostgresDatabase(url), PostgresDatabase(url)
    count = "SELECT count(*) FROM scores"
    with database.kept_open():
        with database.reader() as first:
            assert first.execute(count).fetchone() == (0,)
        with other.writer() as connection:
            connection.execute("INSERT INTO scores VALUES ('first', 'v1', 0.5)")
        with database.reader() as second:
            assert second is first
            assert second.execute(count).fetchone() == (0,)
    with database.reader() as third:
        assert third.execute(count).fetchone() == (1,)


def test_a_second_writer_waits_and_then_says_so(url: str) -> None:
    database = PostgresDatabase(url, wait_s=0.2)
    with database.writer(), pytest.raises(StoreLocked, match="another process writes"), database.writer():
        raise AssertionError("two writers")


def _write(settings: Settings, name: str, number: int) -> None:
    workspace = Workspace(settings, run_id=f"run-{name}")
    for n in range(number):
        made = {"version": f"{name}{n}", "fingerprint": f"{name}{n}", "parents": {}, "write": lambda folder: (folder / "a").touch()}
        judged = {"expectations": [Expected("unique", True, True, {})], "quarantined": [Quarantined(f"{n}", "short", "", "a")]}
        record(workspace, **made | judged)


def test_the_chain_of_two_writers_is_one_chain(load: Callable[..., Settings], url: str) -> None:
    fork = multiprocessing.get_context("fork")
    workers = []
    for name in ("a", "b", "c"):
        settings = load({"store": url, "artifacts": name})
        workers.append(fork.Process(target=_write, args=(settings, name, 8)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    for name in ("b", "c"):
        shutil.copytree(load({"artifacts": name}).artifacts_folder, load({"artifacts": "a"}).artifacts_folder, dirs_exist_ok=True)
    workspace = Workspace(load({"store": url, "artifacts": "a"}))
    assert sorted(made.version for made in workspace.ledger()) == sorted(f"{name}{n}" for name in "abc" for n in range(8))
    assert verify(workspace) == []
    ask(url, "UPDATE udrl.versions SET rows = 51 WHERE rowid = 7")
    assert [fault.what for fault in verify(workspace)][
        -1
    ] == "its row in the ledger, or the one before it, was edited, removed or slipped in"


# -- who makes an asset -------------------------------------------------------------------------------------------------


def _make(settings: Settings, started: Any) -> None:
    with Workspace(settings, run_id="run-killed").lock("student/udrl"):
        started.set()
        time.sleep(60)


def test_one_machine_makes_an_asset_at_a_time_and_a_dead_one_keeps_nobody(machine: Callable[..., Workspace]) -> None:
    one, other = machine("one"), machine("other")
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    maker = fork.Process(target=_make, args=(one.settings, started))
    maker.start()
    assert started.wait(30)
    with pytest.raises(StoreLocked, match=r"another process is making student/udrl \(run run-killed, process \d+ on ") as found, \
            other.lock("student/udrl", wait_s=0.1):  # fmt: skip
        raise AssertionError("two makers")
    assert found.value.where == other.database.where
    with other.lock("student/sft", wait_s=0.1):
        assert [(h.asset, h.run_id, h.lives) for h in other.holders()] == [
            ("student/sft", "run-other", True), ("student/udrl", "run-killed", True)
        ]  # fmt: skip
    maker.kill()
    maker.join()
    assert [(h.asset, h.run_id, h.process, h.lives) for h in other.holders()] == [("student/udrl", "run-killed", maker.pid, False)]
    with other.lock("student/udrl", wait_s=10):
        assert [(h.asset, h.run_id, h.lives) for h in other.holders()] == [("student/udrl", "run-other", True)]
    assert other.holders() == []


# -- the audit ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(machine: Callable[..., Workspace], teacher: FakeEngine) -> Workspace:
    """Intents and a corpus, twice: with three ideas and with four."""
    for ideas in (3, 4):
        workspace = machine("one", {"intents.builtin": ideas})
        workspace.begin_run()
        intents.build(workspace)
        corpus.build(workspace)
    return workspace


def test_the_audit_asks_as_of_a_file(made: Workspace, url: str, tmp_path: Path, load: Callable[..., Settings]) -> None:
    assert verify(made) == []
    newest, before = audit.versions(made, corpus.ASSET)
    assert [audit.resolve(made, f"{corpus.ASSET}~1").version, newest.rows > before.rows] == [before.version, True]
    assert {touched.version.version for touched in impact_of_run(made, "run-one").touched} >= {newest.version, before.version}
    assert [run["run_id"] for run in as_json(made)["runs"]] == ["run-one"]
    there = checkout(made, before, tmp_path / "old")
    copied = Workspace(load({"artifacts": str(tmp_path / "old" / "artifacts")}))
    assert [v.version for v in there.versions] == [v.version for v in copied.ledger()]
    assert copied.settings.store is None
    assert verify(copied) == []
    pd.testing.assert_frame_equal(corpus.read_rows(copied, before.version), corpus.read_rows(made, before.version))
    with duckdb.connect(str(tmp_path / "old" / "artifacts" / "udrl.duckdb")) as connection:
        assert connection.execute("SELECT count(*) FROM rows").fetchall() == [(before.rows,)]


def test_rows_are_carried_from_postgres_to_duckdb_and_back(
    made: Workspace, machine: Callable[..., Workspace], load: Callable[..., Settings], tmp_path: Path, url: str
) -> None:
    with made.database.writer() as connection:
        connection.execute("INSERT INTO scores SELECT row_key, 'v1', 0.1 FROM rows")
        connection.execute("INSERT INTO scores SELECT row_key, 'v2', 0.2 FROM rows")
    [count] = ask(url, "SELECT count(*) FROM udrl.rows")[0]
    assert corpus.export_rows(made, tmp_path / "rows.parquet") == count
    local = Workspace(load({"artifacts": "local"}))
    assert corpus.import_rows(local, tmp_path / "rows.parquet") == count
    ask(url, "DELETE FROM udrl.rows")
    ask(url, "DELETE FROM udrl.scores")
    assert corpus.import_rows(made, tmp_path / "rows.parquet", {made_key(local)}) == 1
    assert corpus.import_rows(made, tmp_path / "rows.parquet") == count - 1
    assert ask(url, "SELECT scorer_version, count(*) FROM udrl.scores GROUP BY 1 ORDER BY 1") == [("v1", count), ("v2", count)]
    assert ask(url, "SELECT DISTINCT recorded FROM udrl.rows") == [(True,)]


def made_key(workspace: Workspace) -> str:
    return next(iter(rows_where(workspace, "task = ?", "image")))


def test_what_was_forgotten_is_in_no_table(made: Workspace, url: str) -> None:
    idea = corpus.read_rows(made, made.parents(corpus.ASSET)[corpus.ASSET]).intent.iloc[0]
    row = Quarantined("line 3", "too short", f"{idea.upper()}!", f"{idea.upper()}!")
    record(made, version="v9", fingerprint="f9", parents={}, quarantined=[row])
    forget_intent(made, idea, "asked to")
    assert verify(made) == []
    told = [
        value
        for table in ("rows", "quarantine", "tombstones", "scores")
        for row in ask(url, f"SELECT * FROM udrl.{table}")
        for value in row
    ]
    assert [value for value in told if idea.casefold() in str(value).casefold()] == []
    assert ask(url, "SELECT count(*) FROM udrl.tombstones") == [(1,)]


def test_an_edited_row_is_named(made: Workspace, url: str) -> None:
    newest = audit.versions(made, corpus.ASSET)[0]
    ask(url, f"UPDATE udrl.versions SET seal = 'x' WHERE version = '{newest.version}'")
    assert verify(made) == [
        Fault(corpus.ASSET, newest.version, "its row in the ledger, or the one before it, was edited, removed or slipped in")
    ]


# -- errors -------------------------------------------------------------------------------------------------------------


def test_what_stands_in_the_way_is_told(server: str, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask(f"{server}/udrl", "DROP ROLE IF EXISTS guest")
    ask(f"{server}/udrl", "CREATE ROLE guest LOGIN")
    port = server.rpartition(":")[2]
    for asked, error, what, remedy in (
        (f"postgresql://udrl@127.0.0.1:{free_port()}/store", RemoteError, "cannot be reached", "check the host, the port"),
        (f"{server}/nowhere", RemoteError, "there is no such database", "createdb"),
        (f"postgresql://nobody@127.0.0.1:{port}/store", RemoteError, "refuses", "PGPASSWORD"),
        (f"postgresql://guest@127.0.0.1:{port}/store", StoreUnwritable, "may not be written", "GRANT CREATE"),
    ):
        with pytest.raises(error) as found, PostgresDatabase(asked).reader():
            raise AssertionError("let in")
        assert what in found.value.what, asked
        assert remedy in found.value.remedy
        assert asked in found.value.where


def test_a_wrong_password_is_told(server: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [[rules]] = ask(url, "SHOW hba_file")
    [[told]] = ask(url, f"SELECT pg_read_file('{rules}')")
    ask(url, "ALTER ROLE udrl PASSWORD 'right'")
    try:
        Path(rules).write_text("local all all trust\nhost store udrl 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
        ask(f"{server}/udrl", "SELECT pg_reload_conf()")
        time.sleep(0.2)
        for password in ("wrong", "right"):
            monkeypatch.setenv("PGPASSWORD", password)
            if password == "right":
                with PostgresDatabase(url).reader() as connection:
                    assert connection.execute("SELECT count(*) FROM rows").fetchall() == [(0,)]
                continue
            with pytest.raises(RemoteError, match="the database refuses") as found, PostgresDatabase(url).reader():
                raise AssertionError("let in")
            assert "wrong" not in str(found.value)
    finally:
        Path(rules).write_text(told)
        ask(f"{server}/udrl", "SELECT pg_reload_conf()")


def test_a_connection_that_is_lost_has_written_nothing(url: str) -> None:
    database = PostgresDatabase(url)
    with pytest.raises(RemoteError, match="cannot be reached"), database.writer() as connection:
        connection.execute("INSERT INTO scores VALUES ('key', 'v1', 0.5)")
        ask(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'udrl'")
        connection.execute("SELECT 1")
    with database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(0,)]


@pytest.mark.parametrize("store", ["postgresql://udrl:secret@host/udrl", "postgresql://udrl@host/udrl?password=secret"])
def test_a_url_holds_no_password(load: Callable[..., Settings], store: str) -> None:
    with pytest.raises(SettingsError, match="must hold no password"):
        load({"store": store})


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    with pytest.raises(RemoteError, match="needs a package") as found, PostgresDatabase("postgresql://host/udrl").reader():
        raise AssertionError("let in")
    assert "udrl_pipeline[postgres]" in found.value.remedy


def test_a_user_reads_a_sentence(params: Path) -> None:
    store = f"store=postgresql://udrl@127.0.0.1:{free_port()}/udrl"
    done = CliRunner().invoke(main, ["audit", "versions", "--params", str(params), "--set", store])
    assert done.exit_code == 2
    assert "(params.yaml: store): the database cannot be reached" in done.output
    assert "Traceback" not in done.output
