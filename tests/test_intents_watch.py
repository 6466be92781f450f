"""Which intents files are new: by what they hold, once they are at rest, each once."""

import os
from pathlib import Path

import pytest

from udrl_pipeline.intents import watch
from udrl_pipeline.intents.watch import Look, look, watched_files


class Folder:
    """A folder that is looked at again and again."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen, self.clock = path, Look(), 1_000_000_000

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.write_text(text, encoding="utf-8")
        self.clock += 1_000_000_000
        os.utime(file, ns=(self.clock, self.clock))

    def look(self) -> list[str]:
        self.seen, new = look(sorted(self.path.iterdir()), Look.parse(self.seen.dump()))
        return [file.name for file in new]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "watched").mkdir()
    return Folder(tmp_path / "watched")


def test_a_file_is_new_once_it_is_at_rest_and_only_once(folder: Folder) -> None:
    folder.write("a.csv", "intent\nred fox\n")
    assert [folder.look() for _ in range(4)] == [[], ["a.csv"], [], []]
    assert folder.seen.runs == 1


def test_a_file_that_is_being_written_to_waits(folder: Folder) -> None:
    for text in ("intent\n", "intent\nred", "intent\nred fox\n"):
        folder.write("a.csv", text)
        assert folder.look() == []
        assert list(folder.seen.moving) == [str(folder.path / "a.csv")]
    assert folder.look() == ["a.csv"]


def test_the_same_content_dropped_again_is_nothing_new(folder: Folder) -> None:
    folder.write("a.csv", "intent\nred fox\n")
    folder.look(), folder.look()
    folder.write("a.csv", "intent\nred fox\n")  # written again
    folder.write("copy.csv", "intent\nred fox\n")  # under another name
    assert [folder.look() for _ in range(3)] == [[], [], []]
    (folder.path / "a.csv").unlink()
    assert folder.look() == []
    folder.write("a.csv", "intent\nred fox\n")  # taken away and brought back
    assert [folder.look() for _ in range(3)] == [[], [], []]


def test_changed_content_is_new_and_so_is_what_it_held_before(folder: Folder) -> None:
    keys = []
    for text in ("intent\nred fox\n", "intent\nblue fox\n", "intent\nred fox\n"):
        folder.write("a.csv", text)
        assert [folder.look(), folder.look()] == [[], ["a.csv"]]
        keys.append(folder.seen.key)
    assert len(set(keys)) == 3


def test_a_look_that_was_lost_asks_for_the_same_run_again(folder: Folder) -> None:
    folder.write("a.csv", "intent\nred fox\n")
    folder.look()
    before = folder.seen
    first = (folder.look(), folder.seen.key)
    folder.seen = before  # the daemon was killed before it kept what it had seen
    assert (folder.look(), folder.seen.key) == first


def test_a_file_that_cannot_be_read_is_handed_on_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(watch, "file_sha256", refuse)
    folder.write("a.csv", "intent\nred fox\n")
    assert [folder.look() for _ in range(4)] == [[], ["a.csv"], [], []]


def test_the_folder_of_the_project_and_the_named_sources_are_watched(load, params: Path) -> None:
    root = params.parent
    assert watched_files(load()) == []
    (root / "intents").mkdir()
    assert watched_files(load()) == []
    for name in ("intents/a.csv", "intents/.b.csv.part", "own.csv"):
        (root / name).write_text("intent\nred fox\n", encoding="utf-8")
    assert watched_files(load({"intents.sources": ["own.csv"]})) == [root / "own.csv", root / "intents" / "a.csv"]
    assert watched_files(load({"intents.sources": ["intents"]})) == [root / "intents" / "a.csv"]
    assert watched_files(load({"intents.folder": None})) == []
