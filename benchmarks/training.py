"""Training steps on the current dataset: tokens/s by attention, and validation loss by what the pruned student keeps.

    .venv/bin/python benchmarks/training.py [--steps 60] [--out FILE]        (after `make run`)

Every line trains a fresh student on the same rows in the same order, with the recipe of params.yaml but for what the line names.
Prints a table and writes JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from udrl_pipeline import allocator, dataset, settings
from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.initialise import initialise
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.student.sequences import training_order

KEPT: dict[str, dict[str, Any]] = {
    "as in params.yaml": {},
    "0-5, 28, 29": {"student.prune.layers": [0, 1, 2, 3, 4, 5, 28, 29]},
    "an even spread": {"student.prune.layers": 8, "student.prune.rule": "even"},
    "0-2, 11, 21, 24, 28, 29": {"student.prune.layers": [0, 1, 2, 11, 21, 24, 28, 29]},
    "learning rate 8e-4": {"student.learning_rate": 8e-4},
    "learning rate 2e-3": {"student.learning_rate": 2e-3},
}


def train(overrides: dict[str, Any], steps: int, attention: str | None = None) -> dict[str, float]:
    """Train for some steps; tokens/s (evaluations included) and the validation loss at their end."""
    options = settings.load(overrides=overrides)
    workspace = Workspace(options)
    version = workspace.parents(dataset.ASSET)[dataset.ASSET]
    rows = dataset.read_dataset(workspace, version)
    made = workspace.find(dataset.ASSET, version)
    assert made is not None
    train_rows, validation = rows[rows.split == "train"], rows[rows.split == "validation"]
    space, recipe = CommandSpace.measure(train_rows, made.facts["edges"], options.commands), RECIPES["udrl"]
    start = initialise(options, space, sorted({*train_rows.intent, *train_rows.text}))
    student = options.student
    sequences = training_order(
        train_rows, space, recipe, start.tokenizer, passes=student.epochs, batch_rows=student.batch_rows,
        dropout=options.commands.dropout, seed=student.seed, max_tokens=student.max_tokens,
    )[: steps * student.batch_rows]  # fmt: skip
    if attention:
        start.model.set_attn_implementation = lambda _: type(start.model).set_attn_implementation(start.model, attention)
    held_out = training.validation_sequences(validation, space, recipe, start.tokenizer, student.max_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        losses, *_ = training.run_trainer(start, sequences, held_out, options, Path(scratch))
        seconds = time.perf_counter() - began
    tokens = sum(len(s.prompt) + len(s.answer) for s in sequences)
    last = [entry["validation_loss"] for entry in losses if "validation_loss" in entry][-1]
    return {"tokens_per_s": round(tokens / seconds, 1), "validation_loss": last, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    arguments = parser.parse_args()
    lines = [("attention", name, {}, name) for name in ("eager", "sdpa")] + [("start", name, given, None) for name, given in KEPT.items()]
    result: dict[str, dict[str, dict[str, float]]] = {"attention": {}, "start": {}}
    for table, name, overrides, attention in lines:
        measured = result[table][name] = train(overrides, arguments.steps, attention)
        print(
            f"{table:10} {name:24} {measured['tokens_per_s']:8.1f} tokens/s   validation loss {measured['validation_loss']:.3f}", flush=True
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"steps": arguments.steps, **result}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if allocator.ENVIRONMENT.items() <= os.environ.items():
        main()
    else:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | allocator.ENVIRONMENT)
