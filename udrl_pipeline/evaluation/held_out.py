"""The held-out intents that everything is measured on, and what the teacher answered to them.

Only intents of the test split, drawn by their own hash, and only those the teacher has an answer to: every system is asked for
the same intents. The teacher's answers are the rows of the corpus *before* any expectation set bad ones aside, because nothing
sets aside a student's bad texts either; the kept ones are a system of their own (`teacher_kept`). One answer per intent and task,
since diversity depends on how many texts there are. A text that was cut at its limit of tokens counts in every figure as it
stands; `finished` says how many were not.
"""

from dataclasses import dataclass

import pandas as pd

from udrl_pipeline import corpus, dataset
from udrl_pipeline.errors import UdrlError
from udrl_pipeline.intents.asset import read_intents
from udrl_pipeline.rewards import words
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.versioning import unit_draw


@dataclass(frozen=True)
class HeldOut:
    """Teacher's answers to held-out intents.

    Attributes:
        rows: One row per intent and task: task, intent, intent_key, text, words, tokens, finished, asked_words, kept; in the order
            in which intents are drawn, so that the first n of a task are n random ones.
        all_rows: The same columns for every test intent and sample, of which `rows` are a part.
    """

    rows: pd.DataFrame
    all_rows: pd.DataFrame

    def first(self, task: str, count: int) -> pd.DataFrame:
        return self.rows[self.rows.task == task].head(count)


def held_out(workspace: Workspace, parents: dict[str, str], count: int) -> HeldOut:
    """The first `count` test intents of each task, with the teacher's answers.

    Raises:
        UdrlError: The teacher has no answer to any test intent.
        CorruptArtifact, QualityError: A parent is damaged, or its verdict was not PASS.
    """
    made = workspace.find(corpus.ASSET, parents[corpus.ASSET])
    assert made is not None, f"{parents[corpus.ASSET]} was read from the ledger"
    splits = {intent.key: intent.split for intent in read_intents(workspace, made.parents["intents"])}
    rows = corpus.read_rows(workspace, made.version)
    rows = rows[(rows.intent_key.map(splits) == "test") & (rows.source == made.params["source"])]
    kept = set(dataset.read_dataset(workspace, parents[dataset.ASSET]).row_key)
    return choose(rows.assign(kept=rows.row_key.isin(kept)), list(workspace.tasks), count)


def choose(rows: pd.DataFrame, tasks: list[str], count: int) -> HeldOut:
    """The first sample of the first `count` intents of each task, in the order of the intents' own draw."""
    rows = rows.assign(
        finished=rows.finish_reason == "stop",
        words=rows.text.map(words),
        draw=[unit_draw("held out", key) for key in rows.intent_key],
    ).sort_values(["draw", "intent_key", "task", "sample"], ignore_index=True)
    first = rows[rows["sample"] == 0]
    chosen = pd.concat([first[first.task == task].head(count) for task in tasks], ignore_index=True)
    if chosen.empty:
        raise UdrlError(
            "the teacher has answered no intent of the test split",
            where="params.yaml: intents.test",
            remedy="raise intents.test or add intents",
        )
    columns = ["task", "intent", "intent_key", "text", "words", "tokens", "finished", "asked_words", "kept"]
    return HeldOut(chosen[columns], rows[columns])
