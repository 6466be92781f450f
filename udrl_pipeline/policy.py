"""Is it time to train again? By what is wanted now and what the current student was trained on; the ledger is read, nothing is made.

Without anything new the answer is no. Otherwise one of these has to hold (`schedule` in params.yaml): there is no student,
or it has learned from what was forgotten; a setting or the code behind it has changed; it has not seen enough of the rows
that are wanted now; the rewards have drifted; it is old.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from udrl_pipeline import corpus, dataset
from udrl_pipeline.audit.pending import News, all_news
from udrl_pipeline.intents import asset as intents_asset
from udrl_pipeline.intents import collect
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.recipes import RECIPES

#: Settings of these two change which rows are wanted, and rows are counted.
COUNTED = (intents_asset.ASSET, corpus.ASSET)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to train, by which rule (`nothing new` and `not yet` say no), and the figures behind it."""

    train: bool
    rule: str
    reason: str


def decide(workspace: Workspace, builds: Sequence[Callable[[Workspace], Version]], now: datetime | None = None) -> Decision:
    """Whether a run of these builds is due.

    Raises:
        UdrlError: An input is broken, as it would be in the run.
    """
    rules, news = workspace.settings.schedule, list(all_news(workspace, builds))
    student = workspace.current(training.asset_name(next(iter(RECIPES))))
    if not news:
        return Decision(False, "nothing new", "nothing is new")
    if student is None or news[0].kind == "missing":
        return Decision(True, "missing", _told(news[0]))
    if training.has_learned_forgotten(workspace, student):
        return Decision(True, "forgotten", f"{_name(student)} has learned from rows that were forgotten since")
    changed = [found for found in news if found.kind in ("code", "settings") and found.asset not in COUNTED]
    if changed and rules.changes:
        return Decision(True, "changes", _told(changed[0]))
    rows, drift, age = unseen_rows(workspace, student), reward_drift(workspace, student), (now or datetime.now(UTC)) - student.created_at
    days = age.total_seconds() / 86400
    measured = [
        (rows >= rules.new_rows, "new rows", f"{rows:,} rows that {_name(student)} has not been trained on, of {rules.new_rows:,}"),
        (
            drift.most >= rules.drift,
            "drift",
            f"mean reward of {drift.task} moved by {drift.most:.3f}, of {rules.drift:g}" if drift.task else "mean rewards not moved",
        ),
        (days >= rules.age_days, "age", f"{days:.1f} days old, of {rules.age_days:g}"),
    ]
    for holds, rule, told in measured:
        if holds:
            return Decision(True, rule, told)
    return Decision(False, "not yet", f"{_told(news[0])}, but not enough: {'; '.join(told for _, _, told in measured)}")


def unseen_rows(workspace: Workspace, student: Version) -> int:
    """How many of the rows that are wanted now were not in the corpus that a student comes from, nor refused by its teacher."""
    labelled = workspace.find(dataset.ASSET, student.parents.get(dataset.ASSET, ""))
    version = labelled.parents[corpus.ASSET] if labelled else ""
    file = workspace.version_folder(corpus.ASSET, version) / "rows.parquet"
    known = set(pd.read_parquet(file, columns=["row_key"]).row_key) if version and file.exists() else set()
    with workspace.database.reader() as connection:
        refused = connection.execute("SELECT item FROM quarantine WHERE asset = ? AND version = ?", [corpus.ASSET, version]).fetchall()
    forgotten, settings = workspace.forgotten(), workspace.settings
    intents = collect(settings).without(forgotten).kept
    planned, _ = corpus.divide(corpus.plan(intents, workspace.tasks, settings, corpus.source_digest(settings)), forgotten.rows)
    return len({row.row_key for row in planned} - known - {key for (key,) in refused})


@dataclass(frozen=True, slots=True)
class Drift:
    """The task whose mean reward moved furthest, and how far; no task where none moved."""

    task: str
    most: float


def reward_drift(workspace: Workspace, student: Version) -> Drift:
    """From the dataset that a student was trained on to the current one. A task that only one of them has is no drift: its rows are new."""
    before, now = workspace.find(dataset.ASSET, student.parents.get(dataset.ASSET, "")), workspace.current(dataset.ASSET)
    if before is None or now is None:
        return Drift("", 0.0)
    means, new = before.facts["mean_reward"], now.facts["mean_reward"]
    moved = {task: abs(new[task] - means[task]) for task in sorted(means.keys() & new.keys())}
    task = max(moved, key=lambda name: moved[name], default="")
    return Drift(task, round(moved[task], 4)) if task and moved[task] else Drift("", 0.0)


def _told(news: News) -> str:
    return f"{news.asset}: {news.reason}"


def _name(version: Version) -> str:
    return f"{version.asset} {version.version}"
