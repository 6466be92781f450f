"""The words that a student may write, by the tokenizers that students have."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from udrl_pipeline.student import lexicon
from udrl_pipeline.student.lexicon import ENDED, START, Lexicon
from udrl_pipeline.student.vocabulary import train_bpe

ROWS = [
    ("red fox", "A red fox, running in the snow"),
    ("red fox", "red fox sleeping in snowdrift"),
    ("old tram", "An old tram in the snow"),
    ("tea", "tea time, 1920s poster in blue"),
]
END = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([f" {text}" for _, text in ROWS], 290, []).backend_tokenizer


def spelled(tokenizer: Tokenizer, words: list[str]) -> list[tuple[str, list[int]]]:
    return [(word, tokenizer.encode(word, add_special_tokens=False).ids) for word in words]


def writable(tokenizer: Tokenizer, known: Lexicon, text: str) -> bool:
    """Whether a text may be written to its end, token by token."""
    place = START
    for token in tokenizer.encode(f" {text}", add_special_tokens=False).ids:
        if not known.may_follow(place)[token]:
            return False
        place = known.after(place, token)
    return bool(known.may_follow(place)[END])


IDEAS = [" fox", " old", " red", " tea", " tram"]
ALL = [
    " 1920", " A", " An", " blue", " fox", " in", " old", " poster", " red", " running", " sleeping", " snow", " snowdrift", " tea", " the",
    " time", " tram", ",", "s",
]  # fmt: skip


@pytest.mark.parametrize(
    ("enough", "least", "known"),
    [
        (10_000, 0, []),
        (10_000, 4, ALL),
        (3, 2, sorted([*IDEAS, " in", " snow", " the", ","])),
        (6, 4, sorted([*IDEAS, " in", " snow", " the", ","])),
        (3, 3, sorted([*IDEAS, " in"])),
        (2, 4, IDEAS),
    ],
)
def test_known_is_what_stands_in_rows_of_enough_ideas_or_in_an_idea(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, enough: int, least: int, known: list[str]
) -> None:
    monkeypatch.setattr(lexicon, "ENOUGH_IDEAS", enough)
    assert lexicon.known_words(tokenizer, ROWS, least) == known


def test_a_tokenizer_that_does_not_tell_words_from_marks_leaves_everything_open() -> None:
    tokenizer = Tokenizer(models.BPE())
    assert lexicon.known_words(tokenizer, ROWS, 1) == []
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert lexicon.known_words(tokenizer, ROWS, 1) == []


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("red fox in the snow", True),
        ("red fox, in the snow", True),
        ("fox", True),
        ("snowdrift, 1920s tea", True),
        ("snowfox", False),  # two words are not one
        ("fo", False),
        ("foxes", False),
        ("tea 192", False),
        ("Fox", False),
        ("fox,red", False),  # known is " red", with a space
    ],
)
def test_a_text_is_written_of_whole_known_words(tokenizer: Tokenizer, text: str, may: bool) -> None:
    assert writable(tokenizer, Lexicon(spelled(tokenizer, ALL), tokenizer.get_vocab_size(), END), text) is may


@pytest.mark.parametrize(
    ("text", "may"), [("Parvest fox", True), ("parvest", True), ("PARVEST", False), ("Parvests", False), ("Parsnow", False)]
)
def test_the_words_of_an_idea_are_known_to_its_texts_alone(tokenizer: Tokenizer, text: str, may: bool) -> None:
    known = Lexicon(spelled(tokenizer, ALL), tokenizer.get_vocab_size(), END)
    assert writable(tokenizer, known.also(spelled(tokenizer, lexicon.forms(tokenizer, "parvest"))), text) is may
    assert not writable(tokenizer, known, text)


def test_an_idea_is_known_as_it_stands_in_small_letters_and_with_a_capital(tokenizer: Tokenizer) -> None:
    assert lexicon.forms(tokenizer, "a DIY sale") == [" A", " DIY", " Sale", " a", " diy", " sale"]


def test_after_its_end_nothing_follows_but_the_end(tokenizer: Tokenizer) -> None:
    known = Lexicon(spelled(tokenizer, ALL), tokenizer.get_vocab_size(), END)
    [(_, fox)] = spelled(tokenizer, [" fox"])
    places = [START]
    for token in [*fox, END, END]:
        places.append(known.after(places[-1], token))
    assert places[len(fox) :] == [tuple(fox), ENDED, ENDED]
    assert known.may_follow(ENDED).nonzero()[0].tolist() == [END]
    assert [known.bound(place) for place in (START, tuple(fox), ENDED)] == [False, False, True]


@given(st.data())
@settings(max_examples=200)
def test_whatever_is_drawn_is_spelled_of_known_words(tokenizer: Tokenizer, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(ALL), min_size=1, unique=True))
    known = Lexicon(spelled(tokenizer, words), tokenizer.get_vocab_size(), END)
    place, written = START, []
    for _ in range(data.draw(st.integers(0, 25))):
        token = data.draw(st.sampled_from(known.may_follow(place).nonzero()[0].tolist()))
        if token == END:
            break
        written.append(token)
        place = known.after(place, token)
    while known.bound(place):
        written.append(min(known.may_follow(place).nonzero()[0].tolist()))
        place = known.after(place, written[-1])
    assert set(lexicon.pieces(tokenizer, tokenizer.decode(written, skip_special_tokens=False))) <= {*words, ""}


def test_words_come_back_from_a_folder_as_they_went_in(tmp_path: Path) -> None:
    assert lexicon.load(tmp_path) == []
    lexicon.save([], tmp_path)
    assert list(tmp_path.iterdir()) == []
    lexicon.save([" fox", "é", "\n"], tmp_path)
    assert lexicon.load(tmp_path) == json.loads((tmp_path / "words.json").read_text()) == [" fox", "é", "\n"]
