"""`udrl audit forget`: what was forgotten is nowhere any more, no run brings it back, and what has learned from it is named."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner

from conftest import FakeEngine
from test_audit_impact import put
from udrl_pipeline import corpus, dataset
from udrl_pipeline.audit.book import Book
from udrl_pipeline.audit.checkout import checkout
from udrl_pipeline.audit.difference import difference
from udrl_pipeline.audit.forget import Forgetting, forget_intent, forget_row
from udrl_pipeline.audit.impact import impact_of_intent, impact_of_row
from udrl_pipeline.audit.lineage import trace_row
from udrl_pipeline.audit.losses import losses, size
from udrl_pipeline.audit.verify import Fault, verify
from udrl_pipeline.cli import main
from udrl_pipeline.errors import StoreLocked, StudentError, UdrlError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.intents import normalise
from udrl_pipeline.promotion import promote, standings
from udrl_pipeline.settings import Settings
from udrl_pipeline.settings import load as load_settings
from udrl_pipeline.store.names import SEEN_FILE
from udrl_pipeline.store.tombstones import subject_of
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.training import has_learned_forgotten
from udrl_pipeline.versioning import content_hash, file_sha256

IDEA = "zeppelin over the harbour of Genoa"


@pytest.fixture
def start(load: Callable[..., Settings], teacher: FakeEngine, tmp_path: Path) -> Callable[..., Workspace]:
    """A run with one idea of the user's own: ideas and a corpus."""
    (tmp_path / "ideas.csv").write_text(f"intent\n{IDEA}\n{'zeppelin ' * 30}\n", encoding="utf-8")

    def run(overrides: dict[str, object] = {}) -> Workspace:
        workspace = Workspace(load({"intents.builtin": 2, "intents.sources": ["ideas.csv"]} | overrides))
        workspace.begin_run()
        intents.build(workspace)
        corpus.build(workspace)
        return workspace

    return run


def put_student(workspace: Workspace, recipe: str, parents: dict[str, str], seen: list[str]) -> str:
    """A student that has read these rows once; its name is the hash of its files."""
    table = pd.DataFrame({"row_key": pd.Series(seen, dtype="str"), "times": 1})
    table.to_parquet(workspace.folder / SEEN_FILE)
    version = content_hash({SEEN_FILE: file_sha256(workspace.folder / SEEN_FILE)})
    (workspace.folder / SEEN_FILE).unlink()
    put(workspace, f"student/{recipe}", version, parents, {SEEN_FILE: table})
    return version


@dataclass(frozen=True)
class Made:
    workspace: Workspace
    dataset: str
    udrl: str
    sft: str


@pytest.fixture
def store(start: Callable[..., Workspace]) -> Made:
    """Also a dataset, two students of which one has read the idea's rows, and a report that shows one of its texts."""
    workspace = start()
    version = workspace.parents("teacher_corpus")["teacher_corpus"]
    rows = corpus.read_rows(workspace, version).assign(
        split="train", relevance=0.5, fidelity=0.6, gain=0.7, repetition=0.0, reward=0.9, quality=4
    )
    about = rows[rows.intent == IDEA]
    labelled = dataset.content_of(rows, {})
    put(workspace, "labeled_dataset", labelled, {"teacher_corpus": version}, {"rows.parquet": rows}, facts={"edges": {}})
    udrl = put_student(workspace, "udrl", {"labeled_dataset": labelled}, rows.row_key.tolist())
    sft = put_student(workspace, "sft", {"labeled_dataset": labelled}, rows.row_key[~rows.row_key.isin(about.row_key)].tolist())
    shown = pd.DataFrame({"intent": ["Some & other", IDEA], "text": ["text", about.text.iloc[0]]})
    put(workspace, "evaluation_report", "r1", {"student/udrl": udrl}, {"samples.parquet": shown})
    put(workspace, "evaluation_report", "r2", {"student/sft": sft}, {"samples.parquet": shown.head(1)})
    return Made(workspace, labelled, udrl, sft)


@pytest.fixture
def made(store: Made) -> Workspace:
    return store.workspace


def rows_about(workspace: Workspace) -> pd.DataFrame:
    rows = corpus.read_rows(workspace, workspace.parents("teacher_corpus")["teacher_corpus"])
    return rows[rows.intent == IDEA]


