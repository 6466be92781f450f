"""Idea and text of a row with another word in the place of one that both hold, so that a student learns to take words over.

The ideas of a corpus are made of some hundred words again and again; a small student learns these by heart, and writes "robot dairy"
where it is asked for a robot with pigeons. A word that is another one on each reading can only be read off the idea.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pandas as pd

from udrl_pipeline.versioning import unit_draw

#: Letters only, and enough of them: shorter words are mostly grammar.
WORD = re.compile(r"(?<![\w'-])[^\W\d_]{4,}(?![\w'-])")
#: A word that is put in stands in the texts of so many ideas: what a teacher spelled wrong once does not.
LEAST_IDEAS = 4
#: A word that stands in the texts of a larger share of the ideas is neither taken out nor put in: "with", "poster", "light".
COMMON = 0.05


@dataclass(frozen=True, slots=True)
class Words:
    """What may be put in, in the order of the alphabet, and what is too common to be touched; all in small letters."""

    usable: list[str]
    common: frozenset[str]

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "Words":
        """Count the words of rows with `intent` and `text`."""
        ideas = defaultdict[str, set[str]](set)
        for intent, text in zip(rows.intent, rows.text, strict=True):
            for word in words(text):
                ideas[word].add(intent)
        common = frozenset(word for word, found in ideas.items() if len(found) > COMMON * rows.intent.nunique())
        return cls(sorted(word for word, found in ideas.items() if len(found) >= LEAST_IDEAS and word not in common), common)

    def swap(self, intent: str, text: str, *draw: Any) -> tuple[str, str]:
        """Put another word, the same everywhere, in the place of one that both hold; both as they are where they share none."""
        shared = sorted((words(intent) & words(text)) - self.common)
        if not shared or not self.usable:
            return intent, text
        old, new = _drawn(shared, "old", *draw), _drawn(self.usable, "new", *draw)

        def put(match: re.Match[str]) -> str:
            if match[0].lower() != old:
                return match[0]
            return new.capitalize() if match[0][0].isupper() else new

        return WORD.sub(put, intent), WORD.sub(put, text)


def words(text: str) -> set[str]:
    """The words that could be swapped, in small letters."""
    return {word.lower() for word in WORD.findall(text)}


def _drawn(choice: list[str], *draw: Any) -> str:
    return choice[int(unit_draw(*draw) * len(choice))]
