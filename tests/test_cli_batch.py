"""`udrl generate --from FILE --to FILE`: a table in each format, resumed after a kill without a row lost or doubled."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result

from student_fake import SPACE, Echo
from test_cli_generate import generate, student
from udrl_pipeline import cli_batch, cli_generate
from udrl_pipeline.cli import main
from udrl_pipeline.errors import StoreLocked, UdrlError
from udrl_pipeline.student.engines import ENGINES

__all__ = ["generate", "student"]  # fixtures

REPOSITORY = Path(__file__).parent.parent
READ = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda file: pd.read_json(file, lines=True)}


def record(number: int) -> dict[str, Any]:
    return {
        "row": f"a.csv:{number}", "intent": 'fox, "red"', "task": "image", "recipe": "udrl", "length": None, "quality": 4, "guidance": 1.5,
        "length_guidance": 1.0, "idea_guidance": 2.0, "text": f"text {number}\u2028", "words": 2,
    }  # fmt: skip


def lots_of(lot: int, total: int, stop_after: int | None = None) -> Callable[[int], Iterator[list[dict[str, Any]]]]:
    def lots(done: int) -> Iterator[list[dict[str, Any]]]:
        for start in range(done, total, lot):
            if stop_after is not None and start >= stop_after:
                raise KeyboardInterrupt
            yield [record(n) for n in range(start, min(start + lot, total))]

    return lots


@pytest.mark.parametrize("suffix", READ)
def test_what_is_written_is_read_back_from_each_format(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out{suffix}"
    cli_batch.write_texts(file, "q", 5, 2, lots_of(2, 5))
    found = READ[suffix](file)
    assert list(found.columns) == list(cli_batch.COLUMNS)
    assert found.text.tolist() == [f"text {n}\u2028" for n in range(5)]
    assert set(found.intent) == {'fox, "red"'}
    assert (found.length.isna().all(), found.quality.tolist(), found.guidance.tolist()) == (True, [4] * 5, [1.5] * 5)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("cut", [0, 1, 40, 10_000])
def test_a_killed_batch_goes_on_behind_its_last_whole_lot(tmp_path: Path, cut: int) -> None:
    """`cut` bytes of what the journal held last are lost, as in a crash of the machine."""
    file, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    with pytest.raises(KeyboardInterrupt):
        cli_batch.write_texts(file, "q", 11, 3, lots_of(3, 11, stop_after=6))
    assert not file.exists()
    part.write_bytes(part.read_bytes()[: -cut or None])
    begun = []

    def lots(done: int) -> Iterator[list[dict[str, Any]]]:
        begun.append(done)
        return lots_of(3, 11)(done)

    cli_batch.write_texts(file, "q", 11, 3, lots)
    assert begun == [{0: 6, 1: 3, 40: 3, 10_000: 0}[cut]]
    assert [json.loads(line)["row"] for line in file.read_bytes().splitlines()] == [f"a.csv:{n}" for n in range(11)]
    assert not part.exists()


def test_a_batch_that_was_killed_before_the_table_was_written_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out.csv"

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cli_batch.write_texts(file, "q", 5, 2, lots_of(2, 5))
    cli_batch.write_texts(file, "q", 5, 2, lots_of(2, 5, stop_after=0))
    assert len(pd.read_csv(file)) == 5


def test_half_done_work_of_another_question_is_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        cli_batch.write_texts(file, "q", 9, 3, lots_of(3, 9, stop_after=3))
    before = (tmp_path / "out.csv.part").read_bytes()
    with pytest.raises(UdrlError, match=r"out.csv.part: is the half-done work of another command(.|\n)*remove the file to begin anew"):
        cli_batch.write_texts(file, "other", 9, 3, lots_of(3, 9))
    assert (tmp_path / "out.csv.part").read_bytes() == before


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"

    def lots(done: int) -> Iterator[list[dict[str, Any]]]:
        with pytest.raises(StoreLocked, match="another process is writing it"):
            cli_batch.write_texts(file, "q", 1, 1, lots_of(1, 1))
        yield [record(0)]

    cli_batch.write_texts(file, "q", 1, 1, lots)
    assert len(pd.read_csv(file)) == 1


def test_another_ending_is_told_before_anything_is_asked(generate: Callable[..., Result], student: Echo) -> None:
    result = generate("red kite", "--to", "out.txt")
    assert (result.exit_code, student.calls) == (2, [])
    assert "out.txt: is no table that can be written (.txt)\n  -> use .csv, .tsv, .jsonl" in result.stderr


@pytest.mark.parametrize("suffix", READ)
def test_rows_ask_for_task_length_and_quality_in_columns_of_their_own(generate: Callable[..., Result], tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {
            "Idea" if suffix == ".csv" else "idea": ["red kite", "blue heron", "owl", "fox", "bad <|text|>", "elk", "hare"],
            "task": ["search", None, "image", "image", "image", "image", "image"],
            "words": ["short", None, "18", "tall", "12", "18.5", None],
            "quality": ["2", "best", "any", None, None, None, "good"],
        }
    )
    source = tmp_path / f"ideas{suffix}"
    writers = {".csv": frame.to_csv, ".parquet": frame.to_parquet, ".jsonl": frame.to_json}
    writers[suffix](source, **({"orient": "records", "lines": True} if suffix == ".jsonl" else {"index": False}))
    result = generate("--from", source, "--to", f"out{suffix}", "--length", "medium")
    assert result.exit_code == 0, result.stderr
    made = READ[suffix](tmp_path / f"out{suffix}")
    first = 2 if suffix == ".csv" else 1
    assert made.row.tolist() == [f"{source.name}:{first + n}" for n in range(3)]
    assert made.task.tolist() == ["search", "image", "image"]
    assert made.length.tolist() == [7, 18, 18]
    assert made.quality.fillna(0).astype(int).tolist() == [2, 4, 0]
    unused = [json.loads(line) for line in (tmp_path / "out.unused.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["row"], row["reason"], row["text"]) for row in unused] == [
        (f"{source.name}:{first + 3}", "'tall' is not understood", "fox"),
        (f"{source.name}:{first + 4}", "control token", "bad <|text|>"),
        (f"{source.name}:{first + 5}", "'18.5' is not understood", "elk"),
        (f"{source.name}:{first + 6}", "'good' is not understood", "hare"),
    ]
    assert "4 of 7 lines of" in result.stderr
    assert "(out.unused.jsonl lists them)" in result.stderr


def test_numbers_in_parquet_are_lengths_and_gaps_are_not_given(generate: Callable[..., Result], tmp_path: Path) -> None:
    pd.DataFrame({"intent": ["red kite", "owl"], "words": [18.0, float("nan")], "quality": [3, 2]}).to_parquet(tmp_path / "a.parquet")
    assert generate("--from", "a.parquet", "--to", "b.csv").exit_code == 0
    made = pd.read_csv(tmp_path / "b.csv")
    assert (made.length.fillna(0).tolist(), made.quality.tolist()) == ([18, 0], [3, 2])
    assert not (tmp_path / "b.unused.jsonl").exists()


def test_an_interrupted_command_goes_on_with_the_same_texts(
    generate: Callable[..., Result], student: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_generate, "LOT", 4)
    (tmp_path / "ideas.csv").write_text("idea\n" + "".join(f"idea {n} of ten\n" for n in range(10)), encoding="utf-8")
    whole = Echo.generate

    def dies(self: Echo, commands: Any, **options: Any) -> Any:
        if len(self.calls) == 2:
            raise KeyboardInterrupt
        return whole(self, commands, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Echo, "generate", dies)
        assert generate("--from", "ideas.csv", "--to", "out.csv").exit_code == 130
    result = generate("--from", "ideas.csv", "--to", "out.csv")
    assert result.exit_code == 0
    assert "going on behind 8 of 10 texts (out.csv.part)" in result.stderr
    assert [(call["number"], call["seed"]) for call in student.calls] == [(4, 5), (4, 9), (2, 13)]
    assert pd.read_csv(tmp_path / "out.csv").intent.tolist() == [f"idea {n} of ten" for n in range(10)]
    with monkeypatch.context() as patch:
        patch.setattr(Echo, "generate", dies)
        student.calls.clear()
        generate("--from", "ideas.csv", "--to", "out.csv")
    assert generate("--from", "ideas.csv", "--to", "out.csv", "--temperature", "0").exit_code == 2


def test_a_process_that_is_killed_loses_one_lot_at_most(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, 'tests'); from test_cli_batch import Path, cli_batch, lots_of\n"
        "def lots(done):\n"
        "    for lot in lots_of(3, 3000)(done): time.sleep(0.002); yield lot\n"
        f"cli_batch.write_texts(Path({str(tmp_path / 'out.csv')!r}), 'q', 3000, 3, lots)"
    )
    part = tmp_path / "out.csv.part"
    child = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    while not (part.exists() and part.stat().st_size > 2_000):
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    held = part.read_bytes().count(b"\n") - 1
    begun = []

    def lots(done: int) -> Iterator[list[dict[str, Any]]]:
        begun.append(done)
        return lots_of(300, 3000)(done)

    cli_batch.write_texts(tmp_path / "out.csv", "q", 3000, 3, lots)
    assert begun == [held - held % 3]
    assert held > 3
    assert pd.read_csv(tmp_path / "out.csv").row.tolist() == [f"a.csv:{n}" for n in range(3000)]


def test_a_stream_shows_the_pieces_of_one_text(generate: Callable[..., Result], student: Echo) -> None:
    def stream(command: Any, **options: Any) -> Iterator[Any]:
        [made] = student.generate([command], **options)
        yield from (f"{word} " for word in made.text.split())
        yield made

    student.stream = stream  # type: ignore[attr-defined]
    result = generate("red kite", "--task", "search", "--stream", "--length", "30")
    assert result.stdout == "red kite as asked \n"
    assert result.stderr == "warning  length 30 is outside what the search rows cover (6 to 20 words): 20 is used\n"
    assert [(call["seed"], call["temperature"]) for call in student.calls] == [(5, 0.8)]
    for wrong in (["-n", "2"], ["--best-of", "2"], ["--json"], ["--to", "out.csv"]):
        refused = generate("red kite", "--stream", *wrong)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "--stream: shows one text, as it comes" in refused.stderr


def test_the_engine_is_that_of_the_folder_or_of_the_option(generate: Callable[..., Result], tmp_path: Path) -> None:
    [option] = [option for option in main.commands["generate"].params if option.name == "engine"]
    assert tuple(option.type.choices) == ENGINES  # type: ignore[attr-defined]
    (tmp_path / "mine").mkdir()
    SPACE.save(tmp_path / "mine")
    assert generate("red kite", "--student", "mine", "--engine", "transformers").exit_code == 0
    result = generate("red kite", "--student", "mine", "--engine", "export")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "mine: is no folder for --engine export" in result.stderr
    result = generate("red kite", "--engine", "export")
    assert "there is no export of student/udrl v1" in result.stderr