def everything(workspace: Workspace) -> bytes:
    """The bytes of every file of the store, Parquet as its values."""
    parts = []
    for file in sorted(workspace.folder.rglob("*")):
        if file.suffix == ".parquet":
            parts.append(pd.read_parquet(file).to_csv().encode())
        elif file.is_file():
            parts.append(file.read_bytes())
    return b"\n".join(parts)


def test_nothing_of_an_idea_is_left_in_any_file(made: Workspace) -> None:
    texts = [text.encode() for text in [IDEA, *rows_about(made).text]]
    assert all(text in everything(made) for text in texts)
    forget_intent(made, IDEA, "its author asked")
    left = everything(made).lower()
    assert [text for text in texts if text.lower() in left] == []


def test_what_must_be_trained_again_and_which_reports_went_is_told(made: Workspace, store: Made) -> None:
    done = forget_intent(made, f" {IDEA.upper()}", "its author asked")
    assert [(t.version.version, t.how) for t in done.learned] == [(store.udrl, "trained on them, 3 times")]
    assert done.reports == ["r1"]
    assert (made.version_folder("evaluation_report", "r2") / "manifest.json").exists()
    stone = done.tombstone
    assert (stone.number, stone.kind, stone.subject, stone.reason) == (1, "intent", subject_of(normalise(IDEA)), "its author asked")
    assert len(stone.row_keys) == 3
    with pytest.raises(UdrlError, match=r"there is no row .* any more: tombstone 1, its author asked"):
        trace_row(made, Book(made), stone.row_keys[0])
    with pytest.raises(UdrlError, match=r"was forgotten already: tombstone 1, its author asked"):
        forget_row(made, stone.row_keys[0], "again")


def test_what_a_forgotten_idea_has_touched_can_still_be_asked(made: Workspace, store: Made, start: Callable[..., Workspace]) -> None:
    export = put(made, "student_export/udrl", "e1", {"student/udrl": store.udrl}, {})
    before = {version.asset: version.version for version in made.ledger()}
    key = rows_about(made).row_key.iloc[0]
    forget_intent(made, IDEA, "its author asked")
    later = put_student(made, "udrl", {"labeled_dataset": store.dataset, "student/udrl": store.udrl}, [])
    found = impact_of_intent(made, IDEA)
    assert (found.what, found.rows) == (f"idea {IDEA!r}, forgotten (tombstone 1: its author asked)", 0)
    assert [(t.version.asset, t.version.version, t.how, t.learned) for t in found.touched] == [
        ("intents", before["intents"], "held the idea until tombstone 1", False),
        ("teacher_corpus", before["teacher_corpus"], "held 3 rows until tombstone 1", False),
        ("labeled_dataset", store.dataset, "held 3 rows until tombstone 1", False),
        ("student/udrl", store.udrl, "trained on them, 3 times", True),
        ("student/sft", store.sft, "not trained on them", False),
        ("evaluation_report", "r1", "showed it until tombstone 1, deleted", False),
        ("evaluation_report", "r2", "made from a version that holds them", False),
        ("student_export/udrl", export.version, f"the export of student/udrl {store.udrl}: trained on them, 3 times", True),
        ("student/udrl", later, f"goes on from student/udrl {store.udrl}, which was trained on them", True),
    ]
    assert impact_of_row(made, key).touched == found.touched
    assert [t.version.version for t in forget_intent(made, IDEA, "its author asked").learned] == [export.version, later, store.udrl]


def test_exports_and_students_that_are_not_current_are_listed_after_those_that_are(made: Workspace, store: Made, params: Path) -> None:
    forget_intent(made, IDEA, "its author asked")
    later = put_student(made, "udrl", {"labeled_dataset": store.dataset}, [])
    told = json.loads(CliRunner().invoke(main, ["audit", "forget", "--json", "--params", str(params)]).stdout)
    assert told["train_again"] == [{"asset": "student/udrl", "version": store.udrl, "how": "trained on them, 3 times", "current": False}]
    assert later != store.udrl


def test_the_ledger_still_verifies_and_each_version_tells_what_it_lacks(made: Workspace, store: Made) -> None:
    assert verify(made) == []
    forget_intent(made, IDEA, "its author asked")
    assert verify(made) == []
    assert made.manifest("labeled_dataset", store.dataset)["forgotten"] == [1]
    assert "forgotten" not in made.manifest("student/udrl", store.udrl)
    with duckdb.connect(str(made.database.path)) as connection:
        connection.execute("UPDATE tombstones SET reason = 'none of your business'")
    assert [fault.asset for fault in verify(made)] == ["tombstones"]


