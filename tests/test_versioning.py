"""What must, and what must not, change a hash or a code version."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from udrl_pipeline import versioning
from udrl_pipeline.versioning import canonical, code_version, content_hash, file_sha256, files_sha256, rows_hash, unit_draw

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=12), max_size=6)

FUNCTION = '''
def area(width, height):
    """The area of a sheet."""
    # in square metres
    return width * height
'''


def test_known_values_have_known_hashes() -> None:
    assert canonical({"b": [1, None], "a": "ü"}) == '{"a":"ü","b":[1,null]}'
    assert content_hash({"a": 1}) == "015abd7f5cc57a2d"
    assert rows_hash(["b", "a"]) == "911169ddaaf146af"
    assert rows_hash([]) == "e3b0c44298fc1c14"
    assert unit_draw("split", "red fox") == pytest.approx(0.9585, abs=1e-4)


@given(st.dictionaries(TEXT, VALUES, max_size=5), st.randoms(use_true_random=False))
def test_a_dictionary_hashes_the_same_in_any_order(value: dict[str, object], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert content_hash(dict(items)) == content_hash(value)


@given(LINES, st.randoms(use_true_random=False))
def test_rows_hash_the_same_in_any_order(lines: list[str], random: object) -> None:
    shuffled = list(lines)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rows_hash(shuffled) == rows_hash(lines)


@given(LINES.filter(bool), st.data())
def test_any_changed_character_changes_the_version(lines: list[str], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[row])))
    changed = list(lines)
    changed[row] = lines[row][:at] + data.draw(st.sampled_from("xyz ")) + lines[row][at:]
    assert rows_hash(changed) != rows_hash(lines)
    assert content_hash(changed) != content_hash(lines)


@given(LINES.filter(bool))
def test_a_row_more_or_twice_is_another_version(lines: list[str]) -> None:
    assert len({rows_hash(lines), rows_hash([*lines, lines[0]]), rows_hash(lines[1:])}) == 3


@given(st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3))
def test_a_draw_depends_on_its_parts_alone_and_lies_in_the_unit_interval(first: list[object], second: list[object]) -> None:
    assert 0 <= unit_draw(*first) < 1
    assert unit_draw(*first) == unit_draw(*first)
    assume(canonical(first) != canonical(second))
    assert unit_draw(*first) != unit_draw(*second)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_has_no_hash(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        content_hash({"value": value})
    with pytest.raises(TypeError):
        content_hash({"value": {1, 2}})


def test_files_are_named_relative_to_their_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_bytes(b"a")
    (tmp_path / "b.txt").write_bytes(b"")
    assert files_sha256(tmp_path) == {
        "b.txt": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "inner/a.txt": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    }
    assert file_sha256(tmp_path / "b.txt") == files_sha256(tmp_path)["b.txt"]


@pytest.fixture
def version_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The code version of a package that holds one file."""
    monkeypatch.setattr(versioning.importlib.resources, "files", lambda _: tmp_path)

    def version(text: str, name: str = "step.py") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return code_version([name])

    return version


@pytest.mark.parametrize(
    "edited",
    [
        FUNCTION.replace("# in square metres", "# in acres, or so"),
        FUNCTION.replace("    # in square metres\n", "\n\n"),
        FUNCTION.replace('"""The area of a sheet."""', '"""What a sheet covers."""'),
        FUNCTION.replace('    """The area of a sheet."""\n', ""),
        FUNCTION.replace("width * height", "(width*height)"),
        '"""A module."""\n' + FUNCTION,
    ],
)
def test_comments_docstrings_and_formatting_do_not_change_a_code_version(version_of, edited: str) -> None:
    assert version_of(edited) == version_of(FUNCTION)


@pytest.mark.parametrize(
    "edited",
    [
        FUNCTION.replace("width * height", "width + height"),
        FUNCTION.replace("def area", "def size"),
        FUNCTION.replace("(width, height)", "(width, height=1)"),
        FUNCTION + "\nLIMIT = 3\n",
        FUNCTION.replace("return width * height", "'not a docstring here' and None\n    return width * height"),
    ],
)
def test_changed_code_changes_a_code_version(version_of, edited: str) -> None:
    assert version_of(edited) != version_of(FUNCTION)


def test_a_file_that_is_not_python_counts_by_its_text(version_of) -> None:
    plain = version_of("a: 1\nb: 2\n", "words.yaml")
    assert version_of("a: 1  \nb: 2", "words.yaml") == plain
    assert version_of("a: 1\nb: 3\n", "words.yaml") != plain


def test_the_name_of_a_source_belongs_to_the_code_version(version_of) -> None:
    assert version_of(FUNCTION, "a.py") != version_of(FUNCTION, "b.py")


def test_the_order_in_which_sources_are_named_does_not() -> None:
    assert code_version(["corpus.py", "errors.py"]) == code_version(["errors.py", "corpus.py"])
