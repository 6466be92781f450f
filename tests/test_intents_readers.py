"""Users' intents files: every good line is read, every bad one is named, an unreadable file is a typed error."""

from pathlib import Path

import pandas as pd
import pytest

from udrl_pipeline.characters import printable
from udrl_pipeline.errors import IntentsError
from udrl_pipeline.intents import Candidate, judge
from udrl_pipeline.intents.readers import read_source
from udrl_pipeline.settings import Settings


@pytest.fixture
def read(tmp_path: Path):
    """Write a file and read it."""

    def read_file(name: str, content: str | bytes) -> list[Candidate]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        return read_source(path, tmp_path)

    return read_file


def sorted_out(settings: Settings, lines: list[Candidate]) -> tuple[list[str], list[tuple[str, str]]]:
    """The texts that were kept, and place and reason of what was not."""
    judged = judge(lines, settings)
    return [intent.text for intent in judged.kept], [(s.where, s.reason) for s in judged.set_aside]


# -- CSV and TSV --------------------------------------------------------------------------------------------------------


def test_a_csv_is_read_with_its_columns_in_any_order_and_case(read) -> None:
    assert read("a.csv", "Split,note, INTENT ,task\ntest,x,red fox,image\n,,blue fox,\n") == [
        Candidate("a.csv:2", "red fox", "image", "test"),
        Candidate("a.csv:3", "blue fox", None, None),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_line_ends_blank_lines_and_a_missing_last_one_do_not_matter(read, end: str, last: str) -> None:
    content = end.join(["intent", "red fox", "", "blue fox"]) + last.replace("\n", end)
    assert read("a.csv", content) == [Candidate("a.csv:2", "red fox"), Candidate("a.csv:4", "blue fox")]


def test_a_tsv_is_split_at_tabs(read) -> None:
    assert read("a.TSV", "intent\ttask\nfox, red\tsearch\n") == [Candidate("a.TSV:2", "fox, red", "search", None)]


def test_quotes_hold_commas_and_quotes(read) -> None:
    assert read("a.csv", 'intent\n"fox, red"\n"the ""old"" fox"\nthe "new" fox\n') == [
        Candidate("a.csv:2", "fox, red"),
        Candidate("a.csv:3", 'the "old" fox'),
        Candidate("a.csv:4", 'the "new" fox'),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(read) -> None:
    assert read("a.csv", b"\xef\xbb\xbfintent\nred fox\n") == [Candidate("a.csv:2", "red fox")]


def test_a_quoted_line_break_in_another_column_keeps_the_line_and_the_count(read) -> None:
    assert read("a.csv", 'intent,note\nred fox,"first\nsecond\nthird"\nblue fox,x\n') == [
        Candidate("a.csv:2", "red fox"),
        Candidate("a.csv:5", "blue fox"),
    ]


def test_a_header_alone_holds_no_intent(read) -> None:
    assert read("a.csv", "intent\n") == []


def test_a_quote_that_never_closes_costs_its_own_line_alone(read, settings: Settings) -> None:
    content = 'intent\nred fox\n"blue fox\n' + "".join(f"good idea {n}\n" for n in "abcdefgh") + '"a, b"\nlast idea\n'
    kept, set_aside = sorted_out(settings, read("a.csv", content))
    assert kept == ["a, b", *[f"good idea {n}" for n in "abcdefgh"], "last idea", "red fox"]
    assert set_aside == [("a.csv:3", "quotes that do not close")]


@pytest.mark.parametrize("line", ['"', '"red fox', '"red" fox', 'image,"red fox'])
def test_broken_quotes_in_the_last_line_are_named(read, settings: Settings, line: str) -> None:
    kept, set_aside = sorted_out(settings, read("a.csv", f"intent,task\nblue fox,\n{line}"))
    assert kept == ["blue fox"]
    assert set_aside == [("a.csv:3", "quotes that do not close")]


def test_a_line_with_too_few_or_too_many_fields_is_never_cut_in_silence(read, settings: Settings) -> None:
    kept, set_aside = sorted_out(settings, read("a.csv", "task,intent\nimage\nimage,fox, red, in snow\nimage,blue fox,,\n"))
    assert kept == ["blue fox"]
    assert set_aside == [("a.csv:2", "missing column"), ("a.csv:3", "4 fields in 2 columns (quote a text that holds a comma)")]


def test_each_kind_of_bad_line_is_set_aside_with_its_reason(read, settings: Settings) -> None:
    lines = [
        b"intent,task,split", b"red fox,image,train", b",image,", b"red\x00 fox,,", b"caf\xe9,,", b"fox <|task_image|>,,", b"1234,,",
        b"fox,haiku,", b"fox,,left", b"word " * 17 + b",,", "ÿfox\u2028in snow,,".encode(), b"blue fox,search,test",
    ]  # fmt: skip
    kept, set_aside = sorted_out(settings, read("a.csv", b"\n".join(lines)))
    assert kept == ["blue fox", "red fox", "ÿfox in snow"]
    assert dict(set_aside) == {
        "a.csv:3": "empty",
        "a.csv:4": "control characters",
        "a.csv:5": "not UTF-8",
        "a.csv:6": "control token",
        "a.csv:7": "not text",
        "a.csv:8": "unknown task 'haiku' (tasks: image, template, search)",
        "a.csv:9": "unknown split 'left' (splits: train, validation, test)",
        "a.csv:10": "longer than 16 words",
    }


def test_one_bad_line_among_a_thousand_good_ones_costs_one(read, settings: Settings) -> None:
    lines = [f"idea number {n} of a fox" for n in range(1000)]
    lines[500] = "caf\udce9"
    kept, set_aside = sorted_out(settings, read("a.csv", "intent\n" + "\n".join(lines)))
    assert len(kept) == 999
    assert set_aside == [("a.csv:502", "not UTF-8")]


def test_lines_of_a_megabyte_with_broken_quotes_are_each_read_once(read, settings: Settings) -> None:
    # each of them twenty times took minutes
    kept, set_aside = sorted_out(settings, read("a.csv", "intent\n" + ('"' + "fox," * 250_000 + "\n") * 30 + "red fox\n"))
    assert kept == ["red fox"]
    assert set_aside == sorted((f"a.csv:{n}", "quotes that do not close") for n in range(2, 32))


def test_a_carriage_return_within_a_line_is_named(read, settings: Settings) -> None:
    assert sorted_out(settings, read("a.csv", "intent\nred\rfox\nblue fox\n")) == (["blue fox"], [("a.csv:2", "control characters")])


@pytest.mark.parametrize("name", ["a\x1b[31m\n\u202e.csv", "a\udce9.csv"])
def test_a_files_own_name_is_shown_printable(read, name: str) -> None:
    try:
        (candidate,) = read(name, "intent\nred fox\n")
    except OSError:
        pytest.skip("this file system takes no such name")
    assert candidate.where == f"{printable(name)}:2"
    assert candidate.where.isprintable()


def test_many_broken_quotes_are_read_in_reasonable_time(read, settings: Settings) -> None:
    kept, set_aside = sorted_out(settings, read("a.csv", "intent\n" + '"red fox\nblue fox\n' * 500))
    assert (kept, len(set_aside)) == (["blue fox"], 500)


# -- JSON lines ---------------------------------------------------------------------------------------------------------


def test_json_lines_are_read(read) -> None:
    assert read("a.jsonl", '{"intent": "red fox", "task": "image", "split": "test"}\n\n{"intent": "blue\\u0020fox", "other": 1}') == [
        Candidate("a.jsonl:1", "red fox", "image", "test"),
        Candidate("a.jsonl:3", "blue fox", None, None),
    ]


def test_a_bad_json_line_costs_itself_alone(read, settings: Settings) -> None:
    lines = [
        '{"intent": "red fox"}', '{"intent": "blue fox"', '["red fox"]', '"red fox"', '{"text": "red fox"}', '{"intent": 5}',
        '{"intent": null}', '{"intent": "fox \\ud83d"}', '{"intent": "fox \\u0007"}', "[" * 100_000, '{"intent": "last fox"}',
    ]  # fmt: skip
    kept, set_aside = sorted_out(settings, read("a.ndjson", "\n".join(lines)))
    assert kept == ["last fox", "red fox"]
    assert dict(set_aside) == {
        "a.ndjson:2": "not JSON",
        "a.ndjson:3": "no JSON object",
        "a.ndjson:4": "no JSON object",
        "a.ndjson:5": "missing column",
        "a.ndjson:6": "not text",
        "a.ndjson:7": "missing column",
        "a.ndjson:8": "control characters",
        "a.ndjson:9": "control characters",
        "a.ndjson:10": "not JSON",
    }


# -- Parquet ------------------------------------------------------------------------------------------------------------


def test_a_parquet_file_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"Intent": ["red fox", None, " "], "task": ["image", None, ""], "note": [1, 2, 3]})
    frame.to_parquet(tmp_path / "my [1] ideas.parquet")
    assert read_source(tmp_path / "my [1] ideas.parquet", tmp_path) == [
        Candidate("my [1] ideas.parquet:1", "red fox", "image"),
        Candidate("my [1] ideas.parquet:2", None, None),
        Candidate("my [1] ideas.parquet:3", " ", None),
    ]


