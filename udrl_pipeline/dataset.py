"""The labelled dataset: score, label, judge, bin, and publish a version whole or not at all."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline import corpus, quality, rewards
from udrl_pipeline.errors import IntentsError, QualityError
from udrl_pipeline.intents.asset import read_intents
from udrl_pipeline.parts import workers
from udrl_pipeline.store.names import DATASET
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Expected, Version, Workspace
from udrl_pipeline.usage import cores
from udrl_pipeline.versioning import canonical, canonical_text, code_version, content_hash, rows_hash

logger = logging.getLogger(__name__)

ASSET = DATASET
SOURCES = ("dataset.py", "rewards.py", "quality.py", "characters.py")
EXPECTATIONS = quality.EXPECTATIONS
COLUMNS = [
    "row_key", "task", "intent", "intent_key", "split", "text", "words", "tokens", "asked_words", "source", "run_id",
    "relevance", "fidelity", "gain", "repetition", "reward", "quality",
]  # fmt: skip

#: The columns that the content hash counts.
HASHED = ["row_key", "task", "intent_key", "split", "text", "relevance", "fidelity", "gain", "repetition", "reward", "quality"]


def build(workspace: Workspace) -> Version:
    """Label the current corpus. A verdict FAIL publishes nothing: the last good version stays current.

    Raises:
        ModelError: The scorer cannot be had.
        CorruptArtifact: A parent's files are not what its manifest says.
        IntentsError: The corpus was not made from the intents that are current.
    """
    started, settings = time.monotonic(), workspace.settings
    code = code_version(SOURCES)
    params = {
        "rewards": settings.rewards.model_dump(mode="json", exclude={"scorer", "cluster"}),
        "scorer": rewards.scorer_version(settings),
        "quality": settings.quality.model_dump(mode="json"),
        "quality_bins": settings.commands.quality_bins,
    }
    parents = workspace.parents(corpus.ASSET, "intents")
    fingerprint = workspace.fingerprint(ASSET, code, params, parents)
    with workspace.lock(ASSET):
        if made := workspace.reuse(ASSET, fingerprint):
            return made
        _refuse_other_intents(workspace, parents)
        with workers(_rows_of(workspace, parents), cores()) as pool:
            rows, scored = rewards.score_missing(workspace, corpus.read_rows(workspace, parents[corpus.ASSET]))
            rows["split"] = rows.intent_key.map({i.key: i.split for i in read_intents(workspace, parents["intents"])})
            examined = rewards.label(quality.examine(rows, workspace.tasks, pool=pool), settings.rewards)
        kept, expected, quarantined = quality.judge_rows(examined, settings.quality)
        logger.info("kept %d of %d rows; %s", len(kept), len(examined), _told(expected))
        last = workspace.current(ASSET)
        means = last.facts["mean_reward"] if last else {}
        expected += quality.judge_version(examined, kept, workspace.tasks, settings.quality, means)
        edges = quality_edges(kept, settings.commands.quality_bins)
        kept = kept.assign(quality=quality_bins(kept, edges))[COLUMNS]
        made = workspace.record(
            ASSET,
            version=content_of(kept, edges),
            fingerprint=fingerprint,
            code_version=code,
            rows=len(kept),
            params=params,
            parents=parents,
            facts=facts_of(kept, edges) | {"quarantined": examined.row_key.nunique() - len(kept), "candidates": len(examined)},
            expectations=expected,
            quarantined=quarantined,
            write=lambda folder: write_table(kept, folder / "rows.parquet"),
            started=started,
            work={"scored_rows": scored},
        )
        return made


def _rows_of(workspace: Workspace, parents: Mapping[str, str]) -> int:
    made = workspace.find(corpus.ASSET, parents[corpus.ASSET])
    return made.rows if made else 0


def _refuse_other_intents(workspace: Workspace, parents: Mapping[str, str]) -> None:
    """Rows of ideas that are no longer there would have no split; a run that ended in the corpus leaves such a pair."""
    made = workspace.find(corpus.ASSET, parents[corpus.ASSET])
    if made and made.parents.get("intents", parents["intents"]) != parents["intents"]:
        raise IntentsError(
            f"teacher_corpus {made.version} was made from intents {made.parents['intents']}, and {parents['intents']} are current",
            where=ASSET,
            remedy="run `udrl run --select teacher_corpus` (the job `refresh_corpus`) first",
        )


def _told(expected: list[Expected]) -> str:
    """How many rows broke each expectation, the most broken first."""
    broken = {e.name: e.observed["broken"] for e in expected}
    return ", ".join(f"{n} {name}" for name, n in sorted(broken.items(), key=lambda item: -item[1]) if n) or "none broke an expectation"


def quality_edges(frame: pd.DataFrame, bins: int) -> dict[str, list[float]]:
    """The inner bin edges of each task: quantiles of the reward over its training rows (bins - 1 numbers)."""
    train = frame.loc[frame.split == "train", ["task", "reward"]]
    steps = np.linspace(0, 1, bins + 1)[1:-1]
    return {str(task): [round(float(e), 4) for e in np.quantile(rows.reward, steps)] for task, rows in train.groupby("task")}


def quality_bins(frame: pd.DataFrame, edges: dict[str, list[float]]) -> "np.ndarray[Any, Any]":
    """The quality (1 to K) of each row: in which of its task's bins its reward lies."""
    qualities = np.ones(len(frame), dtype=int)
    for task, of_task in edges.items():
        rows = (frame.task == task).to_numpy()
        qualities[rows] = 1 + np.searchsorted(of_task, frame.reward.to_numpy()[rows], side="right")
    return qualities


