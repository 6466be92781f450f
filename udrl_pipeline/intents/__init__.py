"""Intents: the users' short ideas, built in or from files; normalised, deduplicated and split by hash.

Every line that cannot be used is set aside with its file, line and reason; a file that cannot be read at all is an
`IntentsError`. The split depends on the normalised intent alone, so no intent is ever on two sides.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml

from udrl_pipeline import characters
from udrl_pipeline.settings import IntentsSettings, Settings
from udrl_pipeline.store.tombstones import Forgotten
from udrl_pipeline.versioning import rows_hash, unit_draw

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

#: The word lists of the built-in intents. A later one only adds: the order of those before it, and so their recorded rows, stays.
EDITIONS = ("words.yaml", "more_words.yaml")
#: More characters than so many a word are no words.
WORD_CHARACTERS = 20


@dataclass(frozen=True, slots=True, order=True)
class Intent:
    """One idea. `key` is its normalised form; `tasks` are those that it is for, in the order of params.yaml."""

    key: str
    text: str
    tasks: tuple[str, ...]
    split: Split
    source: str


@dataclass(frozen=True, slots=True, order=True)
class SetAside:
    """A line that was not used: where it stands, why, and what it held."""

    where: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A line of an intents file before it is judged."""

    where: str
    text: object
    task: object = None
    split: object = None
    #: why the line could not even be taken apart; `text` is then the whole line
    fault: str | None = None
    #: what `udrl generate` is asked for this one
    words: object = None
    quality: object = None


@dataclass(frozen=True)
class Intents:
    kept: list[Intent]
    set_aside: list[SetAside]
    duplicates: int

    @property
    def version(self) -> str:
        return content_of((i.key, i.text, ",".join(i.tasks), i.split) for i in self.kept)

    def without(self, forgotten: Forgotten) -> "Intents":
        """Less those that were forgotten, which are set aside without their text."""
        gone = [intent for intent in self.kept if forgotten.holds_intent(intent.key)]
        kept = [intent for intent in self.kept if intent not in gone]
        return replace(self, kept=kept, set_aside=sorted([*self.set_aside, *(SetAside(intent.source, "forgotten", "") for intent in gone)]))


