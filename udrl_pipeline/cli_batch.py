"""`udrl generate --to FILE`: many texts into one table, CSV, JSON lines or Parquet by the file's ending; a kill loses one lot at most.

Each lot of texts is appended to a journal beside the file (`FILE.part`). The same command goes on behind the last whole lot; when all
is there the table is written aside and renamed, and the journal goes. So the file is whole or not there, and no row is in it twice.
"""

import csv
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
from tqdm import tqdm

from udrl_pipeline.characters import to_json
from udrl_pipeline.errors import StoreLocked, UdrlError
from udrl_pipeline.store.database import translate

#: The columns and what they hold. `row` is the place that an idea came from, such as ideas.csv:12.
COLUMNS: dict[str, type] = {
    "row": str, "intent": str, "task": str, "recipe": str, "length": int, "quality": int, "guidance": float, "length_guidance": float,
    "idea_guidance": float, "text": str, "words": int,
}  # fmt: skip
#: Rows of a Parquet file that are written at a time.
GROUP_ROWS = 16_384
Record = dict[str, Any]


def write_texts(target: Path, question: str, total: int, lot: int, lots: Callable[[int], Iterator[list[Record]]]) -> None:
    """Write `total` records into a table, going on where an earlier try with the same question has stopped.

    Args:
        question: A hash of all that decides what the records are.
        lot: Records that `lots` yields at a time; fewer the last time.
        lots: From the number of records that are there to those that are missing.

    Raises:
        StoreLocked: Another process is writing this file.
        UdrlError: It cannot be written, or what was half done belongs to another question.
    """
    write_table = table_writer(target)
    part = target.with_name(f"{target.name}.part")
    with _told(target), part.open("a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked("another process is writing it", where=str(target), remedy="wait until that one has ended") from None
        done = _recover(journal, question, total, lot)
        if done:
            click.echo(f"going on behind {done:,} of {total:,} texts ({part})", err=True)
        with tqdm(total=total, initial=done, unit=" texts", disable=None, leave=False) as progress:
            for records in lots(done) if done < total else ():
                journal.write("".join(f"{to_json(record)}\n" for record in records).encode())
                journal.flush()
                os.fsync(journal.fileno())
                progress.update(len(records))
        journal.seek(0)
        journal.readline()
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            write_table(staged, (json.loads(line) for line in journal))
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)
        part.unlink()


def _recover(journal: BinaryIO, question: str, total: int, lot: int) -> int:
    """Leave the whole lots in a journal, or begin it. Returns the number of records that it holds."""
    journal.seek(0)
    header = journal.readline()
    if not header.endswith(b"\n"):  # new, or killed at once
        journal.truncate(0)
        journal.write(f"{to_json({'question': question})}\n".encode())
        journal.flush()
        return 0
    if json.loads(header) != {"question": question}:
        raise UdrlError(
            "is the half-done work of another command: of other ideas, options or another student",
            where=journal.name,
            remedy="repeat that command, or remove the file to begin anew",
        )
    ends = [journal.tell()]
    for line in journal:
        if line.endswith(b"\n") and len(ends) <= total:
            ends.append(ends[-1] + len(line))
    written = len(ends) - 1
    whole = written if written == total else written - written % lot
    journal.truncate(ends[whole])
    return whole


def write_unused(target: Path, unused: Sequence[tuple[str, str, str]]) -> Path | None:
    """Write the rows that were not used (place, reason, text) beside the table, as JSON lines; no file where all were used."""
    file = target.with_name(f"{target.stem}.unused.jsonl")
    with _told(file):
        if not unused:
            file.unlink(missing_ok=True)
            return None
        lines = (to_json({"row": row, "reason": reason, "text": text}) for row, reason, text in unused)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def table_writer(target: Path) -> Callable[[Path, Iterator[Record]], None]:
    """What writes a table of this ending.

    Raises:
        UdrlError: There is none.
    """
    writers = {".csv": _write_csv, ".tsv": _write_tsv, ".jsonl": _write_jsonl, ".ndjson": _write_jsonl, ".parquet": _write_parquet}
    if writer := writers.get(target.suffix.lower()):
        return writer
    raise UdrlError(
        f"is no table that can be written ({target.suffix or 'no ending'})", where=str(target), remedy=f"use {', '.join(writers)}"
    )


def _write_jsonl(file: Path, records: Iterator[Record]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(f"{to_json(record)}\n" for record in records)


def _write_csv(file: Path, records: Iterator[Record], delimiter: str = ",") -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, list(COLUMNS), delimiter=delimiter, lineterminator="\n")
        table.writeheader()
        table.writerows(records)


def _write_tsv(file: Path, records: Iterator[Record]) -> None:
    _write_csv(file, records, "\t")


def _write_parquet(file: Path, records: Iterator[Record]) -> None:
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    with pq.ParquetWriter(file, schema, compression="zstd") as table:
        while group := list(itertools.islice(records, GROUP_ROWS)):
            table.write_table(pa.Table.from_pylist(group, schema))


@contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        translated = translate(error, file)
        if isinstance(translated, UdrlError):
            raise translated from error
        raise UdrlError(f"cannot be written: {error.strerror}", where=str(file), remedy="name another --to") from error
