"""Which student is in use: by the gate, by a user, and for whom it stays as it is."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from test_audit_verify import edit
from udrl_pipeline import promotion
from udrl_pipeline.audit.export import as_json, as_openlineage
from udrl_pipeline.audit.pending import News, pending
from udrl_pipeline.audit.verify import Fault, verify
from udrl_pipeline.errors import StudentError, UdrlError
from udrl_pipeline.evaluation import report
from udrl_pipeline.promotion import promote, refused, rollback, standings
from udrl_pipeline.settings import Settings
from udrl_pipeline.store import promotions, tombstones
from udrl_pipeline.store.names import SEEN_FILE
from udrl_pipeline.store.workspace import Version, Workspace, in_role
from udrl_pipeline.student.channel import promoted
from udrl_pipeline.versioning import content_hash

pytestmark = pytest.mark.usefixtures("kept_open")
UDRL = "student/udrl"
SETTINGS = {"promotion.margin": 0.02, "promotion.measures": ["reward"]}


def ratio(low: float) -> dict[str, float]:
    return {"value": low + 0.02, "low": low, "high": low + 0.04, "n": 9}


class Store:
    """A store in which students and reports appear as if they had been made."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.students: dict[str, str] = {}

    def student(self, version: str, asset: str = UDRL, seen: Sequence[str] = (), tasks: Sequence[str] = ("image",)) -> Version:
        def write(folder: Path) -> None:
            pd.DataFrame({"row_key": pd.Series(list(seen), dtype="str"), "times": 1}).to_parquet(folder / SEEN_FILE)

        self.students[asset] = version
        return self.record(asset, version, {"labeled_dataset": "d"}, write, covered_words={task: [6, 40] for task in tasks})

    def report(self, low: float | None = None, asset: str = UDRL, reward: float = 1.2) -> Version:
        """A report on the newest students; `low`: where the interval begins in which the newest one of `asset` is compared."""
        recipe, current = asset.removeprefix("student/"), promoted(self.workspace, asset)
        systems = {name.removeprefix("student/"): {"figures": {"mean": {"reward": {"value": reward}, "relevance": {"value": 0.8}}}}
                   for name in self.students}  # fmt: skip
        metrics: dict[str, Any] = {"systems": systems, "against": {}, "promotion": {}}
        parents = dict(self.students)
        if low is not None:
            assert current
            parents[in_role(asset, "promoted")] = current.version
            metrics["against"] = {recipe: {f"{recipe}_promoted": {"mean": {"reward": ratio(low)}}}}
        version = content_hash([parents, metrics])
        return self.record(report.ASSET, version, parents, lambda folder: _write(folder / "metrics.json", metrics))

    def record(self, asset: str, version: str, parents: dict[str, str], write: Callable[[Path], None], **facts: Any) -> Version:
        return self.workspace.record(
            asset, version=version, fingerprint=version, code_version="c", rows=1, params={}, parents=parents, facts=facts, write=write
        )

    def run(self, workspace: Workspace | None = None) -> Version:
        return promotion.build(workspace or self.workspace)

    def in_use(self) -> dict[str, str]:
        return promotions.in_use(self.workspace.promotions())

    def told(self) -> list[tuple[str, str, str, str | None]]:
        return [(e.version, e.action, e.decided_by, e.in_use) for e in self.workspace.promotions()]


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def store(load: Callable[..., Settings]) -> Store:
    return Store(Workspace(load(SETTINGS), run_id="run-1"))


@pytest.fixture
def judged(store: Store) -> Store:
    """Student a is in use; the gate has refused b."""
    store.student("a")
    store.report()
    store.run()
    store.student("b")
    store.report(low=0.9)
    store.run()
    return store


def test_the_first_student_that_has_a_report_is_put_into_use(store: Store) -> None:
    student = store.student("a")
    made = store.report()
    version = store.run()
    [entry] = store.workspace.promotions()
    assert entry.as_dict() == {
        "number": 1, "asset": UDRL, "version": "a", "action": "promoted", "by": "gate", "in_use": "a", "report": made.version,
        "reason": "it is the first", "figures": {"against": None}, "run_id": "run-1", "created_at": entry.created_at.isoformat(),
    }  # fmt: skip
    assert promoted(store.workspace, UDRL) == store.workspace.find(UDRL, student.version)
    assert (version.version, version.parents) == (content_hash({UDRL: "a"}), {report.ASSET: made.version, UDRL: "a"})
    assert json.loads((store.workspace.version_folder("promotion", version.version) / "in_use.json").read_text()) == {UDRL: "a"}