def content_of(frame: pd.DataFrame, edges: dict[str, list[float]]) -> str:
    """The content hash of a dataset: rows with their texts, labels, splits and bins, in any order, and the bin edges."""
    rows = zip(*(_canonical_values(frame[column]) for column in HASHED), strict=True)
    return content_hash({"rows": rows_hash(f"[{','.join(row)}]" for row in rows), "edges": edges})


def _canonical_values(column: pd.Series) -> list[str]:
    """`canonical` of every value; a number that stands in a million rows is written once."""
    if isinstance(column.dtype, pd.StringDtype):
        return [canonical_text(text) for text in column.tolist()]
    values = column.to_numpy()
    floats = values.dtype == np.float64
    # by their bits: 0.0 and -0.0 are equal, but not written the same
    codes, distinct = pd.factorize(values.view(np.int64) if floats else values, use_na_sentinel=False)
    written = [canonical(value) for value in (distinct.view(np.float64) if floats else distinct).tolist()]
    return np.array(written, dtype=object)[codes].tolist()


def facts_of(kept: pd.DataFrame, edges: dict[str, list[float]]) -> dict[str, Any]:
    def by_task(column: str) -> dict[str, float]:
        return {str(k): round(float(v), 4) for k, v in kept.groupby("task")[column].mean().items()}

    counts = kept.groupby(["task", "split"]).size()
    return {
        "edges": edges,
        "rows": {f"{task}/{split}": int(n) for (task, split), n in counts.items()},
        "mean_reward": by_task("reward"),
        "mean_relevance": by_task("relevance"),
        "mean_words": by_task("words"),
    }


def read_dataset(workspace: Workspace, version: str) -> pd.DataFrame:
    """The rows of a dataset version, checked against its manifest, for anybody who trains or evaluates.

    Raises:
        QualityError: The version did not pass its blocking expectations, or does not exist.
        CorruptArtifact: Its files are not what its manifest says.
    """
    found = workspace.find(ASSET, version)
    if found is None or found.verdict != "PASS":
        raise QualityError(
            f"version {version} " + ("does not exist" if found is None else "did not pass its expectations"),
            where=ASSET,
            remedy="`udrl audit versions labeled_dataset` lists the versions; mend what the failed checks name and run again",
        )
    workspace.check_files(ASSET, version)
    return pd.read_parquet(workspace.version_folder(ASSET, version) / "rows.parquet")
