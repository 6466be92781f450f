"""What makes a command work: start, rows, parameters, bins, order, dropout, quantiles, reward, length tokens, seeds. One line a student.

    .venv/bin/python benchmarks/control.py [--steps 200] [--only rows] [--out FILE]        (after `make run`)

Every line trains a fresh udrl student on the current dataset for the same number of steps, but for what the line names, and asks
it for test intents at every quality and at five lengths. Lines that FILE holds already are not trained again, so a killed study
resumes. Writes FILE (JSON) after every line, and at the end FILE.md with the tables and FILE.svg with the plots.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline import allocator, dataset, precision, rewards
from udrl_pipeline import settings as settings_module
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.evaluation.calibration import spearman
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.initialise import initialise
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.student.sequences import training_order
from udrl_pipeline.versioning import canonical, content_hash, unit_draw

SHOWN = ("validation loss", "Spearman", "rises", "reward", "relevance", "spread", "length error", "free length error", "free length rank")
LENGTHS = (8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Line:
    """One student of the study: how it differs from params.yaml.

    Attributes:
        rows: How many training rows it may see, those of whole intents; None for all.
        tasks: Its tasks; of fewer tasks it takes fewer steps, so that a row is seen as often.
        one_scale: Quality bins cut over all tasks at once instead of within each.
    """

    group: str
    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    rows: int | None = None
    tasks: tuple[str, ...] | None = None
    one_scale: bool = False


#: Every line starts from the teacher's layers: the recorded student has seen all rows already.
BASE: dict[str, Any] = {"student.init_from": "pruned-teacher", "student.learning_rate": 1.2e-3}
LINES = [
    Line("start", "recorded student", {"student.init_from": "recorded", "student.learning_rate": 4e-4}),
    *(Line("seed", str(seed), {"student.seed": seed}) for seed in (11, 12, 13)),
    *(Line("rows", f"{rows:,}", rows=rows) for rows in (1_000, 3_000, 10_000)),
    Line("layers", "4", {"student.prune.layers": [0, 1, 28, 29]}),
    Line("layers", "6", {"student.prune.layers": [0, 1, 11, 24, 28, 29]}),
    Line("layers", "12", {"student.prune.layers": [0, 1, 2, 5, 8, 11, 17, 20, 22, 24, 28, 29]}),
    *(Line("bins", str(bins), {"commands.quality_bins": bins}) for bins in (2, 10)),
    Line("order", "length and quality first", {"commands.order": "first"}),
    Line("dropout", "none", {"commands.dropout": 0.0}),
    Line("quantiles", "over all tasks", one_scale=True),
    Line("reward", "relevance alone", {"rewards.weights.gain": 0.0, "rewards.weights.repetition": 0.0, "rewards.fidelity_cap": 1.0}),
    Line("reward", "gain weighs 0.8", {"rewards.weights.gain": 0.8}),
    Line("reward", "no hinge on fidelity", {"rewards.fidelity_cap": 1.0}),
    *(Line("length tokens", f"one for {n} lengths", {"commands.words_per_token": n}) for n in (4, 10)),
    *(Line("one task", task, tasks=(task,)) for task in ("image", "template", "search")),
]


@dataclass(frozen=True)
class Bench:
    """What all lines share."""

    rows: pd.DataFrame
    base: Settings
    scorer: rewards.Scorer
    steps: int
    intents: int
    guidance: float


def labelled(rows: pd.DataFrame, line: Line, settings: Settings) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """The rows of a line with its reward and its bins."""
    if line.tasks:
        rows = rows[rows.task.isin(line.tasks)]
    if line.rows:
        keys = sorted(rows[rows.split == "train"].intent_key.unique(), key=lambda key: unit_draw("study", key))
        counts = rows[rows.split == "train"].groupby("intent_key").size().loc[keys].cumsum()
        rows = rows[(rows.split != "train") | rows.intent_key.isin(counts[counts <= line.rows].index)]
    rows = rewards.label(rows, settings.rewards)
    bins = settings.commands.quality_bins
    edges = dataset.quality_edges(rows.assign(task="all") if line.one_scale else rows, bins)
    edges = dict.fromkeys(sorted(rows.task.unique()), edges["all"]) if line.one_scale else edges
    return rows.assign(quality=dataset.quality_bins(rows, edges)), edges


def measure(line: Line, bench: Bench) -> dict[str, Any]:
    """Train the student of a line and ask it."""
    options = settings_module.load(overrides=BASE | line.overrides)
    rows, edges = labelled(bench.rows, line, options)
    train, validation = rows[rows.split == "train"], rows[rows.split == "validation"]
    space, student = CommandSpace.measure(train, edges, options.commands), options.student
    start = initialise(options, space, sorted({*train.intent, *train.text}))
    steps = round(bench.steps * (len(line.tasks) / bench.rows.task.nunique() if line.tasks else 1))
    sequences = training_order(
        train, space, RECIPES["udrl"], start.tokenizer, student, passes=steps * student.batch_rows / len(train),
        dropout=options.commands.dropout,
    )  # fmt: skip
    held_out = training.validation_sequences(validation, space, RECIPES["udrl"], start.tokenizer, student.max_tokens)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        losses, *_ = training.run_trainer(start, sequences, held_out, options, Path(scratch))
    seconds = time.perf_counter() - began
    trained = Student(start.model.bfloat16().to(precision.dtype()).eval(), start.tokenizer, space, "udrl")
    asked = ask(trained, rows[rows.split == "test"], bench)
    return {
        "group": line.group,
        "name": line.name,
        "rows": len(train),
        "parameters": trained.parameters,
        "seconds": round(seconds, 1),
        "validation loss": [entry["validation_loss"] for entry in losses if "validation_loss" in entry][-1],
        "tasks": asked,
    }


def ask(student: Student, test: pd.DataFrame, bench: Bench) -> dict[str, dict[str, Any]]:
    """What each task achieves, by the reward of params.yaml, whatever the student was trained for."""
    found = {}
    for task, of_task in test.groupby("task"):
        rows = of_task.sort_values("row_key").drop_duplicates("intent").head(bench.intents)
        intents, highest = rows.intent.tolist(), student.space.quality_bins
        quality = write(student, [Command(str(task), i, quality=q) for q in range(1, highest + 1) for i in intents], bench)
        commands = [Command(str(task), i, words, highest) for words in LENGTHS for i in intents[: bench.intents // 2]]
        lengths, free = write(student, commands, bench), write(student, commands, bench, length_slack=None)
        means = quality.groupby("commanded_quality").reward.mean()
        best = quality[quality.commanded_quality == highest]
        found[str(task)] = {
            "Spearman": spearman(quality.commanded_quality, quality.reward),
            "rises": bool(np.all(np.diff(means) > 0)),
            "rewards": [round(float(mean), 4) for mean in means],
            "reward": round(float(means.iloc[-1]), 4),
            "relevance": round(float(best.relevance.mean()), 4),
            "spread": round(_spread(bench, best.text) / _spread(bench, rows.text), 4),
            "length error": round(float((lengths.words - lengths.commanded_words).abs().mean()), 2),
            "free length error": round(float((free.words - free.commanded_words).abs().mean()), 2),
            "free length rank": spearman(free.commanded_words, free.words),
        }
    return found


def write(student: Student, commands: list[Command], bench: Bench, **options: Any) -> pd.DataFrame:
    """Texts with their rewards, by the reward of params.yaml."""
    made = student.generate(commands, guidance=bench.guidance, **bench.base.evaluation.sampling, **options)
    frame = pd.DataFrame(
        {
            "intent": [c.intent for c in commands], "text": [m.text for m in made], "words": [m.words for m in made],
            "commanded_words": [c.words for c in commands], "commanded_quality": [c.quality for c in commands],
        }
    )  # fmt: skip
    return rewards.label(frame.assign(relevance=bench.scorer.relevance(frame.intent.tolist(), frame.text.tolist())), bench.base.rewards)


def _spread(bench: Bench, texts: pd.Series) -> float:
    vectors = bench.scorer.embed(texts.tolist()).astype(np.float64)
    total, count = vectors.sum(axis=0), len(vectors)
    return float(1 - (total @ total - count) / (count * (count - 1)))


def overall(result: dict[str, Any], name: str) -> float | str:
    """A figure over the tasks: the mean, or in how many it holds."""
    if name == "validation loss":
        return float(result[name])
    values = [of_task[name] for of_task in result["tasks"].values()]
    return f"{sum(values)} of {len(values)}" if name == "rises" else float(np.mean([v for v in values if v is not None]))


def as_markdown(study: dict[str, Any]) -> str:
    """The tables of a study, group by group, beside the line that is as params.yaml says."""
    results = list(study["lines"].values())
    reference = next(r for r in results if r["group"] == "seed")
    parts = [
        f"{study['steps']} steps a line, {study['intents']} test intents a task, guidance {study['guidance']:g}, "
        f"dataset {study['dataset']}. Means over the tasks."
    ]
    for group in dict.fromkeys(r["group"] for r in results):
        lines = [r for r in results if r["group"] == group]
        if group != "seed":
            lines = [{**reference, "name": "reference"}, *lines]
        parts.append(f"| {group} | rows | parameters | " + " | ".join(SHOWN) + " |\n|" + "---|" * (len(SHOWN) + 3))
        parts[-1] += "".join(
            f"\n| {r['name']} | {r['rows']:,} | {r['parameters'] / 1e6:.1f}M | " + " | ".join(_shown(overall(r, n)) for n in SHOWN) + " |"
            for r in lines
        )
    return "\n\n".join(parts) + "\n"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"


def plot(study: dict[str, Any], file: Path) -> None:
    """Rank correlation of command and reward against rows and against parameters, a line a task."""
    from matplotlib.figure import Figure

    results = list(study["lines"].values())
    reference = next(r for r in results if r["group"] == "seed")
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, group, key in zip(figure.subplots(1, 2, sharey=True), ("rows", "layers"), ("rows", "parameters"), strict=True):
        lines = sorted([reference, *(r for r in results if r["group"] == group)], key=lambda r: r[key])
        for task in reference["tasks"]:
            axes.plot([r[key] for r in lines], [r["tasks"][task]["Spearman"] for r in lines], marker="o", label=task)
        axes.set_xlabel({"rows": "training rows", "parameters": "parameters"}[key])
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("rank correlation of\ncommanded quality and reward")
    figure.axes[0].legend(frameon=False)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--intents", type=int, default=60, help="test intents per task")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--only", action="append", help="a group of lines; repeatable")
    parser.add_argument("--out", type=Path, default=Path("docs/results/control.json"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    base = settings_module.load()
    workspace = Workspace(base)
    version = workspace.parents(dataset.ASSET)[dataset.ASSET]
    study: dict[str, Any] = {"dataset": version, "steps": arguments.steps, "intents": arguments.intents, "guidance": arguments.guidance}
    known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    same = all(known.get(key) == value for key, value in study.items())
    study["lines"] = known.get("lines", {}) if same else {}
    rows = dataset.read_dataset(workspace, version)
    bench = Bench(rows, base, rewards.Scorer(base), arguments.steps, arguments.intents, arguments.guidance)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for line in LINES:
        if arguments.only and line.group not in {"seed", *arguments.only}:
            continue
        key = content_hash(canonical([line.overrides, line.rows, line.tasks, line.one_scale]))
        if key not in study["lines"]:
            study["lines"][key] = measure(line, bench)
            arguments.out.write_text(json.dumps(study, indent=1), encoding="utf-8")
        result = study["lines"][key]
        figures = "  ".join(f"{name} {_shown(overall(result, name))}" for name in ("validation loss", "Spearman", "rises", "reward"))
        print(f"{line.group:14} {line.name:26} {figures}", flush=True)
    arguments.out.with_suffix(".md").write_text(as_markdown(study), encoding="utf-8")
    plot(study, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    if allocator.ENVIRONMENT.items() <= os.environ.items():
        main()
    else:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | allocator.ENVIRONMENT)
