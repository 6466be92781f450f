"""The `intents` asset: a version by content, and nothing dropped in silence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from udrl_pipeline.errors import IntentsError
from udrl_pipeline.intents import asset
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace

pytestmark = pytest.mark.usefixtures("kept_open")

Load = Callable[..., Settings]


@pytest.fixture
def own(params: Path, load: Load) -> Callable[..., Workspace]:
    """A workspace whose intents are those of a user's file alone."""

    def write(content: str, name: str = "ideas.csv", **overrides: object) -> Workspace:
        (params.parent / name).write_text(content, encoding="utf-8")
        return Workspace(load({"intents.builtin": 0, "intents.sources": [name], **overrides}))

    return write


def quarantine(workspace: Workspace) -> list[tuple[str, ...]]:
    with workspace.database.reader() as connection:
        return connection.execute("SELECT item, reason, text FROM quarantine WHERE asset = 'intents' ORDER BY item").fetchall()


def test_built_in_intents_and_a_users_file_make_one_version(load: Load, params: Path) -> None:
    (params.parent / "ideas.csv").write_text("intent,task,split\nMy own idea,image,test\n", encoding="utf-8")
    workspace = Workspace(load({"intents.sources": ["ideas.csv"]}))
    made = asset.build(workspace)
    assert (made.rows, made.made_now, made.verdict, made.parents, made.work) == (7, True, "PASS", {}, {})
    assert (made.facts["builtin"], made.facts["set_aside"], made.facts["duplicates"]) == (6, 0, 0)
    own = [intent for intent in asset.read_intents(workspace, made.version) if intent.source == "ideas.csv:2"]
    assert [(intent.key, intent.text, intent.tasks, intent.split) for intent in own] == [("my own idea", "My own idea", ("image",), "test")]


def test_the_bytes_of_every_file_that_was_read_are_told_by_their_digest(load: Load, params: Path) -> None:
    for name, content in (("a.csv", "intent\nred fox\n"), ("more/b.jsonl", '{"intent": "owl"}'), ("more/deep/broken.pdf", "no ideas")):
        (params.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (params.parent / name).write_text(content, encoding="utf-8")
    workspace = Workspace(load({"intents.builtin": 0, "intents.sources": ["a.csv"], "intents.folder": "more"}))
    assert asset.build(workspace).facts["digests"] == {
        "a.csv": "e85961df3dfca35f1c02a1c87c0554e1fafaa6c9ea0b056fbcfa456e66db0466",
        "more/b.jsonl": "575cb96a79776c205592da97f21bdab31d184193cdcbf981f968a86b63a5a0e5",
        "more/deep/broken.pdf": "8ab3acb287f516098c00859ee66df95907e473d292d7187d2e4177b021484a13",
    }
    (params.parent / "a.csv").write_text("intent\n\nred fox\n\n", encoding="utf-8")
    assert asset.build(workspace).made_now is False


def test_a_second_build_makes_nothing_and_keeps_the_version(workspace: Workspace) -> None:
    first, second = asset.build(workspace), asset.build(workspace)
    assert (second.version, second.made_now) == (first.version, False)
    assert len(list((workspace.folder / "intents").iterdir())) == 1


def test_a_changed_file_is_seen_and_a_renamed_one_is_the_same_version(own) -> None:
    first = asset.build(own("intent\nred fox\n"))
    assert asset.build(own("intent\nred fox\nblue fox\n")).version != first.version
    assert asset.build(own("intent\nred fox\n", "renamed.csv")).version == first.version
    assert asset.build(own('{"intent": "red fox"}', "other.jsonl")).version == first.version


def test_what_is_set_aside_stands_in_the_quarantine_and_among_the_expectations(own) -> None:
    workspace = own('intent\nred fox\n"broken\n\nfox <|x|>\n')
    made = asset.build(workspace)
    assert made.rows == 1
    assert quarantine(workspace) == [
        ("ideas.csv:3", "quotes that do not close", "'\"broken'"),
        ("ideas.csv:5", "control token", "'fox <|x|>'"),
    ]
    assert [(e.name, e.passed, e.blocking) for e in workspace.expectations("intents", made.version)] == [
        ("no_intent_on_two_sides", True, True),
        ("lines_are_usable", False, False),
    ]


def test_a_new_bad_line_is_quarantined_though_the_version_stays(own) -> None:
    first = asset.build(own("intent\nred fox\n"))
    workspace = own("intent\nred fox\n\x07\n")
    second = asset.build(workspace)
    assert second.version == first.version
    assert [item for item, *_ in quarantine(workspace)] == ["ideas.csv:3"]


def test_no_intent_left_is_a_typed_error_and_keeps_the_last_version(own) -> None:
    first = asset.build(own("intent\nred fox\n"))
    workspace = own("intent\n")
    with pytest.raises(IntentsError) as caught:
        asset.build(workspace)
    assert str(caught.value) == "params.yaml: intents: no intent is left\n  -> set intents.builtin or intents.sources"
    current = workspace.current("intents")
    assert current is not None
    assert current.version == first.version
    with pytest.raises(
        IntentsError, match=r"no intent is left \(2 lines were set aside, such as ideas.csv:2: empty; ideas.csv:3: not text\)"
    ):
        asset.build(own('intent\n""\n123\n'))


def test_an_unreadable_file_keeps_the_last_version(own) -> None:
    first = asset.build(own("intent\nred fox\n"))
    workspace = own("no such column\n")
    with pytest.raises(IntentsError):
        asset.build(workspace)
    current = workspace.current("intents")
    assert current is not None
    assert current.version == first.version


def test_a_file_outside_the_project_is_named_by_its_whole_path(own, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "ideas.csv"
    elsewhere.write_text("intent\nred fox\n", encoding="utf-8")
    workspace = own("intent\n", **{"intents.sources": [str(elsewhere)]})
    assert asset.read_intents(workspace, asset.build(workspace).version)[0].source == f"{elsewhere}:2"


def test_the_folder_beside_params_yaml_is_read_and_a_file_in_it_that_cannot_be_read_costs_the_others_nothing(
    load: Load, params: Path
) -> None:
    folder = params.parent / "intents"
    folder.mkdir()
    before = asset.build(Workspace(load()))
    for name, content in {"good.csv": "intent\nred kite\n", "bad.csv": "thought\nblue heron\n", "notes.txt": "hello"}.items():
        (folder / name).write_text(content, encoding="utf-8")
    workspace = Workspace(load())
    made = asset.build(workspace)
    assert made.rows == before.rows + 1
    assert quarantine(workspace) == [
        ("intents/bad.csv:1", "the file has no column `intent` (columns: thought)", "''"),
        ("intents/notes.txt", "the file is no intents file (.txt)", "''"),
    ]
    [usable] = [e for e in workspace.expectations("intents", made.version) if e.name == "lines_are_usable"]
    assert (usable.passed, usable.observed["set_aside"]) == (False, 2)
    assert asset.build(Workspace(load({"intents.folder": None}))).rows == before.rows
