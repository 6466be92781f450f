"""Words that idea and text share, swapped for others."""

from collections import Counter

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline.student.swapping import Words, words

USABLE = Words(["pumpkin", "zebra"], frozenset({"with", "poster"}))
#: A hundred ideas: "poster" stands in the texts of all, "heron" and "otter" in those of four, "hreon" in one, "cat" is short.
ROWS = pd.DataFrame(
    [(f"idea {n}", f"Poster of a {'heron' if n < 4 else 'otter' if n < 8 else 'hreon' if n == 8 else 'cat'}") for n in range(100)],
    columns=["intent", "text"],
)


def test_what_may_be_put_in_stands_in_the_texts_of_some_ideas_and_not_of_most() -> None:
    assert Words.of(ROWS) == Words(["heron", "otter"], frozenset({"poster"}))


def test_texts_of_one_idea_count_once() -> None:
    assert Words.of(ROWS.assign(intent="the same")) == Words([], frozenset({"poster", "heron", "otter", "hreon"}))


def test_a_word_that_both_hold_is_another_one_everywhere_with_its_capital() -> None:
    found = Counter(USABLE.swap("heron in the rain", "Heron by a lake, a heron", n) for n in range(200))
    assert set(found) == {
        ("pumpkin in the rain", "Pumpkin by a lake, a pumpkin"),
        ("zebra in the rain", "Zebra by a lake, a zebra"),
    }
    assert min(found.values()) > 60


def test_any_of_the_shared_words_may_be_the_one() -> None:
    found = {USABLE.swap("heron in rain", "Heron, rain", n) for n in range(200)}
    swapped_heron = {("pumpkin in rain", "Pumpkin, rain"), ("zebra in rain", "Zebra, rain")}
    swapped_rain = {("heron in pumpkin", "Heron, pumpkin"), ("heron in zebra", "Heron, zebra")}
    assert found == swapped_heron | swapped_rain


def test_common_words_short_ones_and_parts_of_words_are_left_alone() -> None:
    pairs = [
        ("a poster with a cat", "Poster with a cat"),
        ("sunset", "Sunsets over the sea"),
        ("heron", "A heron's nest, heron-grey, herons"),
        ("heron", "An otter"),
        ("", "An otter"),
    ]
    assert [USABLE.swap(*pair, 1) for pair in pairs] == pairs


def test_without_words_to_put_in_nothing_is_swapped() -> None:
    assert Words([], frozenset()).swap("heron", "A heron", 1) == ("heron", "A heron")


@given(st.text(max_size=30), st.text(max_size=60), st.integers())
def test_a_text_keeps_its_number_of_words_and_what_stands_between_them(intent: str, text: str, draw: int) -> None:
    swapped = USABLE.swap(f"{intent} heron", f"{text} heron", draw)
    assert [len(part.split()) for part in swapped] == [len(f"{part} heron".split()) for part in (intent, text)]
    assert swapped == USABLE.swap(f"{intent} heron", f"{text} heron", draw)
    assert words(swapped[0]) & words(swapped[1]) & {"pumpkin", "zebra"}
