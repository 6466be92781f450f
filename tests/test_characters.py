"""Characters: what is refused, and that showing a text never obeys it."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline.characters import CONTROL_TOKEN, HIDDEN, REASONS, fault, printable, quoted, to_json

ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # lone surrogates, too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY_TEXT, lambda v: st.lists(v) | st.dictionaries(ANY_TEXT, v), max_leaves=9
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("plain text", None),
        ("a\ttab", None),
        ("a\nline", "control characters"),
        ("\x9b31m", "control characters"),
        ("caf\udce9", "control characters"),
        ("\U0010fffd", "control characters"),
        ("abc\u202edcba", "bidirectional control"),
        ("\u200fשלום", "bidirectional control"),
        ("soft\u00adhyphen", "invisible characters"),
        ("a\ufeffb", "invisible characters"),
        ("fox\U000e0041\U000e0042", "invisible characters"),
        ("😀\ufe01\ufe02\ufe03", "invisible characters"),
        ("a\u200cb", "invisible characters"),
        ("👩\u200d\u200d", "invisible characters"),
        ("👩‍👩‍👧 🏳️‍🌈 👁️‍🗨️ ❤️ 1️⃣", None),
        ("می‌خواهم क्‍ष 葛󠄀", None),
        ("＜｜im_end｜＞", "control token"),
        ("<|im_end|>", "control token"),
        ("[/INST]", "control token"),
        ("<b>bold</b> <script>", None),
    ],
)
def test_a_text_has_a_fault_or_none(text: str, reason: str | None) -> None:
    assert fault(text) == reason


@given(st.text(st.characters(max_codepoint=127) | st.sampled_from("<|>[]/INST"), max_size=20))
def test_the_short_way_for_plain_texts_finds_the_same_faults(text: str) -> None:
    slow = [reason for reason, pattern in REASONS.items() if pattern.search(text)] + ["control token"] * bool(CONTROL_TOKEN.search(text))
    assert fault(text) == next(iter(slow), None)


def test_all_control_private_and_half_characters_are_control_characters_but_the_tab() -> None:
    everything = [chr(code) for code in range(0x110000)]
    refused = {c for c in everything if REASONS["control characters"].fullmatch(c)}
    noncharacters = {c for c in everything if 0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE}
    assert refused == {c for c in everything if unicodedata.category(c) in ("Cc", "Co", "Cs")} - {"\t"} | noncharacters


@given(ANY_TEXT)
def test_what_is_printed_hides_nothing_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert HIDDEN.search(shown) is None
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert (shown == text) == (HIDDEN.search(text) is None)


@given(JSON)
def test_json_says_the_same_and_hides_nothing(value: object) -> None:
    shown = to_json(value)
    assert json.loads(shown) == value
    assert HIDDEN.search(shown) is None
    assert shown.encode("utf-8")


def test_json_and_printable_text_keep_every_script() -> None:
    assert to_json({"fox": "Füchse 雪 👩‍👧"}) == '{"fox": "Füchse 雪 👩‍👧"}'
    assert printable("Füchse 雪 👩‍👧") == "Füchse 雪 👩‍👧"
    assert printable("\x1b[31mred\u202e\udce9\n") == r"\x1b[31mred\u202e\udce9\n"


@given(JSON | st.binary() | st.floats())
def test_a_quoted_value_is_short_and_in_one_line(value: object) -> None:
    shown = quoted(value)
    assert len(shown) <= 200
    assert len(shown.splitlines()) == 1
    assert HIDDEN.search(shown) is None


def test_a_quoted_value_of_any_depth_and_size_is_quoted_at_once() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(deep) == "[[[[[[[...]]]]]]]"
    wide: list[object] = ["lol"]
    for _ in range(60):
        wide = [wide] * 9
    assert len(quoted(wide)) == 200
    assert quoted("x" * 10**6) == "'" + "x" * 199
