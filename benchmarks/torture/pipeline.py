"""The pipeline that is killed: all six assets, a real scorer, a real Trainer, few rows, and a teacher that needs no model."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from udrl_pipeline import corpus, dataset, settings
from udrl_pipeline.evaluation import report
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import export, training
from udrl_pipeline.teacher import Reply, Request

REPOSITORY = Path(__file__).parents[2]
#: How its params.yaml differs from the project's.
SMALL: dict[str, Any] = {
    "intents": {"builtin": 60, "validation": 0.15, "test": 0.2},
    "tasks": {"names": ["image"]},
    "teacher": {
        "engine": "server", "model": {"sha256": None}, "recorded": False, "samples": 2, "asked_words": [7, 10], "chunk_rows": 24,
    },
    "quality": {"min_rows_per_task": 5},
    "commands": {"words": [6, 16], "quality_bins": 2},
    "student": {
        "init_from": "scratch", "scratch": {"layers": 2, "width": 32, "heads": 2, "vocabulary": 600},
        "batch_rows": 2, "epochs": 2.2, "save_every": 5,
    },
    # a student that has learned next to nothing: what int8 makes of its texts is chance
    "export": {"max_reward_loss": 2, "max_length_change": 1},
    "evaluation": {
        "intents": 3, "sweep_intents": 2, "guidance": [1], "quality_intents": 2, "lengths": [10], "length_intents": 2, "judge_rows": 2,
        "bootstrap": 100, "latency_repeats": 2, "latency_tokens": 4, "latency_batch": 2,
    },
}  # fmt: skip
STEPS: dict[str, Callable[[Workspace], Version]] = {
    intents.ASSET: intents.build,
    corpus.ASSET: corpus.build,
    dataset.ASSET: dataset.build,
    "student/udrl": lambda workspace: training.build(workspace, "udrl"),
    report.ASSET: report.build,
    "student_export/udrl": lambda workspace: export.build(workspace, "udrl"),
}


class Teacher:
    """An engine that answers at once: as many words as asked, made up from the request alone."""

    name, version = "made up", "1"

    def generate(self, requests: list[Request]) -> list[Reply]:
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        pass

    @staticmethod
    def _answer(request: Request) -> Reply:
        asked = request.messages[-1]["content"]
        idea = asked.split("\n")[0].removeprefix("Idea: ")
        number = re.search(r"Words: (\d+)", asked)
        count = max(int(number[1]) if number else 12, len(idea.split()) + 4)
        digest = hashlib.shake_256(json.dumps(request.messages).encode()).digest(3 * count)
        words = ["".join("bdfklmnprstvz"[n % 13] + "aeiou"[n % 5] for n in digest[i : i + 3]) for i in range(0, 3 * count, 3)]
        return Reply(" ".join([f"{idea.capitalize()},", *words[len(idea.split()) :]]), 2 * count, "stop")


def open_workspace(artifacts: Path) -> Workspace:
    return Workspace(settings.load(REPOSITORY / "params.yaml", preset="", overrides=SMALL | {"artifacts": str(artifacts)}))


def run(
    artifacts: Path, tell: Callable[[str], None], steps: Sequence[str] = tuple(STEPS), before: Callable[[str], None] = lambda step: None
) -> None:
    """Run the steps, telling where each begins and ends; `before` is called with each step's name."""
    corpus.open_engine = lambda *_, **__: Teacher()  # type: ignore[assignment]
    workspace = open_workspace(artifacts)
    workspace.begin_run()
    for step in steps:
        before(step)
        tell(f"begin {step}")
        STEPS[step](workspace)
        tell(f"end {step}")
