"""Users' intents files: CSV, TSV, JSONL and Parquet, or folders of them. A bad line never costs a good one."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import duckdb

from udrl_pipeline.characters import printable
from udrl_pipeline.errors import IntentsError
from udrl_pipeline.intents import Candidate
from udrl_pipeline.versioning import file_sha256

#: How many physical lines one quoted CSV record may span before its opening quote counts as a mistake.
MAX_RECORD_LINES = 20
#: And how many characters; without this limit, lines of a megabyte would each be read twenty times.
MAX_RECORD_CHARACTERS = 100_000
COLUMNS = ("intent", "task", "split", "words", "quality")
#: Another name of the first column.
IDEA = "idea"


def read_source(path: Path, root: Path) -> list[Candidate]:
    """All lines of a file or of every file in a folder, each with its place (`file:line`, relative to `root`)."""
    if path.is_dir():
        found = files_in(path)
        if not found:
            raise IntentsError("the folder holds no file", where=str(path), remedy="add a CSV, JSONL or Parquet file")
        return [candidate for file in found for candidate in _read_member(file, root)]
    if not path.is_file():
        raise IntentsError("no such file or folder", where=str(path), remedy="correct intents.sources in params.yaml")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise IntentsError(
            f"is no intents file ({path.suffix or 'no ending'})", where=str(path), remedy="use .csv, .tsv, .jsonl or .parquet"
        )
    return list(reader(path, _name(path, root)))


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, less what is hidden; none where there is no such folder."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts))


def digests(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """The sha256 of each file (of each in a folder), by the name that its lines are told by; `unreadable` where it cannot be read."""
    found = {}
    for file in (file for path in paths for file in (files_in(path) if path.is_dir() else [path])):
        try:
            found[_name(file, root)] = file_sha256(file)
        except OSError:  # its reading has told why
            found[_name(file, root)] = "unreadable"
    return found


def _read_member(file: Path, root: Path) -> list[Candidate]:
    """The lines of a file in a folder. One that cannot be read is set aside whole, so that it costs the others nothing."""
    try:
        return read_source(file, root)
    except IntentsError as error:
        line = error.where.removeprefix(str(file))  # such as :1, where the header is at fault
        return [Candidate(_name(file, root) + line, "", fault=f"the file {error.what}")]


def _name(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path))


def _lines(path: Path) -> list[str]:
    """A text file's lines; bytes that are not UTF-8 survive as surrogates, so that only their own line is set aside."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntentsError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise IntentsError("is UTF-16, not UTF-8", where=str(path), remedy=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]  # not splitlines: it also cuts at \x1c, \u2028


def _read_csv(path: Path, name: str) -> Iterator[Candidate]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    records = _records(_lines(path), delimiter)
    _, header = next(records)
    columns = _intent_named([header] if isinstance(header, str) else [column.strip().lower() for column in header])
    if "intent" not in columns:
        raise IntentsError(
            f"has no column `intent` (columns: {_named(columns)})",
            where=f"{path}:1",
            remedy=f"name the columns in the first line, with a {'tab' if delimiter == chr(9) else 'comma'} between them",
        )
    for line, fields in records:
        where = f"{name}:{line}"
        if isinstance(fields, str):
            yield Candidate(where, fields, fault="control characters" if "\r" in fields else "quotes that do not close")
        elif any(fields[len(columns) :]):
            yield Candidate(
                where, delimiter.join(fields), fault=f"{len(fields)} fields in {len(columns)} columns (quote a text that holds a comma)"
            )
        elif fields:
            yield _candidate(where, dict(zip(columns, fields, strict=False)))


def _records(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """CSV records with the line on which each starts; a str where a line's quotes never close."""
    csv.field_size_limit(2**31 - 1)
    position = 0
    while position < len(lines):
        fields, taken = _first_record(lines[position : position + MAX_RECORD_LINES], delimiter)
        yield position + 1, fields
        position += taken


def _first_record(lines: list[str], delimiter: str) -> tuple[list[str] | str, int]:
    """The fields of the first record and how many lines it takes; the first line itself where its quotes never close."""
    for taken in range(1, len(lines) + 1):
        record = "\n".join(lines[:taken])
        try:
            rows = list(csv.reader([record], delimiter=delimiter, strict=True))
        except csv.Error:
            if len(record) > MAX_RECORD_CHARACTERS:
                break
            continue
        return rows[0] if rows else [], taken
    return lines[0], 1


def _read_jsonl(path: Path, name: str) -> Iterator[Candidate]:
    lines = _lines(path)
    readable = False
    candidates = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            candidates.append(Candidate(f"{name}:{number}", line, fault="not JSON"))
            continue
        readable = True
        if isinstance(value, dict):
            candidates.append(_candidate(f"{name}:{number}", dict(zip(_intent_named(list(value)), value.values(), strict=True))))
        else:
            candidates.append(Candidate(f"{name}:{number}", line, fault="no JSON object"))
    if candidates and not readable:
        raise IntentsError("holds no line of JSON", where=str(path), remedy='write one object a line: {"intent": "..."}')
    yield from candidates


def _read_parquet(path: Path, name: str) -> Iterator[Candidate]:
    try:
        relation = duckdb.connect().read_parquet(str(path))
        named = dict(zip(_intent_named([column.lower() for column in relation.columns]), relation.columns, strict=True))
        chosen = [column for column in COLUMNS if column in named]
        rows = relation.select(*(duckdb.ColumnExpression(named[column]) for column in chosen)).fetchall() if "intent" in named else []
    except (duckdb.Error, RuntimeError, ValueError) as error:  # the latter two from text that is not UTF-8
        raise IntentsError(
            f"is no readable Parquet file ({str(error).splitlines()[0]})", where=str(path), remedy="write it again"
        ) from None
    if "intent" not in named:
        raise IntentsError(f"has no column `intent` (columns: {_named(relation.columns)})", where=str(path), remedy="rename one")
    for number, row in enumerate(rows, 1):
        yield _candidate(f"{name}:{number}", dict(zip(chosen, row, strict=True)))


def _intent_named(columns: list[str]) -> list[str]:
    """The columns, of which one called `idea` is the intent, where none has that name."""
    return columns if "intent" in columns else ["intent" if column == IDEA else column for column in columns]


def _candidate(where: str, row: Mapping[str, object]) -> Candidate:
    task, split, words, quality = (_filled(row.get(column)) for column in COLUMNS[1:])
    return Candidate(where, row.get("intent"), task, split, words=words, quality=quality)


def _named(columns: list[str]) -> str:
    return printable(", ".join(columns)[:200]) or "none"


def _filled(value: object) -> object:
    """An optional column's value; blank counts as not given."""
    return (value.strip() or None) if isinstance(value, str) else value
