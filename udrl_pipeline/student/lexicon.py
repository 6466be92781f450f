"""The words that a student may write, token by token.

Small students spell words that do not exist ("Parvest", "journalournalist"), and guidance presses them to. A tokenizer splits a text
into pieces (a word with the space before it, a number, a mark) before it cuts these into tokens. Known are the pieces that stand in
the rows of several ideas, and those of the idea that is asked; a text goes on only with tokens by which a known piece begins or goes
on, spelled as in training. How often each of these is drawn is the student's own.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Stands in a student's folder; without it any token may follow.
FILE = "words.json"
#: A word must stand in rows of `student.word_ideas` ideas where there are so many ideas, and of fewer in proportion below.
ENOUGH_IDEAS = 2_000
#: How a splitting must go for words to be told from marks.
TRIED, SPLIT = " a cat, seen", [" a", " cat", ",", " seen"]

#: The tokens of the piece that is being written; whole pieces are followed by others.
Place = tuple[int, ...]
START: Place = ()
ENDED: Place = (-1,)


def known_words(tokenizer: Any, rows: Iterable[tuple[str, str]], least: int) -> list[str]:
    """The pieces that a student may write, in order; none where everything may be written.

    Args:
        tokenizer: Of `tokenizers`.
        rows: Idea and text of each row.
        least: In the rows of how many ideas a piece must stand (`student.word_ideas`); 0: no limit.
    """
    if not least or pieces(tokenizer, TRIED) != SPLIT:
        return []
    texts_of = defaultdict(list)
    for intent, text in rows:
        texts_of[intent].append(text)
    needed = math.ceil(min(least, least * len(texts_of) / ENOUGH_IDEAS))
    counted = Counter(piece for texts in texts_of.values() for piece in {p for text in texts for p in pieces(tokenizer, f" {text}")})
    own = {piece for intent in texts_of for piece in pieces(tokenizer, f" {intent}")}
    return sorted(own | {piece for piece, number in counted.items() if number >= needed})


def pieces(tokenizer: Any, text: str) -> list[str]:
    """A text as the tokenizer splits it before it cuts tokens."""
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def forms(tokenizer: Any, idea: str) -> list[str]:
    """The pieces of an idea as they stand there, in small letters, and with a capital."""
    found = pieces(tokenizer, f" {idea}")
    return sorted({form for piece in found for form in (piece, piece.lower(), piece[:1] + piece[1:2].upper() + piece[2:])})


def save(words: Sequence[str], folder: Path) -> None:
    """Write the words into a student's folder, where there are any."""
    if words:
        (folder / FILE).write_text(json.dumps(words, ensure_ascii=False, indent=0), encoding="utf-8")


def load(folder: Path) -> list[str]:
    """The words in a student's folder; none where everything may be written."""
    file = folder / FILE
    found: list[str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return found


class Lexicon:
    """Which tokens may follow what is written.

    Args:
        spelled: Each known piece and its tokens.
        size: How many tokens there are.
        end: The token that ends a text.
        base: A lexicon whose pieces are known, too.
    """

    def __init__(self, spelled: Iterable[tuple[str, Sequence[int]]], size: int, end: int, base: "Lexicon | None" = None) -> None:
        self._size, self._end, self._base = size, end, base
        self._next: dict[Place, set[int]] = {}
        self._last: dict[Place, str] = {}
        self._first: dict[str, set[int]] = {}
        self._beginnings: dict[str, Any] = {}
        for piece, tokens in spelled:
            if not tokens:
                continue
            for length in range(1, len(tokens)):
                self._next.setdefault(tuple(tokens[:length]), set()).add(tokens[length])
            self._last[tuple(tokens)] = _kind(piece[-1])
            self._first.setdefault(_kind(piece[0]), set()).add(tokens[0])

    def also(self, spelled: Iterable[tuple[str, Sequence[int]]]) -> "Lexicon":
        """One that knows these pieces, too."""
        return Lexicon(spelled, self._size, self._end, self)

    def after(self, place: Place, token: int) -> Place:
        """Where a text stands when this token follows."""
        if token == self._end or place == ENDED:
            return ENDED
        if self._goes_on(place, token):
            return (*place, token)
        return (token,) if self._begins(token) else START

    def bound(self, place: Place) -> bool:
        """Whether a piece has begun and must go on, or the text has ended: then no other rule may bar what follows."""
        return place != START and self._kind_of(place) is None

    def may_follow(self, place: Place) -> Any:
        """The tokens that may follow; bool [size]."""
        kind = "start" if place == START else self._kind_of(place)
        allowed = np.zeros(self._size, dtype=bool) if kind is None else self._beginning_after(kind).copy()
        allowed[[self._end] if place == ENDED else list(self._following(place))] = True
        return allowed

    def _goes_on(self, place: Place, token: int) -> bool:
        return token in self._next.get(place, ()) or bool(self._base and self._base._goes_on(place, token))

    def _begins(self, token: int) -> bool:
        return any(token in tokens for tokens in self._first.values()) or bool(self._base and self._base._begins(token))

    def _following(self, place: Place) -> set[int]:
        own = self._next.get(place, set())
        return own | self._base._following(place) if self._base else own

    def _kind_of(self, place: Place) -> str | None:
        """What a whole piece ends with; None of one that must go on."""
        return self._last.get(place) or (self._base._kind_of(place) if self._base else None)

    def _beginning_after(self, kind: str) -> Any:
        """The tokens that may begin a piece, or end the text, after one that ends so: what would have been one piece is not two."""
        if kind not in self._beginnings:
            allowed = self._base._beginning_after(kind).copy() if self._base else np.zeros(self._size, dtype=bool)
            for own, tokens in self._first.items():
                if own == "space" or own != kind != "start":
                    allowed[list(tokens)] = True
            allowed[self._end] = True
            self._beginnings[kind] = allowed
        return self._beginnings[kind]


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return "letter" if character.isalpha() else "digit" if character.isnumeric() else "mark"
