"""Great Expectations over rows and versions: what may be trained on, and why the rest may not.

Row expectations say which rows go to quarantine; each also fails as a whole when more than `quality.max_quarantined` of the
rows break it. Version expectations judge what is left. `EXPECTATIONS` names them all without importing Great Expectations.
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline import characters, rewards
from udrl_pipeline.intents import normalise
from udrl_pipeline.parts import by_parts
from udrl_pipeline.settings import QualitySettings
from udrl_pipeline.store.tables import in_order
from udrl_pipeline.store.workspace import Expected, Quarantined
from udrl_pipeline.tasks import Task
from udrl_pipeline.usage import cores


@dataclass(frozen=True, slots=True)
class ExpectationSpec:
    name: str
    blocking: bool
    description: str


ROW_EXPECTATIONS = (
    ExpectationSpec("finished", True, "The teacher ended the text itself; it was not cut off by length"),
    ExpectationSpec("length", True, "The text has between quality.min_words and quality.max_words words"),
    ExpectationSpec("latin_script", True, "The letters are Latin (the built-in tasks ask for English)"),
    ExpectationSpec("no_near_duplicate", True, "No other row of the task says the same"),
    ExpectationSpec("no_repetition_loop", True, "Few word pairs stand twice"),
    ExpectationSpec("no_copy_of_intent", True, "The text adds at least one content word to the intent"),
    ExpectationSpec("no_leaked_example", True, "The text is not taken from an example pair"),
    ExpectationSpec("no_template_marker", True, "No part of the request, such as `Idea:` or `Words:`, stands in the text"),
    ExpectationSpec("no_control_token", True, "No text holds a control token, a control character or an invisible one"),
)
VERSION_EXPECTATIONS = (
    ExpectationSpec("rows_per_task", True, "Every task has at least quality.min_rows_per_task training rows"),
    ExpectationSpec("no_intent_on_two_sides", True, "No intent is in more than one split"),
    ExpectationSpec("reward_spread", True, "The rewards of every task differ by at least quality.min_reward_std"),
    ExpectationSpec("duplicate_rate", True, "At most quality.max_duplicate_rate of a task's rows repeat another row"),
    ExpectationSpec("quarantined_share", True, "At most quality.max_quarantined of a task's rows are set aside"),
    ExpectationSpec("reward_drift", False, "No task's mean reward moved by more than quality.max_drift since the last version"),
)
EXPECTATIONS = ROW_EXPECTATIONS + VERSION_EXPECTATIONS

NO_FAULT = "none"
#: What the teacher echoes when it continues the chat instead of answering.
MARKER = r"(?i)(?:^|[\n.;] *)(?:prompt|idea|words|query|description|assistant|user|system) *:"


def examine(
    frame: pd.DataFrame, tasks: Mapping[str, Task], first: str | None = None, pool: ProcessPoolExecutor | None = None
) -> pd.DataFrame:
    """Add the columns that row expectations look at, and put the rows in the order of their ideas. `frame` has row_key, task, intent,
    intent_key, text, finish_reason.

    `similar` is how much an earlier row of the task says the same: 1 where it has the same content words in any order, else the largest
    Jaccard similarity to an earlier row of the same idea. Of two rows that say the same one stays: that with the smaller value in the
    column `first`, if given; then the smaller key. `pool`: processes that were started for it (`parts.workers`).
    """
    earlier = [*filter(None, [first]), "row_key"]
    frame = in_order(frame, ["intent_key", *earlier])
    banks = {name: _Bank(task) for name, task in tasks.items()}
    texts = frame[["task", "intent", "intent_key", "text"]]
    read = by_parts(texts, "intent_key", partial(_read, banks=banks), cores(), _expectations, pool)  # whose import takes seconds
    told = frame[["task", *earlier]].assign(content=read.content)
    told = told[(told.content != "") & told.duplicated(["task", "content"], keep=False)].sort_values(earlier)
    read.loc[told.index[told.duplicated(["task", "content"])], "similar"] = 1.0
    return frame.assign(**read.drop(columns="content"))


def _read(part: pd.DataFrame, banks: "Mapping[str, _Bank]") -> pd.DataFrame:
    """What can be told of rows from themselves and the others of their idea; all of an idea are there, in their order."""
    texts, counted = part.text.tolist(), rewards.count(part)
    said = [text.lower().split() for text in texts]
    return counted[["words", "added", "repeated", "content"]].assign(
        latin=[_latin_share(text) for text in texts],
        similar=_similarity_to_earlier(part, said),
        looped=[_repeated_bigrams(found) for found in said],
        fault=[characters.fault(text) or NO_FAULT for text in texts],
        copied=[banks[task].copied_share(text) for task, text in zip(part.task.tolist(), texts, strict=True)],
    )


def judge_rows(frame: pd.DataFrame, settings: QualitySettings) -> tuple[pd.DataFrame, list[Expected], list[Quarantined]]:
    """Split examined rows into those to keep and those to set aside, with the verdict on each row expectation."""
    gxe = _expectations()
    mostly = 1 - settings.max_quarantined
    suite = {
        "finished": gxe.ExpectColumnValuesToBeInSet(column="finish_reason", value_set=["stop"], mostly=mostly),
        "length": gxe.ExpectColumnValuesToBeBetween(
            column="words", min_value=settings.min_words, max_value=settings.max_words, mostly=mostly
        ),
        "latin_script": gxe.ExpectColumnValuesToBeBetween(column="latin", min_value=settings.min_latin, mostly=mostly),
        "no_near_duplicate": gxe.ExpectColumnValuesToBeBetween(column="similar", max_value=settings.max_jaccard, mostly=mostly),
        "no_repetition_loop": gxe.ExpectColumnValuesToBeBetween(column="looped", max_value=settings.max_repetition, mostly=mostly),
        "no_copy_of_intent": gxe.ExpectColumnValuesToBeBetween(column="added", min_value=1, mostly=mostly),
        "no_leaked_example": gxe.ExpectColumnValuesToBeBetween(column="copied", max_value=settings.max_copied_example, mostly=mostly),
        "no_template_marker": gxe.ExpectColumnValuesToNotMatchRegex(column="text", regex=MARKER, mostly=mostly),
        "no_control_token": gxe.ExpectColumnValuesToBeInSet(column="fault", value_set=[NO_FAULT], mostly=mostly),
    }
    results = _validate(frame, suite)
    expected, quarantined = [], []
    for spec in ROW_EXPECTATIONS:
        success, result = results[spec.name]
        broken = result.get("unexpected_index_list") or []
        observed = {"rows": len(frame), "broken": len(broken), "share": round(len(broken) / max(len(frame), 1), 4)}
        expected.append(Expected(spec.name, success, spec.blocking, observed, spec.description))
        column = suite[spec.name].column
        rows = frame.loc[broken]
        quarantined += [
            Quarantined(key, spec.name, "" if column == "text" else f"{column} = {value}", text)
            for key, value, text in zip(rows.row_key.tolist(), rows[column].tolist(), rows.text.tolist(), strict=True)
        ]
    bad = {q.item for q in quarantined}
    return frame[~frame.row_key.isin(bad)].reset_index(drop=True), expected, quarantined


def judge_version(
    examined: pd.DataFrame, kept: pd.DataFrame, tasks: Mapping[str, Task], settings: QualitySettings, last: Mapping[str, float]
) -> list[Expected]:
    """The verdicts on what is left. `kept` has task, split, intent_key, reward; `last` is each task's mean reward before."""
    gxe = _expectations()
    summary = pd.DataFrame([_summary(name, examined, kept, last) for name in tasks])
    sides = kept.groupby("intent_key").split.nunique()
    suites = {
        "rows_per_task": (summary, gxe.ExpectColumnMinToBeBetween(column="rows", min_value=settings.min_rows_per_task)),
        "no_intent_on_two_sides": (pd.DataFrame({"sides": sides}), gxe.ExpectColumnMaxToBeBetween(column="sides", max_value=1)),
        "reward_spread": (summary, gxe.ExpectColumnMinToBeBetween(column="reward_std", min_value=settings.min_reward_std)),
        "duplicate_rate": (summary, gxe.ExpectColumnMaxToBeBetween(column="duplicates", max_value=settings.max_duplicate_rate)),
        "quarantined_share": (summary, gxe.ExpectColumnMaxToBeBetween(column="quarantined", max_value=settings.max_quarantined)),
        "reward_drift": (summary, gxe.ExpectColumnMaxToBeBetween(column="drift", max_value=settings.max_drift)),
    }
    shown = {"rows_per_task": "rows", "reward_spread": "reward_std", "duplicate_rate": "duplicates",
             "quarantined_share": "quarantined", "reward_drift": "drift"}  # fmt: skip
    expected = []
    for spec in VERSION_EXPECTATIONS:
        frame, expectation = suites[spec.name]
        success, result = _validate(frame, {spec.name: expectation})[spec.name]
        value = result.get("observed_value")
        observed: dict[str, Any] = {"value": None if value is None else round(float(value), 4)}
        if spec.name in shown:
            observed["tasks"] = {t: round(float(v), 4) for t, v in zip(summary.task, summary[shown[spec.name]], strict=True)}
        expected.append(Expected(spec.name, success, spec.blocking, observed, spec.description))
    return expected