@pytest.mark.parametrize(("low", "action", "in_use"), [(0.98, "promoted", "b"), (0.9799, "refused", "a")])
def test_a_newer_student_is_put_into_use_only_if_the_interval_lies_above_the_margin(
    store: Store, low: float, action: str, in_use: str
) -> None:
    store.student("a")
    store.report()
    first = store.run()
    store.student("b")
    made = store.report(low)
    version = store.run()
    entry = store.workspace.promotions()[-1]
    assert (entry.version, entry.action, entry.in_use, entry.report) == ("b", action, in_use, made.version)
    assert entry.figures == {"against": "a", "margin": 0.02, "measures": {"reward": ratio(low)}}
    assert store.in_use() == {UDRL: in_use}
    assert (version.version == first.version) is (action == "refused")
    assert {asset: e.version for asset, e in refused(store.workspace).items()} == ({UDRL: "b"} if action == "refused" else {})


def test_a_student_of_fewer_tasks_takes_the_place_of_none_that_serves_more(store: Store) -> None:
    store.student("a", tasks=("image", "search", "template"))
    store.report()
    store.run()
    store.student("b", tasks=("image",))
    store.report(low=1.2)
    store.run()
    entry = store.workspace.promotions()[-1]
    assert (entry.version, entry.action, entry.in_use) == ("b", "refused", "a")
    assert (entry.reason, entry.figures) == ("it does not write search and template, which the student in use does", {"against": "a"})
    store.student("c", tasks=("image", "search", "template", "poem"))
    store.report(low=1.0)
    store.run()
    assert store.in_use() == {UDRL: "c"}
    promote(store.workspace, store.workspace.find(UDRL, "b"), "images are all that we need")
    assert store.in_use() == {UDRL: "b"}


def test_a_run_with_nothing_new_decides_nothing_and_keeps_the_version(judged: Store) -> None:
    before, told = judged.workspace.ledger(), judged.told()
    again = judged.run(Workspace(judged.workspace.settings))
    assert (again.made_now, judged.workspace.ledger(), judged.told()) == (False, before, told)
    assert pending(judged.workspace, [promotion.build]) is None


def test_what_is_to_be_decided_is_pending_and_asking_decides_nothing(judged: Store) -> None:
    judged.student("c")
    judged.report(low=1.0)
    told = judged.told()
    assert pending(judged.workspace, [promotion.build]) == News("promotion", "evaluation_report and student/udrl changed")
    assert judged.told() == told


def test_each_recipe_has_a_channel_of_its_own(judged: Store) -> None:
    judged.student("s", "student/sft")
    judged.report(low=0.9)
    judged.run()
    assert judged.in_use() == {"student/sft": "s", UDRL: "a"}
    assert judged.told()[-2:] == [("b", "refused", "gate", "a"), ("s", "promoted", "gate", "s")]


def test_a_student_that_the_report_is_not_about_waits(judged: Store) -> None:
    judged.student("c")
    judged.run()
    assert judged.told()[-1] == ("b", "refused", "gate", "a")
    assert [(s.student.version, s.state) for s in standings(judged.workspace)] == [("c", "candidate"), ("b", "refused"), ("a", "current")]


def test_a_wider_margin_is_a_new_question_and_the_old_one_brings_nobody_back(judged: Store, load: Callable[..., Settings]) -> None:
    judged.run(Workspace(load(SETTINGS | {"promotion.margin": 0.1})))
    assert judged.told()[-1] == ("b", "promoted", "gate", "b")
    version = judged.run()
    assert (len(judged.told()), judged.in_use(), version.parents[UDRL]) == (3, {UDRL: "b"}, "b")


def test_a_report_that_compares_with_another_student_says_nothing(judged: Store) -> None:
    judged.student("c")
    judged.report(low=1.0)  # against a
    promote(judged.workspace, judged.workspace.find(UDRL, "b"), "it is more fun")  # type: ignore[arg-type]
    judged.student("d")
    judged.report()
    told = judged.told()
    judged.run()
    assert judged.told() == told
    assert [(s.student.version, s.state) for s in standings(judged.workspace)][:2] == [("d", "candidate"), ("c", "candidate")]