def test_a_parquet_column_that_holds_no_text_is_set_aside_row_by_row(tmp_path: Path, settings: Settings) -> None:
    pd.DataFrame({"intent": [1.5, 2.5]}).to_parquet(tmp_path / "a.parquet")
    assert sorted_out(settings, read_source(tmp_path / "a.parquet", tmp_path)) == (
        [],
        [("a.parquet:1", "not text"), ("a.parquet:2", "not text")],
    )


def test_a_damaged_parquet_file_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"intent": [f"idea {n} of a fox" for n in range(5000)]}).to_parquet(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"PAR1", b"", whole[:100] + b"\xff" * 400 + whole[500:]):
        path.write_bytes(damaged)
        with pytest.raises(IntentsError) as caught:
            read_source(path, tmp_path)
        assert caught.value.what.startswith("is no readable Parquet file")
        assert caught.value.where == str(path)


# -- folders, and files that cannot be read at all ----------------------------------------------------------------------


def test_a_folder_is_read_file_by_file(read, tmp_path: Path) -> None:
    read("ideas/b.csv", "intent\nred fox\n")
    read("ideas/more/a.jsonl", '{"intent": "blue fox"}')
    pd.DataFrame({"intent": ["green fox"]}).to_parquet(tmp_path / "ideas" / "c.parquet")
    (tmp_path / "ideas" / ".DS_Store").write_bytes(b"\x00")
    (tmp_path / "ideas" / ".git").mkdir()
    (tmp_path / "ideas" / ".git" / "index.csv").write_bytes(b"\x00")
    assert read_source(tmp_path / "ideas", tmp_path) == [
        Candidate("ideas/b.csv:2", "red fox"),
        Candidate("ideas/c.parquet:1", "green fox"),
        Candidate("ideas/more/a.jsonl:1", "blue fox"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says", "remedy"),
    [
        ("a.csv", "", "has no column `intent` (columns: none)", "name the columns in the first line, with a comma between them"),
        ("a.csv", "text\nred fox\n", "has no column `intent` (columns: text)", "name the columns in the first line, with a comma"),
        ("a.csv", "intent;task\nred fox;image\n", "has no column `intent` (columns: intent;task)", "with a comma between them"),
        ("a.csv", '"intent\nred fox\n', 'has no column `intent` (columns: "intent)', "name the columns"),
        ("a.tsv", "intent,task\nred fox,image\n", "has no column `intent` (columns: intent,task)", "with a tab between them"),
        ("a.csv", "intent\nred fox\n".encode("utf-16"), "is UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 a.csv"),
        ("a.csv", "intent\nred fox\n".encode("utf-16-le"), "has no column `intent`", "name the columns"),
        ("a.jsonl", "red fox\nblue fox\n", "holds no line of JSON", '{"intent": "..."}'),
        ("a.jsonl", '{"intent": "fox"}'.encode("utf-16"), "is UTF-16, not UTF-8", "iconv"),
        ("a.xlsx", b"PK\x03\x04", "is no intents file (.xlsx)", ".csv, .tsv, .jsonl or .parquet"),
        ("ideas", "red fox", "is no intents file (no ending)", ".csv, .tsv, .jsonl or .parquet"),
        ("a.parquet", "red fox", "is no readable Parquet file", "write it again"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_a_typed_error(
    read, tmp_path: Path, name: str, content: str | bytes, says: str, remedy: str
) -> None:
    with pytest.raises(IntentsError) as caught:
        read(name, content)
    assert caught.value.what.startswith(says)
    assert caught.value.where.startswith(str(tmp_path / name))
    assert remedy in caught.value.remedy


def test_a_parquet_file_without_the_column_is_a_typed_error(tmp_path: Path) -> None:
    pd.DataFrame({"thought": ["red fox"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(IntentsError, match=r"has no column `intent` \(columns: thought\)"):
        read_source(tmp_path / "a.parquet", tmp_path)


def test_a_missing_file_and_an_empty_folder_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(IntentsError) as caught:
        read_source(tmp_path / "nowhere", tmp_path)
    assert str(caught.value) == f"{tmp_path / 'nowhere'}: no such file or folder\n  -> correct intents.sources in params.yaml"
    (tmp_path / "empty").mkdir()
    with pytest.raises(IntentsError, match="the folder holds no file"):
        read_source(tmp_path / "empty", tmp_path)