def test_no_run_brings_it_back_and_its_line_is_set_aside_without_its_text(made: Workspace, start: Callable[..., Workspace]) -> None:
    before = {version.version for version in made.ledger()}
    forget_intent(made, IDEA, "its author asked")
    again = start({"teacher.samples": 2})
    assert rows_about(again).empty
    with again.database.reader() as connection:
        found = connection.execute("SELECT item, reason, text FROM quarantine WHERE version = ? ORDER BY item",
                                   [again.parents("intents")["intents"]]).fetchall()  # fmt: skip
    assert found[0] == ("ideas.csv:2", "forgotten", "")
    assert again.parents("intents")["intents"] not in before
    assert verify(again) == []


def test_a_row_is_forgotten_without_its_idea(made: Workspace, start: Callable[..., Workspace], teacher: FakeEngine) -> None:
    row = rows_about(made).iloc[0]
    done = forget_row(made, row.row_key, "it names a person")
    assert (done.tombstone.kind, done.tombstone.row_keys) == ("row", (row.row_key,))
    asked = teacher.rows
    again = start()
    assert teacher.rows == asked
    assert set(rows_about(again).row_key) == set(rows_about(made).row_key) - {row.row_key}
    assert len(rows_about(again)) == 2
    with again.database.reader() as connection:
        found = connection.execute("SELECT version, reason, text FROM quarantine WHERE item = ?", [row.row_key]).fetchall()
    assert found == [(again.parents("teacher_corpus")["teacher_corpus"], "forgotten", "")]


def test_what_a_version_has_lost_since_it_was_made_is_told_wherever_it_is_shown(made: Workspace, store: Made, params: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["audit", *arguments, "--params", str(params)])
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    before = pd.read_parquet(made.version_folder("labeled_dataset", store.dataset) / "rows.parquet")
    forget_intent(made, IDEA, "its author asked")
    kept = before[before.intent != IDEA]
    parents = {"teacher_corpus": made.parents("teacher_corpus")["teacher_corpus"]}
    after = put(made, "labeled_dataset", "later", parents, {"rows.parquet": kept})
    version = made.find("labeled_dataset", store.dataset)
    assert version
    found = difference(made, version, after)
    stone = made.tombstones()[0]
    at = f"{stone.created_at.astimezone():%Y-%m-%d %H:%M}"
    assert (found.rows, found.causes()) == ({}, [("tombstone", "1", f"took 3 rows out of {version.version}, {at}: its author asked")])
    assert found.as_dict()["forgotten"] == [{"tombstone": 1, "version": version.version, "rows": 3, "reason": "its author asked"}]
    assert "1 row, 3 forgotten since -> 1 row)" in run("diff", "labeled_dataset~1", "labeled_dataset")
    assert "1 row, 3 forgotten since" in run("versions", "labeled_dataset")
    assert "1 row, 3 forgotten since" in run("trace", version.version)
    assert "3 forgotten since" in run("checkout", version.version, "--to", str(made.settings.root / "old"))
    assert "evaluation_report r1" in run("versions", "evaluation_report")
    assert "1 row, deleted since" in run("versions", "evaluation_report")


def test_a_tombstone_from_before_rows_were_counted_is_told_without_their_number(made: Workspace, store: Made) -> None:
    forget_intent(made, IDEA, "its author asked")
    [stone] = made.tombstones()
    old = replace(stone, files=tuple(file._replace(rows=None) for file in stone.files))
    version = made.find("labeled_dataset", store.dataset)
    assert version
    assert size(version, losses(Book(made), [old])) == "1 row, some forgotten since"


def test_an_import_leaves_it_out(made: Workspace, tmp_path: Path) -> None:
    about = rows_about(made)
    corpus.export_rows(made, tmp_path / "rows.parquet")
    forget_row(made, about.row_key.iloc[0], "it names a person")
    assert corpus.import_rows(made, tmp_path / "rows.parquet") == 0
    forget_intent(made, IDEA, "its author asked")
    assert corpus.import_rows(made, tmp_path / "rows.parquet") == 0


def test_a_student_that_has_learned_from_it_is_no_start_for_another(made: Workspace, store: Made) -> None:
    later = put_student(made, "udrl", {"labeled_dataset": store.dataset, "student/udrl": store.udrl}, [])
    students = {v.version: v for v in made.ledger() if v.asset.startswith("student/")}
    assert [has_learned_forgotten(made, student) for student in students.values()] == [False] * 3
    forget_intent(made, IDEA, "its author asked")
    told = {name: has_learned_forgotten(made, student) for name, student in students.items()}
    assert told == {store.udrl: True, store.sft: False, later: True}


