"""One per cent more ideas in a corpus of 20,000 rows: what is written, scored and made again, beside a run from nothing.

    .venv/bin/python benchmarks/incremental.py [--rows 20000] [--share 0.01] [--teacher transformers|vllm|fake] [--out FILE.json]

The first rows are the package's recorded ones, so the first run imports text and scores instead of making them; what they would have cost
is extrapolated, and says so. The new ideas are built-in ones on a postcard, of which no row is recorded. Prints a table; writes JSON,
and the table beside it as Markdown.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_pipeline import corpus, dataset, rewards
from udrl_pipeline import settings as settings_module
from udrl_pipeline.allocator import ENVIRONMENT
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.intents import builtin
from udrl_pipeline.recorded import recorded_rows
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.teacher import Reply, Request

#: How fast vLLM writes rows of the default teacher where it has the machine to itself.
THROUGHPUT = Path(__file__).parent.parent / "docs/results/teacher.json"
PARAMS = Path(__file__).parent.parent / "params.yaml"
STEPS = {"intents": intents.build, "teacher_corpus": corpus.build, "labeled_dataset": dataset.build}


class Fake:
    """Answers at once, for a trial of this benchmark."""

    name = version = "fake"

    def generate(self, requests: list[Request]) -> list[Reply]:
        ideas = [request.messages[-1]["content"].split("\n")[0].removeprefix("Idea: ") for request in requests]
        return [Reply(f"{idea}, copper lantern light number {n}, wide river bank", 12, "stop") for n, idea in enumerate(ideas)]

    def close(self) -> None:
        pass


def make(settings: Settings) -> dict[str, dict[str, Any]]:
    """Bring intents, corpus and dataset up to date; seconds and work of each step."""
    workspace, done = Workspace(settings), {}
    workspace.begin_run()
    scoring = Stopwatch(rewards.Scorer)
    for asset, build in STEPS.items():
        began = time.perf_counter()
        made: Version = build(workspace)
        found = {"seconds": round(time.perf_counter() - began, 2), "rows": made.rows, "version": made.version, "made": made.made_now}
        done[asset] = found | ({"imported": made.facts.get("imported", 0)} if made.made_now and asset == corpus.ASSET else {}) | made.work
    done["labeled_dataset"]["scoring_seconds"] = round(scoring.stop(), 2)
    return done


class Stopwatch:
    """Adds up the time that the scorer takes, but for loading it."""

    def __init__(self, scorer: type[rewards.Scorer]) -> None:
        self._scorer, self._relevance, self._seconds = scorer, scorer.relevance, 0.0

        def timed(scorer: rewards.Scorer, *texts: Any) -> Any:
            scorer.embed(["a text"])  # the model is loaded before the watch starts
            began = time.perf_counter()
            relevance = self._relevance(scorer, *texts)
            self._seconds += time.perf_counter() - began
            return relevance

        scorer.relevance = timed  # type: ignore[method-assign]

    def stop(self) -> float:
        self._scorer.relevance = self._relevance  # type: ignore[method-assign]
        return self._seconds


def measure(rows: int, share: float, teacher: str, folder: Path) -> dict[str, Any]:
    if teacher == "fake":
        corpus.open_engine = lambda *_: Fake()  # type: ignore[assignment]
    base = settings_module.load(PARAMS, preset="")
    per_idea = len(base.tasks.names) * base.teacher.samples
    recorded = set(pd.concat([pd.read_parquet(file, columns=["intent_key"]) for file in recorded_rows()]).intent_key)
    everything = builtin(base.intents.model_copy(update={"builtin": 1_000_000}))
    # as many of the first ideas as make so many recorded rows: those that are held back from the recording are left out
    ideas = [idea for idea in everything if idea.casefold() in recorded][: -(-rows // per_idea)]
    added = [f"{idea} on a postcard" for idea in everything[-max(1, round(share * len(ideas))) :]]
    assert recorded.isdisjoint(idea.casefold() for idea in added)

    def settings(*lists: list[str]) -> Settings:
        for n, lines in enumerate(lists):
            (folder / f"ideas{n}.csv").write_text("\n".join(["intent", *lines, ""]), encoding="utf-8")
        overrides: dict[str, Any] = {"artifacts": str(folder / "artifacts"), "intents.builtin": 0}
        overrides |= {"intents.sources": [str(folder / f"ideas{n}.csv") for n in range(len(lists))]}
        overrides |= {"teacher.engine": teacher} if teacher != "fake" else {}
        return settings_module.load(PARAMS, preset="", overrides=overrides)

    runs = {"first": make(settings(ideas)), "more ideas": make(settings(ideas, added)), "unchanged": make(settings(ideas, added))}
    return {
        "teacher": teacher, "cores": os.cpu_count(), "ideas": len(ideas), "ideas_added": len(added), "runs": runs,
        "load": round(os.getloadavg()[0], 1), "extrapolated": extrapolated(runs),
    }  # fmt: skip


def extrapolated(runs: dict[str, Any]) -> dict[str, float]:
    """What the rows of the first run would have cost: written at the rate of teacher_throughput.py, scored at that of this run."""
    rows, scored = runs["first"]["teacher_corpus"]["rows"], runs["more ideas"]["labeled_dataset"]
    rate = json.loads(THROUGHPUT.read_text(encoding="utf-8"))["asset"]["rows_per_s"]
    return {"teacher_seconds": round(rows / rate), "scoring_seconds": round(rows * scored["scoring_seconds"] / scored["scored_rows"])}


def page(result: dict[str, Any]) -> str:
    runs = result["runs"]
    first, more, same = (runs[name] for name in ("first", "more ideas", "unchanged"))

    def row(name: str, asset: str, key: str, nothing: str = "0") -> str:
        return (
            f"| {name} | " + " | ".join(f"{run[asset][key]:,.6g}" if key in run[asset] else nothing for run in (first, more, same)) + " |"
        )

    cost, corpus_rows = result["extrapolated"], first["teacher_corpus"]["rows"]
    wrote, scored = more["teacher_corpus"], more["labeled_dataset"]
    who = "a fake teacher" if result["teacher"] == "fake" else f"the real teacher (engine {result['teacher']})"
    lines = [
        "# One per cent more ideas",
        "",
        f"`benchmarks/incremental.py`: {result['ideas']:,} ideas, {corpus_rows:,} rows; then {result['ideas_added']} ideas more,",
        f"written by {who}; then nothing new.",
        f"{result['cores']} CPU cores, for which {result['load']:.0f} processes competed.",
        "The rows of the first run are the recorded ones, imported with their scores. What they would have cost is extrapolated: written",
        "at the rate of docs/results/teacher.json, scored at that of this run.",
        "",
        "| | from nothing | with the new ideas | unchanged |",
        "|---|---:|---:|---:|",
        row("rows of the corpus", "teacher_corpus", "rows"),
        f"| rows asked of the teacher | {corpus_rows:,} (imported) | {wrote['teacher_rows']:,} | 0 |",
        f"| rows scored | {corpus_rows:,} (imported) | {scored['scored_rows']:,} | 0 |",
        row("intents, seconds", "intents", "seconds"),
        row("teacher_corpus, seconds", "teacher_corpus", "seconds"),
        f"| of it: teacher, seconds | {cost['teacher_seconds']:,} (extrapolated) | {wrote['teacher_seconds']:.1f} | 0 |",
        row("labeled_dataset, seconds", "labeled_dataset", "seconds"),
        f"| of it: scoring, seconds | {cost['scoring_seconds']:,} (extrapolated) | {scored['scoring_seconds']:.1f} | 0 |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--teacher", choices=("transformers", "vllm", "fake"), default="transformers")
    parser.add_argument("--out", type=Path, default=Path("docs/results/incremental.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.rows, arguments.share, arguments.teacher, Path(folder))
    print(page(result))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    if ENVIRONMENT.items() <= os.environ.items():
        main()
    else:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
