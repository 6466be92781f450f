"""Content hashes and code versions.

A *content hash* names what something is: it depends on the content alone, never on row order, engine, time, machine or
run. A *code version* names how something was made: it hashes the abstract syntax tree of the modules that an asset uses,
so comments, docstrings and formatting do not change it. A *fingerprint* is the content hash of all inputs of a step
(parent versions, params, code version): the same fingerprint means that the step has nothing to do.
"""

import ast
import hashlib
import importlib.resources
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Hex digits of a version. Dagster tags take 63 characters; 16 digits (64 bits) keep tables readable.
VERSION_DIGITS = 16
#: Hex digits of a row key: 128 bits, so that a billion rows do not collide.
ROW_KEY_DIGITS = 32


#: Made once: `json.dumps` with options makes one per call, which takes longer than to write a short text.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
#: `canonical` of a text, for columns of millions of them: without asking of each whether it is one.
canonical_text = json.encoder.encode_basestring


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value. Raises TypeError for what JSON cannot hold."""
    return _ENCODER.encode(value)


def content_hash(value: Any, digits: int = VERSION_DIGITS) -> str:
    """The hash of a JSON-like value; dictionaries hash the same in any key order."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:digits]


def rows_hash(lines: Iterable[str], digits: int = VERSION_DIGITS) -> str:
    """The hash of a set of rows, each given as one line of text; independent of their order."""
    digest, ordered = hashlib.sha256(), sorted(lines)
    for start in range(0, len(ordered), 4096):  # many lines at once: a million rows take a second less
        digest.update("".join(f"{line}\n" for line in ordered[start : start + 4096]).encode())
    return digest.hexdigest()[:digits]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its path relative to the folder."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def unit_draw(*parts: Any) -> float:
    """A number in [0, 1) that depends on `parts` alone: the seeded draw behind splits, lengths and examples."""
    return int(content_hash(parts, 13), 16) / 16**13


def code_version(sources: Iterable[str]) -> str:
    """The version of a list of source files, named relative to the package (`"rewards.py"`, `"store/ledger.py"`).

    Python files count by their syntax tree without docstrings; other files (SQL, YAML, templates) by their text.
    """
    root = importlib.resources.files("udrl_pipeline")
    return content_hash({name: _meaning(name, root.joinpath(name).read_text(encoding="utf-8")) for name in sources}, 12)


@lru_cache(maxsize=256)  # several assets name the same files
def _meaning(name: str, text: str) -> str:
    if not name.endswith(".py"):
        return "\n".join(line.rstrip() for line in text.splitlines())
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)  # not ast.dump: its text differs between Python versions
