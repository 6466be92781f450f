"""What `--quality best` means: the commanded quality and its guidance, swept on validation intents and kept with the student.

Shipping the highest command is wrong where results fall above what the data holds, so it is measured; the test split is read
only after this choice.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.rewards import Scorer, label
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.generation import Student


@dataclass(frozen=True, slots=True)
class Tried:
    """What one command achieved: the reward of each text, and the spread (mean cosine distance of two texts)."""

    rewards: Any  # [texts]
    spread: float

    @property
    def reward(self) -> float:
        return round(float(self.rewards.mean()), 4)

    def falls_behind(self, other: "Tried") -> bool:
        """Whether it earns less than another on the same intents, by more than one standard error of the paired difference."""
        less = other.rewards - self.rewards
        return bool(less.mean() > less.std(ddof=1) / math.sqrt(len(less))) if len(less) > 1 else bool(less.mean() > 0)


def choose_best(student: Student, validation: pd.DataFrame, settings: Settings) -> tuple[CommandSpace, dict[str, Any]]:
    """Choose guidance, then quality, per task.

    A guidance counts if its texts at the highest quality spread at least `evaluation.min_diversity` times as far as the teacher's
    on the same intents (1, if none does). Of these the strongest is taken whose mean reward is within one standard error of the
    highest (the one-standard-error rule: Hastie et al., The Elements of Statistical Learning, section 7.10): where rewards are as good
    as equal, the stronger one parts the commands further. With it the quality with the highest mean reward is `best`.

    Returns:
        The command space with `best` and `guidance`, and {task: {guidance: {weight: {reward, spread}}, quality: {level: ...},
        teacher_spread: float}}.
    """
    space, scorer = student.space, Scorer(settings)
    best, guidance, found = dict(space.best), dict(space.guidance), {}
    for task in space.tasks:
        rows = validation[validation.task == task].sort_values(["intent", "row_key"]).drop_duplicates("intent")
        rows = rows.head(settings.evaluation.sweep_intents)
        if rows.empty:
            continue
        intents = rows.intent.tolist()
        teacher_spread = _spread(scorer.embed(rows.text.tolist()))
        highest = space.quality_bins
        pressed = {w: _try(student, task, intents, highest, w, scorer, settings) for w in settings.evaluation.guidance}
        diverse = {w: t for w, t in pressed.items() if t.spread >= settings.evaluation.min_diversity * teacher_spread}
        leader = max(diverse.values(), key=lambda tried: tried.reward, default=None)
        guidance[task] = max((w for w, tried in diverse.items() if leader and not tried.falls_behind(leader)), default=1.0)
        levels = {q: _try(student, task, intents, q, guidance[task], scorer, settings) for q in range(1, highest)}
        levels[highest] = pressed.get(guidance[task]) or _try(student, task, intents, highest, 1.0, scorer, settings)
        best[task] = max(levels, key=lambda q: levels[q].reward)
        found[task] = {
            "guidance": {f"{w:g}": {"reward": t.reward, "spread": t.spread} for w, t in pressed.items()},
            "quality": {str(q): {"reward": t.reward, "spread": t.spread} for q, t in levels.items()},
            "teacher_spread": teacher_spread,
        }
    return space.with_best(best, guidance), found


def _try(student: Student, task: str, intents: list[str], quality: int, weight: float, scorer: Scorer, settings: Settings) -> Tried:
    commands = [Command(task, intent, quality=quality) for intent in intents]
    generated = student.generate(commands, guidance=weight, **settings.evaluation.sampling)
    texts = [made.text for made in generated]
    rows = pd.DataFrame({"intent": intents, "text": texts, "relevance": scorer.relevance(intents, texts)})
    return Tried(label(rows, settings.rewards).reward.to_numpy(dtype=float), _spread(scorer.embed(texts)))


def _spread(vectors: Any) -> float:
    """Mean cosine distance of two of the texts; vectors of shape [texts, dimensions], of length 1."""
    count = len(vectors)
    if count < 2:
        return 0.0
    total = np.asarray(vectors, dtype=np.float64).sum(axis=0)
    return round(float(1 - (total @ total - count) / (count * (count - 1))), 4)