def content_of(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Content hash of intents, each given by its key, text, tasks (separated by commas) and split."""
    return rows_hash("\t".join(row) for row in rows)


def normalise(text: str) -> str:
    """The form in which two intents are the same: NFKC, single spaces, no case."""
    return clean(text).casefold()


def clean(text: str) -> str:
    """The form in which an intent is shown to the teacher: NFKC, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def split_of(key: str, settings: IntentsSettings) -> Split:
    """The split of a normalised intent, by its hash."""
    draw = unit_draw("split", key)
    if draw < settings.test:
        return "test"
    return "validation" if draw < settings.test + settings.validation else "train"


def problem(text: object, max_words: int) -> str | None:
    """Why a text cannot be an intent, or None. Also what `udrl generate` checks an idea with."""
    if text is None:
        return "missing column"
    if not isinstance(text, str):
        return "not text"
    if any("\udc80" <= c <= "\udcff" for c in text):
        return "not UTF-8"
    if not text.strip():
        return "empty"
    # before NFKC, which takes minutes for a megabyte of accents
    too_long = len(text) > max_words * WORD_CHARACTERS
    if not too_long:
        if fault := characters.fault(text.strip()):
            return fault
        if not any(c.isalpha() for c in text):
            return "not text"
        cleaned = clean(text)  # NFKC makes many words of one character
        too_long = len(cleaned.split()) > max_words or len(cleaned) > max_words * WORD_CHARACTERS
    return f"longer than {max_words} words" if too_long else None


def builtin(settings: IntentsSettings) -> list[str]:
    """The package's own intents in the order of `seed`; the first n stay the same when more are asked for."""
    return list(_ordered(settings.seed)[: settings.builtin])


@cache
def _ordered(seed: int) -> tuple[str, ...]:
    ordered: dict[str, None] = {}
    for edition in EDITIONS:
        words = yaml.safe_load((files("udrl_pipeline.intents") / edition).read_text(encoding="utf-8"))
        placed: dict[str, float] = {}
        for domain in words["domains"].values():
            texts = sorted({text for pattern in domain["patterns"] for text in _fill(pattern, words["lists"])})
            texts.sort(key=lambda text: unit_draw("builtin", seed, text))
            for rank, text in enumerate(texts):
                placed.setdefault(text, (rank + 0.5) / domain["share"])
        ordered |= dict.fromkeys(sorted(placed, key=lambda text: (placed[text], text)))
    return tuple(ordered)


def _fill(pattern: str, lists: dict[str, list[str]]) -> Iterator[str]:
    slots = re.findall(r"{(\w+)}", pattern)
    for choice in itertools.product(*(lists[slot] for slot in slots)):
        yield pattern.format(**dict(zip(slots, choice, strict=True)))


def collect(settings: Settings) -> Intents:
    """All intents of params.yaml: the built-in ones and those of the user's files.

    Raises:
        IntentsError: A file cannot be read at all.
    """
    from udrl_pipeline.intents.readers import read_source

    candidates = [Candidate(f"builtin:{n}", text) for n, text in enumerate(builtin(settings.intents))]
    for source in sources(settings):
        candidates += read_source(source, settings.root)
    return judge(candidates, settings)


def sources(settings: Settings) -> list[Path]:
    """The users' files and folders: those of `intents.sources`, and `intents.folder` where it holds a file."""
    from udrl_pipeline.intents.readers import files_in

    named = [settings.path(source) for source in settings.intents.sources]
    folder = settings.path(settings.intents.folder) if settings.intents.folder else None
    return [*named, folder] if folder and folder not in named and files_in(folder) else named


def judge(candidates: list[Candidate], settings: Settings) -> Intents:
    """Sort candidates into intents and what is set aside. The same intent twice counts once, for all tasks it names."""
    texts: dict[str, str] = {}
    tasks: dict[str, set[str]] = {}
    splits: dict[str, tuple[Split, str]] = {}
    sources: dict[str, str] = {}
    set_aside: list[SetAside] = []
    duplicates = 0
    for candidate in candidates:
        reason = candidate.fault or problem(candidate.text, settings.intents.max_words) or _problem_of_columns(candidate, settings)
        key = "" if reason else normalise(str(candidate.text))
        wanted: Split | None = candidate.split or None  # type: ignore[assignment]
        if not reason and wanted and key in splits and splits[key][0] != wanted:
            reason = f"split {wanted} contradicts {splits[key][1]}"
        if reason:
            set_aside.append(SetAside(candidate.where, reason, characters.quoted(candidate.text)))
            continue
        duplicates += key in texts
        # of two spellings the smaller one, so that the order of the files does not matter
        texts[key] = min(texts.get(key, clean(str(candidate.text))), clean(str(candidate.text)))
        tasks.setdefault(key, set()).update([str(candidate.task)] if candidate.task else settings.tasks.names)
        sources.setdefault(key, candidate.where)
        if wanted:
            splits[key] = (wanted, candidate.where)
    kept = [
        Intent(
            key=key,
            text=text,
            tasks=tuple(name for name in settings.tasks.names if name in tasks[key]),
            split=splits[key][0] if key in splits else split_of(key, settings.intents),
            source=sources[key],
        )
        for key, text in texts.items()
    ]
    return Intents(sorted(kept), sorted(set_aside), duplicates)


def _problem_of_columns(candidate: Candidate, settings: Settings) -> str | None:
    if candidate.task and candidate.task not in settings.tasks.names:
        return f"unknown task {characters.quoted(candidate.task, 60)} (tasks: {', '.join(settings.tasks.names)})"
    if candidate.split and candidate.split not in SPLITS:
        return f"unknown split {characters.quoted(candidate.split, 60)} (splits: {', '.join(SPLITS)})"
    return None
