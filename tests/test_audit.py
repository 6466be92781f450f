"""The ledger's answers: versions, quarantine, and whether a run would have anything to do."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from udrl_pipeline import audit, corpus
from udrl_pipeline.audit.changes import in_yaml
from udrl_pipeline.audit.pending import News, outlook, pending
from udrl_pipeline.errors import IntentsError, UdrlError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Expected, Quarantined, Version, Workspace

pytestmark = pytest.mark.usefixtures("kept_open")

BUILDS: list[Callable[[Workspace], Version]] = [intents.build, corpus.build]


def record(workspace: Workspace, asset: str, version: str, **more: Any) -> Version:
    given: dict[str, Any] = {"fingerprint": version, "code_version": "c", "rows": 1, "params": {}, "parents": {}, "facts": {}}
    return workspace.record(asset, version=version, write=lambda folder: None, **(given | more))


def test_versions_are_listed_newest_first_each_once(workspace: Workspace) -> None:
    record(workspace, "intents", "a")
    record(workspace, "teacher_corpus", "b", parents={"intents": "a"})
    record(workspace, "intents", "c")
    workspace.reuse("intents", "a")  # current again
    assert [(v.asset, v.version) for v in audit.versions(workspace)] == [("intents", "a"), ("intents", "c"), ("teacher_corpus", "b")]
    assert [v.parents for v in audit.versions(workspace, "teacher_corpus")] == [{"intents": "a"}]


def test_an_asset_without_versions_is_an_error_that_names_those_with(workspace: Workspace) -> None:
    record(workspace, "intents", "a")
    with pytest.raises(UdrlError, match=r"no version of 'intent'(.|\n)*assets with versions: intents"):
        audit.versions(workspace, "intent")
    assert audit.versions(workspace, "intents")


@pytest.mark.parametrize(
    ("name", "version"),
    [("intents", "c3"), ("intents~0", "c3"), ("intents~1", "a1"), ("teacher_corpus", "b2"), ("a", "a1"), ("intents@c", "c3")],
)
def test_a_version_is_named_by_itself_its_first_digits_or_its_place_in_the_history(workspace: Workspace, name: str, version: str) -> None:
    record(workspace, "intents", "a1")
    record(workspace, "teacher_corpus", "b2", parents={"intents": "a1"})
    record(workspace, "intents", "c3")
    record(workspace, "intents", "d4", expectations=[Expected("usable", False, True, {})])
    assert audit.resolve(workspace, name).version == version


@pytest.mark.parametrize(
    ("name", "what"), [("intents~2", "no version"), ("intents~x", "no version"), ("", "no version"), ("c", "more than")]
)
def test_a_name_that_fits_none_or_several_is_a_typed_error(workspace: Workspace, name: str, what: str) -> None:
    for version in ("a1", "c3", "c4"):
        record(workspace, "intents", version)
    record(workspace, "teacher_corpus", "c3")
    with pytest.raises(UdrlError, match=what):
        audit.resolve(workspace, name.replace("~2", "~3"))


def test_a_name_that_several_assets_begin_with_is_an_error_that_names_them(workspace: Workspace) -> None:
    for asset in ("student/udrl", "student/sft", "student_export/udrl"):
        record(workspace, asset, "v1")
    with pytest.raises(UdrlError, match=r"there is no version 'student'\n  -> say which: student/sft, student/udrl$"):
        audit.resolve(workspace, "student")


def test_a_value_is_told_as_params_yaml_would_hold_it() -> None:
    values = [None, 0.4, "x", True, {"margin": 0.02, "of": ["a", None]}]
    assert [in_yaml(value) for value in values] == ["none", "0.4", "x", "true", "{margin: 0.02, of: [a, null]}"]


def test_quarantine_is_that_of_the_newest_version_of_each_asset(workspace: Workspace) -> None:
    def row(item: str) -> Quarantined:
        return Quarantined(item, "empty", "", "text")

    record(workspace, "intents", "a", quarantined=[row("ideas.csv:2")])
    record(workspace, "intents", "b", quarantined=[row("ideas.csv:3")])
    record(workspace, "labeled_dataset", "d", quarantined=[row("key2"), row("key1")])
    assert [(s.asset, s.version, s.row.item) for s in audit.quarantine(workspace)] == [
        ("intents", "b", "ideas.csv:3"), ("labeled_dataset", "d", "key1"), ("labeled_dataset", "d", "key2"),
    ]  # fmt: skip


@pytest.fixture
def made(workspace: Workspace, teacher: Any) -> Workspace:
    for build in BUILDS:
        build(workspace)
    return workspace


def test_nothing_is_pending_after_a_run(made: Workspace) -> None:
    assert pending(made, BUILDS) is None


def test_everything_is_pending_before_the_first(workspace: Workspace) -> None:
    assert pending(workspace, BUILDS) == News("intents", "has no version yet")


@pytest.mark.parametrize(
    ("overrides", "news"),
    [
        ({"intents.builtin": 7}, News("intents", "settings have changed: builtin")),
        ({"teacher.temperature": 0.9}, News("teacher_corpus", "settings have changed: temperature")),
        ({"teacher.samples": 2, "teacher.examples": 2}, News("teacher_corpus", "settings have changed: examples, samples")),
        ({"teacher.chunk_rows": 9, "student.seed": 5, "artifacts": "artifacts"}, None),
    ],
)
def test_a_setting_is_news_where_a_result_depends_on_it(
    made: Workspace, load: Callable[..., Settings], overrides: dict[str, Any], news: News | None
) -> None:
    assert pending(Workspace(load(overrides)), BUILDS) == news


def test_a_new_line_is_news_and_a_broken_file_is_the_error_that_a_run_would_meet(
    made: Workspace, load: Callable[..., Settings], tmp_path: Path
) -> None:
    file = tmp_path / "ideas.csv"
    settings = load({"intents.sources": ["ideas.csv"]})
    file.write_text("intent\nred kite over the moor\n", encoding="utf-8")
    found = pending(Workspace(settings), BUILDS)
    assert found
    assert found.asset == "intents"
    intents.build(Workspace(settings))
    file.write_text("intent\nred kite over the moor\nblue heron at dusk\n", encoding="utf-8")
    assert pending(Workspace(settings), BUILDS) == News("intents", "its input has changed")
    file.write_text("thought\nred kite over the moor\n", encoding="utf-8")
    with pytest.raises(IntentsError, match="no column `intent`"):
        pending(Workspace(settings), BUILDS)


def test_a_new_parent_and_changed_code_are_news(made: Workspace, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    wider = load({"intents.builtin": 7})
    intents.build(Workspace(wider))
    assert pending(Workspace(wider), BUILDS) == News("teacher_corpus", "intents changed")
    monkeypatch.setattr(intents, "code_version", lambda sources: "another")
    assert pending(Workspace(wider), BUILDS) == News("intents", "its code has changed")


def test_files_that_are_gone_are_news(made: Workspace) -> None:
    current = made.current("teacher_corpus")
    assert current
    (made.version_folder("teacher_corpus", current.version) / "manifest.json").unlink()
    assert pending(made, BUILDS) == News("teacher_corpus", f"the files of version {current.version} are gone")


def test_every_asset_has_an_answer_of_its_own(made: Workspace, load: Callable[..., Settings]) -> None:
    builds: dict[str, Callable[[Workspace], Version]] = {"intents": intents.build, "teacher_corpus": corpus.build}
    assert outlook(made, builds) == {}
    assert outlook(Workspace(load({"intents.builtin": 7})), builds) == {
        "intents": "settings have changed: builtin", "teacher_corpus": "intents will have changed",
    }  # fmt: skip
    assert outlook(Workspace(load({"teacher.samples": 2})), builds) == {"teacher_corpus": "settings have changed: samples"}
    broken = {"intents.sources": ["nowhere.csv"], "teacher.samples": 2}
    found = outlook(Workspace(load(broken)), builds)
    assert found["intents"].startswith("cannot be made: ")
    assert found["teacher_corpus"] == "settings have changed: samples"
    assert outlook(Workspace(load({"artifacts": "empty"})), builds) == {
        "intents": "has no version yet", "teacher_corpus": "intents has no version yet",
    }  # fmt: skip


def test_asking_writes_nothing_and_waits_for_nobody(made: Workspace, load: Callable[..., Settings]) -> None:
    before = audit.versions(made)
    with made.lock("intents"), made.lock("teacher_corpus"):
        pending(Workspace(load({"intents.builtin": 7})), BUILDS)
    assert audit.versions(made) == before


def test_a_build_that_does_not_ask_for_what_is_there_is_found_out(made: Workspace) -> None:
    with pytest.raises(AssertionError, match="without asking"):
        pending(made, [partial(record, asset="intents", version="z")])