def test_a_warm_start_that_was_asked_for_is_refused(made: Workspace, load: Callable[..., Settings]) -> None:
    from udrl_pipeline.student.training import _warm_start

    forget_intent(made, IDEA, "its author asked")
    workspace = Workspace(load({"student.init_from": "previous"}))
    with pytest.raises(StudentError, match="has learned from rows that were forgotten since"):
        _warm_start(workspace, "student/udrl", "c", {}, pd.DataFrame())


def test_a_killed_forgetting_is_named_and_ends_when_it_is_said_again(made: Workspace, store: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("udrl_pipeline.audit.forget._put_in_place", kill)
        with pytest.raises(Killed):
            forget_intent(made, IDEA, "its author asked")
    assert Fault("labeled_dataset", store.dataset, "the manifest's files are not the ledger's") in verify(made)
    assert {fault.asset for fault in verify(made)} == {"intents", "teacher_corpus", "labeled_dataset", "evaluation_report"}
    forget_intent(made, IDEA, "its author asked")
    assert verify(made) == []
    assert IDEA.encode() not in everything(made)


def test_nobody_forgets_while_a_run_makes_a_version(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workspace, "lock", lambda self, asset, wait_s=0.1, lock=Workspace.lock: lock(self, asset, 0.1))
    with made.lock("teacher_corpus"), pytest.raises(StoreLocked, match="making teacher_corpus"):
        forget_intent(made, IDEA, "its author asked")


@pytest.mark.parametrize(("forget", "value"), [(forget_intent, "a green whale"), (forget_row, "nothing")])
def test_what_nobody_knows_cannot_be_forgotten(made: Workspace, forget: Callable[..., Forgetting], value: str) -> None:
    with pytest.raises(UdrlError, match="nothing is known of this"):
        forget(made, value, "because")


def test_the_command_asks_deletes_and_lists(made: Workspace, store: Made, params: Path) -> None:
    def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(main, ["audit", "forget", *arguments, "--params", str(params)], input=stdin)
        return result.exit_code, " ".join((result.stdout + result.stderr).split())

    assert run() == (0, "nothing was forgotten")
    assert run("--intent", IDEA)[0] == 2
    assert run("--intent", IDEA, "--reason", "GDPR", stdin="n\n")[0] == 1
    assert not rows_about(made).empty
    code, told = run("--intent", IDEA, "--reason", "GDPR", stdin="y\n")
    assert (code, "must be trained again" in told, f"{store.udrl}*" in told, "reports deleted: r1" in told) == (0, True, True, True)
    code, told = run("--json")
    listed = json.loads(told)
    assert [(stone["number"], stone["reason"], stone["rows"]) for stone in listed["forgotten"]] == [(1, "GDPR", 3)]
    assert listed["train_again"] == [{"asset": "student/udrl", "version": store.udrl, "how": "trained on them, 3 times", "current": True}]


def test_a_student_in_use_that_has_learned_it_is_named(made: Workspace, store: Made, params: Path) -> None:
    udrl = made.find("student/udrl", store.udrl)
    assert udrl
    promote(made, udrl, "it is good")
    result = CliRunner().invoke(main, ["audit", "forget", "--intent", IDEA, "--reason", "GDPR", "--yes", "--params", str(params)])
    assert f"in use: student/udrl {store.udrl}; the next run puts a newer one into use" in " ".join(result.stdout.split())
    [standing] = standings(made, "udrl")
    assert (standing.state, standing.why) == (
        "current", "promoted by a user: it is good; it has learned from rows that were forgotten since",
    )  # fmt: skip
    assert [s.unusable for s in standings(made, "sft")] == [""]


def test_a_checkout_after_it_is_whole_and_honours_it(made: Workspace, store: Made, tmp_path: Path) -> None:
    forget_intent(made, IDEA, "its author asked")
    version = made.find("labeled_dataset", store.dataset)
    assert version
    checkout(made, version, tmp_path / "old")
    there = Workspace(load_settings(tmp_path / "old" / "params.yaml", preset=""))
    assert verify(there) == []
    assert there.forgotten() == made.forgotten()
    assert IDEA.encode() not in everything(there)