# -- a user's word ------------------------------------------------------------------------------------------------------------


def test_a_users_word_stands_until_there_is_a_newer_student(judged: Store) -> None:
    workspace = judged.workspace
    entry = promote(workspace, workspace.find(UDRL, "b"), "people like it")  # type: ignore[arg-type]
    assert (entry.action, entry.decided_by, entry.in_use, entry.report, entry.figures) == (
        "promoted", "user", "b", None, {"newest": "b", "against": "a"},
    )  # fmt: skip
    judged.run()
    entry = rollback(workspace, "udrl", "people do not like it")
    assert (entry.version, entry.action, entry.in_use, entry.reason) == ("b", "rolled back", "a", "people do not like it")
    judged.run()
    judged.report(low=1.1)  # even if another report finds it better
    judged.run()
    assert judged.in_use() == {UDRL: "a"}
    judged.student("c")
    judged.report(low=1.0)
    judged.run()
    assert judged.in_use() == {UDRL: "c"}
    with workspace.database.reader() as connection:
        assert connection.execute("SELECT count(*) FROM runs WHERE run_id = ?", [entry.run_id]).fetchall() == [(1,)]


def test_rollback_goes_back_step_by_step_as_far_as_there_were_students(judged: Store) -> None:
    judged.student("c")
    judged.report(low=1.0)
    judged.run()
    promote(judged.workspace, judged.workspace.find(UDRL, "b"), "why not")  # type: ignore[arg-type]
    went = [rollback(judged.workspace, "udrl", "back").in_use for _ in range(2)]
    assert went == ["c", "a"]
    with pytest.raises(StudentError, match="was in use before the one that is"):
        rollback(judged.workspace, "udrl", "back")
    with pytest.raises(StudentError, match="no student of recipe sft is in use"):
        rollback(judged.workspace, "sft", "back")


def test_the_student_that_ships_with_the_package_is_a_start_and_in_no_list(judged: Store) -> None:
    shipped = judged.record("student/recorded", "r", {}, lambda folder: None)
    assert [s.student.version for s in standings(judged.workspace)] == ["b", "a"]
    with pytest.raises(StudentError, match="student/recorded r is no student"):
        promote(judged.workspace, shipped, "because")


@pytest.mark.parametrize(("what", "asset", "version"), [("is no student", report.ASSET, None), ("is in use already", UDRL, "a")])
def test_what_cannot_be_promoted_is_refused_with_the_reason(judged: Store, what: str, asset: str, version: str | None) -> None:
    found = judged.workspace.find(asset, version) if version else judged.workspace.current(asset)
    assert found
    with pytest.raises(StudentError, match=what):
        promote(judged.workspace, found, "because")
    assert judged.in_use() == {UDRL: "a"}


# -- files that are gone, rows that were forgotten ----------------------------------------------------------------------------


def forget(workspace: Workspace, key: str) -> None:
    with workspace.database.writer() as connection:
        tombstones.enter(connection, "row", key, "its author asked", [key], [])


def test_a_student_whose_files_are_gone_cannot_be_promoted(judged: Store) -> None:
    (judged.workspace.version_folder(UDRL, "b") / "manifest.json").unlink()
    with pytest.raises(StudentError, match=r"student/udrl b cannot be used: its files are gone(.|\n)*promote VERSION"):
        promote(judged.workspace, judged.workspace.find(UDRL, "b"), "because")  # type: ignore[arg-type]


def test_a_student_that_has_learned_what_was_forgotten_is_put_into_use_by_nobody(judged: Store) -> None:
    judged.student("c", seen=["k1", "k2"])
    judged.report(low=1.0)
    forget(judged.workspace, "k2")
    judged.run()
    assert judged.told()[-1] == ("c", "refused", "gate", "a")
    assert judged.workspace.promotions()[-1].reason == "it has learned from rows that were forgotten since"
    with pytest.raises(StudentError, match="it has learned from rows that were forgotten since"):
        promote(judged.workspace, judged.workspace.find(UDRL, "c"), "because")  # type: ignore[arg-type]


