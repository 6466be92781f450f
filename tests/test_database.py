"""The DuckDB file: one transaction a writer, typed errors, and nothing lost to a lock, a full disk or a damaged file."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from udrl_pipeline.errors import CorruptArtifact, StoreFull, StoreLocked, StoreUnwritable
from udrl_pipeline.store.database import Database, migrations

HOLD = """
import sys, time, duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[3] == "read")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A database with one row in `rows`' smallest neighbour, `scores`."""
    database = Database(tmp_path / "udrl.duckdb", wait_s=1.0)
    add(database, "first")
    return database


def add(database: Database, *keys: str) -> None:
    with database.writer() as connection:
        for key in keys:
            connection.execute("INSERT INTO scores VALUES (?, 'v1', 0.5)", [key])


def keys(database: Database) -> list[str]:
    with database.reader() as connection:
        return [key for (key,) in connection.execute("SELECT row_key FROM scores ORDER BY row_key").fetchall()]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process that holds a DuckDB file for some seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, seconds: float, mode: str = "write") -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds), mode], stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


# -- transactions and schema --------------------------------------------------------------------------------------------


def test_first_use_makes_the_file_with_every_table(tmp_path: Path) -> None:
    database = Database(tmp_path / "deep" / "udrl.duckdb")
    with database.reader() as connection:
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    assert tables >= {"rows", "scores", "quarantine", "runs", "versions", "parents", "quality_results", "migrations"}
    assert [path.name for path in database.path.parent.iterdir() if not path.name.endswith(".lock")] == ["udrl.duckdb"]


def test_a_writer_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.writer() as connection:
        connection.execute("INSERT INTO scores VALUES ('second', 'v1', 0.5)")
        raise ZeroDivisionError
    assert keys(database) == ["first"]


def test_a_fault_of_the_program_stays_what_it_is(database: Database) -> None:
    with pytest.raises(duckdb.CatalogException), database.writer() as connection:
        connection.execute("INSERT INTO no_such_table VALUES (1)")
    with pytest.raises(duckdb.ConstraintException):
        add(database, "second", "first")
    assert keys(database) == ["first"]


def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(duckdb.InvalidInputException), database.reader() as connection:
        connection.execute("DELETE FROM scores")


def test_what_is_kept_open_is_read_over_one_connection_and_then_closed(database: Database) -> None:
    with database.kept_open():
        with database.reader() as first, database.reader() as second:
            assert first is second
        assert keys(database) == ["first"]
    add(database, "second")
    assert keys(database) == ["first", "second"]