def _summary(task: str, examined: pd.DataFrame, kept: pd.DataFrame, last: Mapping[str, float]) -> dict[str, Any]:
    before, after = examined.loc[examined.task == task, ["similar"]], kept.loc[kept.task == task, ["split", "reward"]]
    mean = float(after.reward.mean()) if len(after) else 0.0
    return {
        "task": task,
        "rows": int((after.split == "train").sum()),
        "reward_std": float(after.reward.std(ddof=0)) if len(after) else 0.0,
        "duplicates": float((before.similar >= 1).mean()) if len(before) else 0.0,
        "quarantined": 1 - len(after) / len(before) if len(before) else 1.0,
        "drift": abs(mean - last[task]) if task in last else 0.0,
    }


def _expectations() -> Any:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # before the import: it sends usage statistics otherwise
    import great_expectations.expectations as gxe

    return gxe


def _validate(frame: pd.DataFrame, suite: Mapping[str, Any]) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Each named expectation's success and result on a frame."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batches = context.data_sources.add_pandas("rows").add_dataframe_asset("rows").add_batch_definition_whole_dataframe("rows")
    results = {}
    for name, expectation in suite.items():
        # its column alone: every batch is hashed, and for a million texts that takes longer than to judge them
        batch = batches.get_batch(batch_parameters={"dataframe": frame[[expectation.column]]})
        done = batch.validate(expectation, result_format={"result_format": "COMPLETE"})
        if done.exception_info and done.exception_info.get("raised_exception"):
            raise RuntimeError(f"expectation {name} could not be evaluated: {done.exception_info['exception_message']}")
        results[name] = (bool(done.success), dict(done.result))
    return results