@pytest.mark.parametrize("harm", ["forget", "delete"])
def test_a_student_in_use_that_can_be_used_no_more_holds_nobody_up(store: Store, harm: str) -> None:
    store.student("a", seen=["k1"])
    store.report()
    store.run()
    store.student("b")
    store.report(low=0.5)
    store.run()
    assert store.in_use() == {UDRL: "a"}
    if harm == "forget":
        forget(store.workspace, "k1")
    else:
        (store.workspace.version_folder(UDRL, "a") / "manifest.json").unlink()
    store.run()
    assert store.in_use() == {UDRL: "b"}
    assert store.workspace.promotions()[-1].reason.startswith("of the one in use, a: it")
    with pytest.raises(StudentError, match="student/udrl a cannot be used"):
        rollback(store.workspace, "udrl", "back")


def test_without_a_report_the_error_says_what_to_run(store: Store) -> None:
    with pytest.raises(UdrlError, match="run --select evaluation_report"):
        store.run()


# -- the ledger ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("UPDATE promotions SET reason = 'it is the best' WHERE number = 2", "2"),
        ("UPDATE promotions SET in_use = 'b' WHERE number = 1", "1"),
        ("DELETE FROM promotions WHERE number = 1", "2"),
        ("DELETE FROM promotions WHERE number = 2", "2"),
    ],
)
def test_an_edited_or_missing_entry_is_named(judged: Store, statement: str, number: str) -> None:
    assert [fault for fault in verify(judged.workspace) if fault.asset in ("promotions", "promotion")] == []
    edit(judged.workspace, statement)
    found = [(fault.asset, fault.version) for fault in verify(judged.workspace) if fault.asset in ("promotions", "promotion")]
    assert found == [("promotions", number)]


def test_forged_files_do_not_fit_the_version(judged: Store) -> None:
    made = judged.workspace.current("promotion")
    assert made
    _write(judged.workspace.version_folder("promotion", made.version) / "in_use.json", {UDRL: "b"})
    assert Fault("promotion", made.version, "files differ from the manifest: in_use.json (changed)") in verify(judged.workspace)


def test_the_export_holds_every_decision(judged: Store) -> None:
    told = as_json(judged.workspace)
    assert told["promotions"] == [entry.as_dict() for entry in judged.workspace.promotions()]
    assert {(v["version"], v["state"]) for v in told["versions"] if v["asset"] == UDRL} == {("a", "current"), ("b", "refused")}


def test_a_catalogue_sees_both_students_that_a_report_compares(judged: Store) -> None:
    events = [json.loads(line) for line in as_openlineage(judged.workspace, "example")]
    [inputs] = [e["inputs"] for e in events if e["job"]["name"] == report.ASSET][-1:]
    assert [(i["name"], i["facets"]["version"]["datasetVersion"]) for i in inputs] == [(UDRL, "a"), (UDRL, "b")]


# -- what there is ------------------------------------------------------------------------------------------------------------


def test_every_student_is_listed_with_its_state_its_figures_and_why(judged: Store) -> None:
    judged.student("c")
    judged.report(low=1.0, reward=1.3)
    judged.run()
    judged.student("d")
    found = [(s.student.version, s.state, s.reward, s.relevance, s.why) for s in standings(judged.workspace)]
    assert found == [
        ("d", "candidate", None, None, "not judged yet"),
        ("c", "current", 1.3, 0.8, "not worse: reward 102.0% [100.0%, 104.0%] of that of the student in use, within the margin of 2.0%"),
        ("b", "refused", 1.2, 0.8,
         "not shown to be as good: reward 92.0% [90.0%, 94.0%] of that of the student in use, not within the margin of 2.0%"),
        ("a", "former", 1.2, 0.8,
         "c took its place: not worse: reward 102.0% [100.0%, 104.0%] of that of the student in use, within the margin of 2.0%"),
    ]  # fmt: skip
    assert [s.student.version for s in standings(judged.workspace, latest=True)] == ["d", "c"]
    rollback(judged.workspace, "udrl", "a fault")
    assert [(s.student.version, s.state, s.why) for s in standings(judged.workspace)][1::2] == [
        ("c", "former", "rolled back by a user: a fault"), ("a", "current", "put back into use by a user: a fault"),
    ]  # fmt: skip
    with pytest.raises(StudentError, match=r"no student of recipe 'sft'(.|\n)*recipes with students: udrl"):
        standings(judged.workspace, "sft")
