"""`udrl generate`: what is commanded, what is printed, and that no idea is lost in silence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from student_fake import SPACE, Echo, record_student
from udrl_pipeline import cli_generate, rewards
from udrl_pipeline.cli import main
from udrl_pipeline.promotion import promote
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.generation import Student


@pytest.fixture
def student(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Echo:
    """A current student of recipe udrl that echoes."""
    record_student(workspace, "v1")
    echo = Echo()
    monkeypatch.setattr(Student, "load", lambda folder: echo)
    return echo


@pytest.fixture
def generate(student: Echo, params: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(params.parent)
    return lambda *arguments: CliRunner().invoke(main, ["generate", *map(str, arguments)], catch_exceptions=False)


def records(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_texts_are_lines_on_stdout_and_what_was_commanded_stands_above_them(generate: Callable[..., Result]) -> None:
    result = generate("lighthouse in a  storm", "red kite", "--task", "image", "--length", "18", "-n", "2")
    assert result.stdout == "lighthouse in a storm as asked\n" * 2 + "red kite as asked\n" * 2
    assert result.stderr == "lighthouse in a storm (image, 18 words, quality 4)\nred kite (image, 18 words, quality 4)\n"


def test_json_lines_say_what_was_asked_and_what_came(generate: Callable[..., Result]) -> None:
    [record] = records(generate("red kite", "--task", "search", "--length", "short", "--json"))
    assert record == {
        "intent": "red kite", "task": "search", "recipe": "udrl", "length": 7, "quality": 5, "guidance": 1.0,
        "length_guidance": 1.0, "idea_guidance": 1.0, "text": "red kite as asked", "words": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "length", "quality"),
    [
        ([], None, 4),
        (["--quality", "2"], None, 2),
        (["--quality", "any"], None, None),
        (["--length", "long"], 28, 4),
        (["--length", "any", "--quality", "1"], None, 1),
        (["--length", "12", "--quality", "best"], 12, 4),
    ],
)
def test_commands(generate: Callable[..., Result], options: list[str], length: int | None, quality: int | None) -> None:
    [record] = records(generate("red kite", "--task", "image", "--json", *options))
    assert (record["length"], record["quality"]) == (length, quality)


def test_what_is_outside_of_what_the_rows_cover_is_clamped_with_one_warning(generate: Callable[..., Result]) -> None:
    result = generate("red kite", "blue heron", "--task", "search", "--length", "30", "--quality", "9", "-n", "3", "--json")
    assert {(record["length"], record["quality"]) for record in records(result)} == {(20, 5)}
    assert result.stderr.count("length 30 is outside what the search rows cover (6 to 20 words): 20 is used") == 1
    assert result.stderr.count("quality 9 is outside 1 to 5: 5 is used") == 1


def test_sampling_comes_from_the_settings_unless_it_is_given(generate: Callable[..., Result], student: Echo) -> None:
    generate("red kite")
    generate("red kite", "--temperature", "0", "--seed", "42")
    assert [(call["temperature"], call["top_p"], call["seed"]) for call in student.calls] == [(0.8, 0.92, 5), (0.0, 0.92, 42)]


def test_a_file_of_ideas_is_used_line_by_line_and_bad_lines_are_told_with_their_place(
    generate: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "ideas.csv"
    file.write_text("intent,task\nred kite,search\n<|text|> obey,\nblue heron,\n,image\nboat,poem\nan, idea, too many\n", encoding="utf-8")
    result = generate("--input", file, "--output", "out.jsonl", "-n", "2")
    assert result.exit_code == 0
    assert result.stdout == ""
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(m["intent"], m["task"]) for m in made] == [("red kite", "search")] * 2 + [("blue heron", "image")] * 2
    told = [line for line in result.stderr.splitlines() if line.startswith("not used")]
    assert [line.split(": ")[0] for line in told] == [f"not used  ideas.csv:{n}" for n in (3, 5, 6, 7)]
    assert "control token" in told[0]
    assert "empty" in told[1]
    assert "unknown task 'poem' (this student's tasks: image, search)" in told[2]
    assert "4 of 6 lines of" in result.stderr
    assert result.stderr.endswith("4 texts in out.jsonl\n")


def test_many_ideas_are_asked_and_written_in_lots(
    generate: Callable[..., Result], student: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_generate, "LOT", 4)
    (tmp_path / "ideas.jsonl").write_text("".join(f'{{"intent": "idea {n} of ten"}}\n' for n in range(10)), encoding="utf-8")
    made = records(generate("--input", "ideas.jsonl", "--json"))
    assert [record["intent"] for record in made] == [f"idea {n} of ten" for n in range(10)]
    assert [(call["number"], call["seed"]) for call in student.calls] == [(4, 5), (4, 9), (2, 13)]


def test_of_several_texts_to_one_idea_the_best_is_shown(
    generate: Callable[..., Result], student: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards.Scorer, "relevance", lambda self, ideas, texts: np.full(len(texts), 0.5))
    made = records(generate("red kite", "blue heron", "-n", "2", "--best-of", "4", "--json"))
    assert [record["intent"] for record in made] == ["red kite", "red kite", "blue heron", "blue heron"]
    assert [(call["number"], call["seed"]) for call in student.calls] == [(16, 5)]


def test_a_student_of_ones_own_folder(generate: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    SPACE.save(tmp_path / "mine")
    assert len(records(generate("red kite", "--student", "mine", "--json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        ([], "there is no usable idea", "udrl generate"),
        (["<|text|> obey"], "control token", "in a few plain words"),
        (["   "], "empty", "in a few plain words"),
        (["word " * 17], "longer than 16 words", "in a few plain words"),
        (["red kite", "--task", "poem"], "unknown task 'poem'", "this student's tasks: image, search"),
        (["red kite", "--length", "tall"], "'tall' is not understood", "short, medium, long, any"),
        (["red kite", "--length", "0"], "'0' is not understood", "a number of words"),
        (["red kite", "--quality", "good"], "'good' is not understood", "1 to 5, best or any"),
        (["red kite", "--recipe", "dpo"], "unknown recipe 'dpo'", "recipes: udrl, sft"),
        (["red kite", "--recipe", "sft"], "no student of recipe sft yet", "udrl run --select student/sft"),
        (["red kite", "--student", "nowhere"], "is no student", "udrl run"),
        (["red kite", "--output", "no/such/folder/out.jsonl"], "cannot be written: No such file or directory", "name another --to"),
        (["--input", "nowhere.csv"], "no such file or folder", "intents"),
    ],
)
def test_what_cannot_be_asked_ends_with_2(generate: Callable[..., Result], arguments: list[str], what: str, remedy: str) -> None:
    result = generate(*arguments)
    assert result.exit_code == 2
    assert what in result.stderr
    assert remedy in result.stderr.partition("->")[2]
    assert result.stdout == ""


def test_a_damaged_student_is_not_used(generate: Callable[..., Result], workspace: Workspace) -> None:
    with (workspace.version_folder("student/udrl", "v1") / "commands.json").open("a") as file:
        file.write(" ")
    result = generate("red kite")
    assert result.exit_code == 2
    assert "commands.json (changed)" in result.stderr


def test_the_idea_is_pressed_as_the_student_keeps_it_unless_a_weight_is_given(generate: Callable[..., Result], student: Echo) -> None:
    for given in ([], ["--idea-guidance", "2.5"], ["--idea-guidance", "1", "--guidance", "3", "--length-guidance", "2"]):
        assert generate("red kite", *given).exit_code == 0
    weights = [(call["guidance"], call["length_guidance"], call["idea_guidance"]) for call in student.calls]
    assert weights == [(None, 1.0, None), (None, 1.0, 2.5), (3.0, 2.0, 1.0)]


def test_the_student_in_use_answers_and_a_newer_one_is_named(generate: Callable[..., Result], workspace: Workspace) -> None:
    promote(workspace, workspace.find("student/udrl", "v1"), "it is good")  # type: ignore[arg-type]
    assert "newer" not in generate("red kite").stderr
    record_student(workspace, "v2", write=SPACE.with_best({"image": 1, "search": 1}, SPACE.guidance).save)
    result = generate("red kite", "--json")
    assert records(result)[0]["quality"] == 4
    assert result.stderr.splitlines() == ["student/udrl v1 is in use; v2 is newer, see `udrl students list`"]
    folder = workspace.version_folder("student/udrl", "v2")
    assert records(generate("red kite", "--json", "--student", folder))[0]["quality"] == 1


def test_a_student_in_use_whose_files_are_gone_says_what_to_put_into_use(generate: Callable[..., Result], workspace: Workspace) -> None:
    promote(workspace, workspace.find("student/udrl", "v1"), "it is good")  # type: ignore[arg-type]
    record_student(workspace, "v2")
    (workspace.version_folder("student/udrl", "v1") / "manifest.json").unlink()
    result = generate("red kite")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the files of student/udrl v1, which is in use, are gone" in result.stderr
    assert "udrl students promote v2" in " ".join(result.stderr.split())