def _latin_share(text: str) -> float:
    if text.isascii():
        return 1.0 if any(c.isalpha() for c in text) else 0.0
    letters = [c for c in text if c.isalpha()]
    return round(sum("LATIN" in unicodedata.name(c, "") for c in letters) / len(letters), 4) if letters else 0.0


def _repeated_bigrams(found: list[str]) -> float:
    if len(found) - len(set(found)) < 2:
        return 0.0  # a pair that stands twice is two words that do
    return round(1 - len(set(itertools.pairwise(found))) / (len(found) - 1), 4)


class _Bank:
    """The example pairs of a task, by their word trigrams."""

    def __init__(self, task: Task) -> None:
        self._examples = [_trigrams(_words(example.text)) for example in task.examples]
        self._any = set().union(*self._examples)

    def copied_share(self, text: str) -> float:
        """The largest share of the text's word trigrams that stand in one example pair."""
        words = _words(text)
        if len(words) > 2 and self._any.isdisjoint(zip(words, words[1:], words[2:], strict=False)):
            return 0.0  # nearly always, and told without a set
        found = _trigrams(words)
        return round(max(len(found & example) for example in self._examples) / len(found), 4)


_WORD = re.compile(r"\w+")
_WORD_BYTES = bytes(code if code < 128 and _WORD.match(chr(code)) else ord(" ") for code in range(256))


def _words(text: str) -> list[str]:
    lower = text.lower()
    # a third of the time of the regular expression
    return lower.encode().translate(_WORD_BYTES).decode().split() if lower.isascii() else _WORD.findall(lower)


def _trigrams(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}


def _similarity_to_earlier(frame: pd.DataFrame, said: list[list[str]]) -> "np.ndarray[Any, Any]":
    """For each row, the largest Jaccard similarity to an earlier row of its task and idea; the rows of an idea follow each other.
    `said` is the words of each text."""
    similar = np.zeros(len(frame))
    idea, earlier = None, dict[str, list[set[str]]]()
    for n, (task, key, text) in enumerate(zip(frame.task.tolist(), frame.intent_key.tolist(), frame.text.tolist(), strict=True)):
        if key != idea:
            idea, earlier = key, {}
        bag = set(said[n] if text.isascii() else normalise(text).split())
        others = earlier.setdefault(task, [])
        if bag and others:
            similar[n] = round(max([_jaccard(bag, other) for other in others]), 4)
        others.append(bag)
    return similar


def _jaccard(a: set[str], b: set[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
