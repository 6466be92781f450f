"""The teacher corpus: only what is missing is asked for, nothing is lost or doubled, and a version is its content."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from conftest import REPOSITORY, FakeEngine, idea_of
from udrl_pipeline import corpus, recorded
from udrl_pipeline import settings as settings_module
from udrl_pipeline.errors import CorruptArtifact, IntentsError, StoreFull, TeacherError
from udrl_pipeline.intents import Intent, asset, collect
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.tasks import load_tasks

Load = Callable[..., Settings]
IDEAS = ("red fox", "old lighthouse", "jazz night", "tea ceremony")


@pytest.fixture
def build(params: Path, load: Load) -> Callable[..., tuple[Workspace, Version]]:
    """Build intents and corpus for these ideas, in this order."""

    def run(*ideas: str, **overrides: object) -> tuple[Workspace, Version]:
        (params.parent / "ideas.csv").write_text("\n".join(["intent", *(ideas or IDEAS)]), encoding="utf-8")
        values = {"intents.builtin": 0, "intents.sources": ["ideas.csv"], **{k.replace("__", "."): v for k, v in overrides.items()}}
        workspace = Workspace(load(values))
        asset.build(workspace)
        return workspace, corpus.build(workspace)

    return run


def rows(workspace: Workspace, columns: str = "row_key, text, run_id") -> list[tuple[Any, ...]]:
    with workspace.database.reader() as connection:
        return connection.execute(f"SELECT {columns} FROM rows ORDER BY row_key").fetchall()


# -- identity -----------------------------------------------------------------------------------------------------------


def test_row_keys_are_those_of_the_recorded_rows() -> None:
    # thousands of rows were recorded under keys made like these: a change here asks the teacher for all of them again
    settings = settings_module.load(
        REPOSITORY / "params.yaml", preset="", overrides={"artifacts": "/nowhere", "intents.builtin": 4320, "intents.sources": []}
    )
    planned = corpus.plan(collect(settings).kept, load_tasks(settings), settings, corpus.source_digest(settings))
    assert {
        (row.task, row.asked_words, row.row_key) for row in planned if row.intent_key == "a car wash with a retro look" and row.sample == 0
    } == {
        ("image", 22, "8d3234e6f03b1c7aa7f9d0ec79fad1f7"),
        ("search", 10, "4c03166e77d192801b5a147a75821e28"),
        ("template", 22, "bdf1f0f756e96e53af877fc9f0fd4cfa"),
    }
    first = [row.row_key for row in planned if row.sample == 0]
    assert len(first) == 4320 * 3
    assert corpus.content_hash(first) == "b7e75f019ee50461"


def test_every_row_has_its_own_key_and_every_first_sample_comes_before_a_second(load: Load) -> None:
    settings = load({"teacher.samples": 3})
    planned = corpus.plan(collect(settings).kept, load_tasks(settings), settings, "source")
    assert len({row.row_key for row in planned}) == len(planned) == 6 * 3 * 3
    assert [row.sample for row in planned] == sorted(row.sample for row in planned)


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        ({"teacher.engine": "vllm"}, True),
        ({"teacher.seed": 1}, True),
        ({"teacher.chunk_rows": 1}, True),
        ({"teacher.batch_rows": 1}, True),
        ({"teacher.server.model": "other"}, True),
        ({"teacher.temperature": 0.6}, False),
        ({"teacher.top_p": 0.9}, False),
        ({"teacher.repetition_penalty": 1.2}, False),
        ({"teacher.examples": 2}, False),
        ({"teacher.asked_words": [30]}, False),
        ({"teacher.model.sha256": "0" * 64}, False),
    ],
)
def test_what_belongs_to_the_identity_of_a_row(load: Load, overrides: dict[str, object], same: bool) -> None:
    def keys(settings: Settings) -> set[str]:
        return {row.row_key for row in corpus.plan(collect(settings).kept, load_tasks(settings), settings, corpus.source_digest(settings))}

    before, after = keys(load()), keys(load(overrides))
    assert (after == before) if same else not (after & before)


def test_an_endpoint_without_a_digest_is_known_by_the_name_of_its_model(load: Load) -> None:
    server = {"teacher.engine": "server", "teacher.model.sha256": None}
    first = corpus.source_digest(load(server))
    assert len(first) == 64
    assert corpus.source_digest(load(server | {"teacher.server.base_url": "http://other/v1"})) == first
    assert corpus.source_digest(load(server | {"teacher.server.model": "other"})) != first


# -- what is asked for --------------------------------------------------------------------------------------------------


def test_a_first_build_asks_for_every_row_in_chunks_and_stores_what_it_knows_of_each(build, teacher: FakeEngine) -> None:
    workspace, made = build()
    assert (made.rows, made.made_now, made.verdict) == (12, True, "PASS")
    assert (teacher.opened, teacher.rows, teacher.batches, teacher.closed) == (1, 12, [8, 4], 1)
    assert (made.work["teacher_rows"], made.work["teacher_tokens"]) == (12, made.facts["tokens"])
    assert made.facts["rows_per_task"] == {"image": 4, "search": 4, "template": 4}
    assert (made.facts["engines"], made.facts["refused"], made.facts["imported"], made.facts["unfinished"]) == (["fake 1"], 0, 0, 0)
    frame = corpus.read_rows(workspace, made.version)
    assert tuple(frame.columns) == corpus.COLUMNS
    fox = frame[(frame.intent == "red fox") & (frame.task == "image")].iloc[0]
    (request,) = [r for r in teacher.requests if idea_of(r) == "red fox" and "text-to-image" in r.messages[0]["content"]]
    assert fox.text == FakeEngine.text(request)
    assert json.loads(fox.examples) == [m["content"].split("\n")[0].removeprefix("Idea: ") for m in request.messages[1:-1:2]]
    assert json.loads(fox.sampling) == {"temperature": 0.5, "top_p": 0.92, "repetition_penalty": 1.08, "max_tokens": request.max_tokens}
    assert (fox.intent_key, fox.asked_words, fox["sample"], fox.finish_reason) == ("red fox", (request.max_tokens - 20) / 2.5, 0, "stop")
    assert (fox.engine, fox.engine_version, fox.run_id, fox.recorded) == ("fake", "1", workspace.run_id, False)
    assert fox.source == workspace.settings.teacher.model.sha256
    assert fox.template_hash == workspace.tasks["image"].template_hash


def test_an_unchanged_build_opens_no_engine_and_keeps_the_version(build, teacher: FakeEngine) -> None:
    _, first = build()
    _, second = build()
    assert (second.version, second.made_now, second.work) == (first.version, False, {})
    assert (teacher.opened, teacher.rows) == (1, 12)


def test_a_touched_code_version_asks_for_nothing_and_keeps_the_version(build, teacher: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = build()
    monkeypatch.setattr(corpus, "code_version", lambda _: "another")
    _, second = build()
    assert (second.version, second.made_now, second.work) == (first.version, True, {"teacher_rows": 0, "teacher_tokens": 0})
    assert teacher.opened == 1


def test_twenty_new_intents_ask_for_exactly_their_rows(build, teacher: FakeEngine) -> None:
    workspace, first = build(teacher__samples=2)
    before, asked = set(rows(workspace)), teacher.rows
    new = [f"new idea {letter}" for letter in "abcdefghijklmnopqrst"]
    workspace, second = build(*IDEAS, *new, teacher__samples=2)
    assert second.version != first.version
    assert teacher.rows - asked == second.work["teacher_rows"] == 20 * 3 * 2
    assert {idea_of(request) for request in teacher.requests[asked:]} == set(new)
    assert before < set(rows(workspace))


def test_a_removed_intent_leaves_the_version_but_not_the_store(build, teacher: FakeEngine) -> None:
    _, first = build()
    workspace, second = build(*IDEAS[:3])
    assert (second.rows, len(rows(workspace)), teacher.rows) == (9, 12, 12)
    _, third = build()
    assert (third.version, teacher.rows) == (first.version, 12)


def test_a_second_sample_keeps_the_first(build, teacher: FakeEngine) -> None:
    workspace, first = build()
    before = set(rows(workspace))
    workspace, second = build(teacher__samples=2)
    assert (first.rows, second.rows, teacher.rows) == (12, 24, 24)
    assert before < set(rows(workspace))
    assert build()[1].version == first.version


def test_a_changed_example_pair_asks_again_for_that_tasks_rows_alone(build, teacher: FakeEngine, params: Path) -> None:
    (params.parent / "tasks").mkdir()
    workspace, first = build(tasks__folder="tasks")
    before = {task: {r[0] for r in rows(workspace, "row_key, task") if r[1] == task} for task in ("image", "search", "template")}
    task = yaml.safe_load((REPOSITORY / "udrl_pipeline/tasks/image.yaml").read_text(encoding="utf-8"))
    task["examples"][0]["text"] += ", at night"
    (params.parent / "tasks" / "image.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    workspace, second = build(tasks__folder="tasks")
    assert (second.work["teacher_rows"], teacher.rows) == (4, 16)
    frame = corpus.read_rows(workspace, second.version)
    now = {str(name): set(group.row_key) for name, group in frame.groupby("task")}
    assert (now["search"], now["template"]) == (before["search"], before["template"])
    assert not now["image"] & before["image"]
    assert second.version != first.version


def test_a_changed_label_changes_no_row_key(build, teacher: FakeEngine, params: Path) -> None:
    _, first = build()
    (params.parent / "tasks").mkdir()
    task = yaml.safe_load((REPOSITORY / "udrl_pipeline/tasks/image.yaml").read_text(encoding="utf-8"))
    (params.parent / "tasks" / "image.yaml").write_text(yaml.safe_dump({**task, "label": "Picture"}), encoding="utf-8")
    workspace, second = build(tasks__folder="tasks")
    assert (second.version, teacher.rows, len(rows(workspace))) == (first.version, 12, 12)


def test_intents_that_name_a_task_which_is_gone_are_a_typed_error(build, teacher: FakeEngine, load: Load) -> None:
    build()
    workspace = Workspace(load({"tasks.names": ["image"]}))
    with pytest.raises(IntentsError) as caught:
        corpus.build(workspace)
    assert caught.value.what == "the intents name tasks that are no longer there: search, template"
    assert caught.value.remedy == "run `udrl run --select intents` first"


# -- the version --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "seconds", "most", "expected"),
    [(32, 9.0, 384, 128), (128, 36.0, 384, 160), (32, 90.0, 384, 16), (32, 0.0, 64, 64), (1, 500.0, 384, 1)],
)
def test_chunks_grow_and_shrink_to_what_the_engine_does_between_two_commits(size: int, seconds: float, most: int, expected: int) -> None:
    assert corpus.next_chunk(size, seconds, most) == expected


def test_engine_chunk_size_run_and_time_do_not_change_the_version(build, use_engine, tmp_path: Path) -> None:
    use_engine(FakeEngine(version="1"))
    _, first = build(artifacts="one")
    use_engine(FakeEngine(version="2")).name = "other"
    _, second = build(*reversed(IDEAS), artifacts="two", teacher__chunk_rows=5, teacher__engine="vllm", teacher__seed=99)
    assert second.version == first.version
    assert (first.facts["engines"], second.facts["engines"]) == (["fake 1"], ["other 2"])


def test_the_order_of_the_rows_in_the_store_does_not_change_the_version(build, teacher: FakeEngine, load: Load) -> None:
    workspace, first = build()
    exported = workspace.folder / "rows.parquet"
    corpus.export_rows(workspace, exported)
    shuffled = pd.read_parquet(exported).sample(frac=1, random_state=random.Random(3).randrange(2**31))
    shuffled.to_parquet(exported)
    other = Workspace(load({"artifacts": "other", "intents.builtin": 0, "intents.sources": ["ideas.csv"]}))
    corpus.import_rows(other, exported)
    asset.build(other)
    assert corpus.build(other).version == first.version
    assert teacher.rows == 12


def test_known_rows_have_a_known_version_in_any_order() -> None:
    frame = pd.DataFrame({"row_key": ["k2", "k1"], "text": ['a "b"\n ö', "x"], "finish_reason": ["stop", "length"]})
    assert {corpus.content_of(rows) for rows in (frame, frame[::-1])} == {"8e8638a4e9224a8a"}


def test_any_changed_text_changes_the_version(build, teacher: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = build(artifacts="one")
    text = FakeEngine.text
    monkeypatch.setattr(FakeEngine, "text", staticmethod(lambda request: text(request) + ("." if idea_of(request) == "red fox" else "")))
    _, second = build(artifacts="two")
    assert second.version != first.version


# -- when it breaks off -------------------------------------------------------------------------------------------------


def test_a_teacher_that_dies_leaves_its_committed_chunks_and_the_next_build_asks_for_the_rest(build, use_engine, load: Load) -> None:
    dying = use_engine(FakeEngine(dies_after=10))
    with pytest.raises(TeacherError, match="the fake teacher died"):
        build()
    workspace = Workspace(load())
    committed = rows(workspace)
    assert (len(committed), workspace.current("teacher_corpus"), dying.closed) == (8, None, 1)
    healthy = use_engine(FakeEngine())
    workspace, made = build()
    assert (made.rows, made.work["teacher_rows"], healthy.rows) == (12, 4, 4)
    assert set(committed) < set(rows(workspace))
    assert len({key for key, *_ in rows(workspace)}) == 12
    use_engine(FakeEngine())
    assert build(artifacts="undisturbed")[1].version == made.version


KILLED = """
import logging, sys
import conftest
from udrl_pipeline import corpus, settings
from udrl_pipeline.intents import asset
from udrl_pipeline.store.workspace import Workspace
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
corpus.open_engine = lambda settings: conftest.FakeEngine(seconds_per_row=0.05)
workspace = Workspace(settings.load(sys.argv[1], overrides={"intents.builtin": 8}))
asset.build(workspace)
corpus.build(workspace)
"""


def test_a_run_that_is_killed_resumes_with_exactly_the_missing_rows(params: Path, load: Load, teacher: FakeEngine) -> None:
    path = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(params)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | path
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("8 of 24 rows, "):
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    workspace = Workspace(load({"intents.builtin": 8}))
    committed = rows(workspace)
    assert len(committed) in (8, 16)  # the second chunk may have been committed before the signal came
    asset.build(workspace)
    made = corpus.build(workspace)
    assert (made.rows, teacher.rows, made.work["teacher_rows"]) == (24, 24 - len(committed), 24 - len(committed))
    assert set(committed) < set(rows(workspace))
    assert len({key for key, *_ in rows(workspace)}) == len(rows(workspace)) == 24


def test_a_full_disk_stops_the_corpus_and_it_goes_on_once_there_is_space(
    build, small_disk: Path, use_engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, text = random.Random(1), FakeEngine.text
    use_engine(FakeEngine())
    ideas = [f"idea {letter}" for letter in "abcdefghijklmnop"]
    with monkeypatch.context() as patch, pytest.raises(StoreFull) as caught:
        patch.setattr(FakeEngine, "text", staticmethod(lambda request: text(request) + draw.randbytes(120_000).hex()))
        build(*ideas, artifacts=str(small_disk))
    assert caught.value.where == str(small_disk / "udrl.duckdb")
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    second = use_engine(FakeEngine())
    workspace, made = build(*ideas, artifacts=str(small_disk))
    assert made.rows == len({key for key, *_ in rows(workspace)}) == 48
    assert 0 < second.rows < 48


# -- refusals -----------------------------------------------------------------------------------------------------------


def test_a_refused_row_is_quarantined_and_the_others_are_kept(build, use_engine) -> None:
    engine = use_engine(FakeEngine(refuses=("jazz",)))
    workspace, made = build()
    assert (made.rows, made.facts["refused"], made.work["teacher_rows"], engine.rows) == (9, 3, 9, 12)
    with workspace.database.reader() as connection:
        found = connection.execute("SELECT asset, version, reason, detail, text FROM quarantine").fetchall()
        items = {item for (item,) in connection.execute("SELECT item FROM quarantine").fetchall()}
    assert found == [("teacher_corpus", made.version, "teacher refused", "the fake teacher does not like it", "jazz night")] * 3
    assert len(items) == 3
    assert not items & {key for key, *_ in rows(workspace)}


def test_a_refused_row_is_asked_for_again_by_the_next_build_that_has_something_to_do(build, use_engine) -> None:
    use_engine(FakeEngine(refuses=("jazz",)))
    build()
    kinder = use_engine(FakeEngine())
    workspace, made = build(*IDEAS, "new idea")
    assert (kinder.rows, made.rows, made.facts["refused"]) == (6, 15, 0)


def test_a_teacher_that_refuses_everything_is_a_typed_error(build, use_engine, load: Load) -> None:
    use_engine(FakeEngine(refuses=("a", "e", "i", "o", "u")))
    with pytest.raises(TeacherError) as caught:
        build()
    assert caught.value.what == "the teacher refused all of its 12 rows; the first one: the fake teacher does not like it"
    assert Workspace(load()).current("teacher_corpus") is None


def test_any_text_that_a_teacher_may_write_is_stored_as_it_is(build, teacher: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "nul \x00 inside", "tabs\tand\u2028lines", "😀 ｗｉｄｅ", '"quotes", <|tokens|>', "x" * 10_000]
    wrote = {f"idea {letter}": text for letter, text in zip("abcdef", texts, strict=True)}
    monkeypatch.setattr(FakeEngine, "text", staticmethod(lambda request: wrote[idea_of(request)]))
    workspace, made = build(*wrote, **{"tasks.names": ["image"]})
    assert dict(rows(workspace, "intent, text")) == wrote
    frame = corpus.read_rows(workspace, made.version)
    assert dict(zip(frame.intent, frame.text, strict=True)) == wrote


# -- recorded rows, export and import -----------------------------------------------------------------------------------


def test_exported_rows_and_scores_come_back_as_they_were(build, teacher: FakeEngine, load: Load, tmp_path: Path) -> None:
    workspace, made = build()
    keys = [key for key, *_ in rows(workspace)]
    with workspace.database.writer() as connection:
        for key in keys[:5]:
            connection.execute("INSERT INTO scores VALUES (?, 'v1', 0.25), (?, 'v2', 0.75)", [key, key])
    assert corpus.export_rows(workspace, tmp_path / "deep" / "rows.parquet") == 12
    other = Workspace(load({"artifacts": "other"}))
    assert corpus.import_rows(other, tmp_path / "deep" / "rows.parquet") == 12
    assert corpus.import_rows(other, tmp_path / "deep" / "rows.parquet") == 0
    columns = ", ".join(corpus.COLUMNS[:-1])
    assert rows(other, columns) == rows(workspace, columns)
    assert rows(other, "row_key, recorded") == [(key, True) for key in keys]
    with other.database.reader() as connection:
        scores = connection.execute("SELECT * FROM scores ORDER BY ALL").fetchall()
    assert scores == sorted((key, version, relevance) for key in keys[:5] for version, relevance in (("v1", 0.25), ("v2", 0.75)))


def test_an_export_can_be_limited_to_some_rows(build, teacher: FakeEngine, tmp_path: Path) -> None:
    workspace, _ = build()
    wanted = {str(key) for key, *_ in rows(workspace)[:3]}
    assert corpus.export_rows(workspace, tmp_path / "rows.parquet", wanted) == 3
    assert set(pd.read_parquet(tmp_path / "rows.parquet").row_key) == wanted


def test_recorded_rows_are_imported_instead_of_generated(
    build, teacher: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace, first = build("red fox", "old lighthouse", "a third idea", artifacts="one")
    with workspace.database.writer() as connection:
        connection.execute("INSERT INTO scores SELECT row_key, 'v1', 0.5 FROM rows")
    corpus.export_rows(workspace, tmp_path / "rows-1.parquet")
    monkeypatch.setattr(corpus, "recorded_rows", lambda: [tmp_path / "rows-1.parquet"])
    before = teacher.rows
    workspace, made = build("red fox", "old lighthouse", "jazz night", artifacts="two", teacher__recorded=True)
    assert (made.rows, made.facts["imported"], made.work["teacher_rows"], teacher.rows - before) == (9, 6, 3, 3)
    assert {row[0] for row in rows(workspace, "intent, row_key") if row[0] != "jazz night"} == {"red fox", "old lighthouse"}
    with workspace.database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(6,)]
    _, without = build("red fox", "old lighthouse", "jazz night", artifacts="three", teacher__recorded=False)
    assert (without.version, without.facts["imported"], without.work["teacher_rows"]) == (made.version, 0, 9)


def test_a_row_that_is_there_already_is_not_overwritten_by_an_import(build, teacher: FakeEngine, tmp_path: Path) -> None:
    workspace, _ = build()
    corpus.export_rows(workspace, tmp_path / "rows.parquet")
    frame = pd.read_parquet(tmp_path / "rows.parquet")
    frame["text"] = "something else"
    frame.to_parquet(tmp_path / "rows.parquet")
    before = rows(workspace)
    assert corpus.import_rows(workspace, tmp_path / "rows.parquet") == 0
    assert rows(workspace) == before


def damaged_copy(file: Path, kind: str) -> Path:
    frame, whole = pd.read_parquet(file), file.read_bytes()
    bad = file.with_name(f"{kind}.parquet")
    match kind:
        case "missing":
            pass
        case "text":
            bad.write_text("no rows", encoding="utf-8")
        case "half":
            bad.write_bytes(whole[: len(whole) // 2])
        case "other columns":
            frame[["row_key", "text"]].to_parquet(bad)
        case "other types":
            frame.assign(tokens="many").to_parquet(bad)
        case "no text":
            frame.assign(text=None).to_parquet(bad)
        case "flipped":
            data = bytearray(whole)
            data[200:400] = bytes(255 - byte for byte in data[200:400])
            bad.write_bytes(data)
    return bad


def test_a_file_that_holds_no_rows_is_refused_and_changes_nothing(build, teacher: FakeEngine, tmp_path: Path, load: Load) -> None:
    workspace, _ = build("red fox")
    corpus.export_rows(workspace, tmp_path / "rows.parquet")
    empty = Workspace(load({"artifacts": "other"}))
    for kind in ("missing", "text", "half", "other columns", "other types", "no text", "flipped"):
        bad = damaged_copy(tmp_path / "rows.parquet", kind)
        with pytest.raises(CorruptArtifact) as caught:
            corpus.import_rows(empty, bad)
        assert caught.value.what.startswith("is no file of rows ("), kind
        assert (caught.value.where, caught.value.remedy) == (str(bad), "write it with `udrl corpus export`")
    assert rows(empty) == []


def test_an_export_to_a_full_disk_leaves_no_file(build, teacher: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = build()

    def fill_up(self: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows.parquet").write_bytes(b"the last export")
    monkeypatch.setattr(pd.DataFrame, "to_parquet", fill_up)
    with pytest.raises(StoreFull):
        corpus.export_rows(workspace, tmp_path / "out" / "rows.parquet")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"rows.parquet": b"the last export"}


def test_what_is_held_back_from_the_recording_are_twenty_built_in_training_intents(load: Load) -> None:
    intents = collect(load({"intents.builtin": 2000})).kept
    held = recorded.held_back([*intents, Intent("my own idea", "my own idea", ("image",), "train", "ideas.csv:2")])
    assert len(held) == 20
    assert held == recorded.held_back(list(reversed(intents)))
    assert {intent.split for intent in intents if intent.key in held} == {"train"}