def test_a_question_that_fails_closes_what_was_kept_open(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.kept_open():
        1 / 0  # noqa: B018
    add(database, "second")
    assert keys(database) == ["first", "second"]


def test_times_are_told_in_utc_whatever_the_zone_of_the_machine(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with database.reader() as connection:
            asked = connection.execute("SELECT current_setting('TimeZone'), TIMESTAMPTZ '2026-01-02 03:04:05+00'::VARCHAR")
            assert asked.fetchone() == ("UTC", "2026-01-02 03:04:05+00")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_older_file_is_brought_to_the_newest_schema_and_keeps_its_rows(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from udrl_pipeline.store import database as module

    newer = {**module.migrations(), "9999_note.sql": "ALTER TABLE scores ADD COLUMN note VARCHAR DEFAULT 'none'"}
    monkeypatch.setattr(module, "migrations", lambda: newer)
    with Database(database.path).reader() as connection:
        assert connection.execute("SELECT row_key, note FROM scores").fetchall() == [("first", "none")]
        assert connection.execute("SELECT count(*) FROM migrations").fetchall() == [(len(newer),)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from udrl_pipeline.store import database as module

    old = module.migrations()
    monkeypatch.setattr(module, "migrations", lambda: {**old, "9999_bad.sql": "ALTER TABLE scores ADD COLUMN note INT; SELECT broken"})
    with pytest.raises(duckdb.BinderException), Database(database.path).writer():
        pass
    monkeypatch.setattr(module, "migrations", lambda: old)
    with Database(database.path).reader() as connection:
        assert connection.execute("SELECT * FROM scores").fetchall() == [("first", "v1", 0.5)]


# -- another process ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["reader", "writer"])
def test_a_file_that_another_process_holds_is_waited_for_and_then_an_error(database: Database, hold, use: str, caplog) -> None:
    child = hold(database.path, 60)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(StoreLocked) as caught, getattr(database, use)():
        pass
    assert time.monotonic() - started >= database.wait_s
    assert f"PID {child.pid}" in caught.value.what
    assert caught.value.where == str(database.path)
    assert caught.value.remedy.startswith("wait for the other run to end")
    assert [record.message for record in caplog.records] == [f"{database.path} is in use by another process; waiting up to 1 s"]


def test_a_holder_that_ends_in_time_is_outlasted(database: Database, hold) -> None:
    database.wait_s = 30
    hold(database.path, 0.5)
    add(database, "second")
    assert keys(database) == ["first", "second"]


def test_a_holder_that_is_killed_loses_nothing_that_was_committed(database: Database, hold) -> None:
    child = hold(database.path, 60)
    child.kill()
    child.wait()
    add(database, "second")
    assert keys(database) == ["first", "second"]


def test_several_processes_may_read_at_once(database: Database, hold) -> None:
    hold(database.path, 60, "read")
    assert keys(database) == ["first"]


def test_two_processes_that_make_the_file_at_once_both_find_it_whole(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from udrl_pipeline.store.database import Database, migrations
with Database(Path({str(tmp_path / "udrl.duckdb")!r})).writer() as connection:
    connection.execute("INSERT INTO scores SELECT 'row ' || count(*), 'v1', 0.5 FROM scores")
"""
    children = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert keys(Database(tmp_path / "udrl.duckdb")) == ["row 0", "row 1"]


# -- a full disk --------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_typed_error_and_keeps_what_was_committed(small_disk: Path) -> None:
    database, committed = Database(small_disk / "udrl.duckdb"), 0
    with pytest.raises(StoreFull) as caught:
        for committed in range(1000):
            with database.writer() as connection:
                connection.execute(
                    "INSERT INTO scores SELECT ? || '-' || range || repeat(md5(random()::VARCHAR), 8), 'v1', random() FROM range(300)",
                    [str(committed)],
                )
    assert caught.value.where == str(database.path)
    assert caught.value.remedy == "free some space and run again: everything committed is kept"
    assert committed > 0
    with database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(committed * 300,)]


def test_a_disk_that_is_full_from_the_start_leaves_no_half_made_file(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    database = Database(small_disk / "udrl.duckdb")
    with pytest.raises(StoreFull):
        add(database, "first")
    filler.unlink()
    add(database, "first")
    assert keys(database) == ["first"]


def test_an_empty_file_that_a_killed_run_left_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "udrl.duckdb").touch()
    database = Database(tmp_path / "udrl.duckdb")
    add(database, "first")
    assert keys(database) == ["first"]


# -- a damaged file -----------------------------------------------------------------------------------------------------


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("folder", ["plain", "clockwork"])  # "lock" in a path, or in "block", is no lock
@pytest.mark.parametrize("where", ["header", "second header", "block", "half", "text"])
def test_a_damaged_file_is_named_and_not_touched(tmp_path: Path, folder: str, where: str) -> None:
    database = Database(tmp_path / folder / "udrl.duckdb", wait_s=60)
    add(database, *(f"row {n}" for n in range(50)))
    whole = database.path.read_bytes()
    match where:
        case "half":
            database.path.write_bytes(whole[: len(whole) // 2])
        case "text":
            database.path.write_bytes(b"no database at all" * 1000)
        case "header":
            damage(database.path, 100)
        case "second header":
            damage(database.path, 4096 + 50)
            damage(database.path, 8192 + 50)
        case "block":
            for offset in range(12288 + 500, len(whole), 262144):
                damage(database.path, offset)
    before = database.path.read_bytes()
    started = time.monotonic()
    with pytest.raises(CorruptArtifact) as caught, Database(database.path).reader() as connection:
        connection.execute("SELECT * FROM rows, scores").fetchall()
        connection.execute("SELECT sum(relevance), min(row_key) FROM scores").fetchall()
    assert time.monotonic() - started < 10  # it is not waited for as for a lock
    assert caught.value.what.startswith("the DuckDB file is damaged (")
    assert caught.value.where == str(database.path)
    assert caught.value.remedy == "restore it from a backup, or move it away: published versions stay in their folders"
    assert database.path.read_bytes() == before


def test_a_damaged_write_ahead_log_is_named(tmp_path: Path) -> None:
    database = Database(tmp_path / "udrl.duckdb")
    add(database, "first")
    script = f"""
import duckdb, os
connection = duckdb.connect({str(database.path)!r})
connection.execute("INSERT INTO scores SELECT range, 'v1', 0.5 FROM range(100)")
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    log = database.path.with_name("udrl.duckdb.wal")
    damage(log, log.stat().st_size // 2)
    with pytest.raises(CorruptArtifact, match="the DuckDB file is damaged"):
        keys(Database(database.path))


def test_artifacts_that_are_no_folder_are_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file", encoding="utf-8")
    with pytest.raises(StoreUnwritable) as caught:
        add(Database(tmp_path / "artifacts" / "udrl.duckdb"), "first")
    assert caught.value.remedy == "set `artifacts` in params.yaml to a folder that you may write to"


def test_what_was_deleted_is_gone_from_the_compacted_file_and_all_else_is_kept(tmp_path: Path) -> None:
    database = Database(tmp_path / "a'b.duckdb")
    with database.writer() as connection:
        connection.execute("INSERT INTO scores SELECT 'key' || range, 's', range FROM range(1000)")
        connection.execute("INSERT INTO scores VALUES ('a very secret key', 's', 1)")
    with database.writer() as connection:
        connection.execute("DELETE FROM scores WHERE row_key = 'a very secret key'")
    database.compact()
    assert b"very secret" not in database.path.read_bytes()
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")] == ["a'b.duckdb"]
    with database.reader() as connection:
        assert connection.execute("SELECT count(*), min(rowid), max(relevance) FROM scores").fetchall() == [(1000, 0, 999.0)]
        names = [name for (name,) in connection.execute("SELECT name FROM migrations ORDER BY name").fetchall()]
    assert names == sorted(migrations())
    with pytest.raises(duckdb.ConstraintException), database.writer() as connection:
        connection.execute("INSERT INTO scores VALUES ('key1', 's', 1)")


def test_a_file_that_another_process_holds_is_not_compacted(tmp_path: Path) -> None:
    database = Database(tmp_path / "store.duckdb", wait_s=0.1)
    with database.writer():
        pass
    before = database.path.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", f"import duckdb, time; c = duckdb.connect({str(database.path)!r}); print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(StoreLocked):
            database.compact()
        other.kill()
    assert database.path.read_bytes() == before
