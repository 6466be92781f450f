"""Training steps on the current dataset: tokens/s beside a plain Trainer, by attention, and validation loss by what the student keeps.

    .venv/bin/python benchmarks/training.py [--steps 60] [--only trainer] [--out FILE.json]        (after `make run`)

Every line trains a fresh student on the same rows for the same number of steps, with the recipe of params.yaml but for what the line
names. Seconds are those of the steps alone; the validation loss is taken after them. Prints a table; writes JSON, and the table beside
it as Markdown.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from udrl_pipeline import allocator, dataset, precision, settings
from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import trainer, training
from udrl_pipeline.student.initialise import Start, initialise
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.student.sequences import TrainingSequence, collate, tokens_of, training_order

PLAIN = "plain transformers Trainer"
#: The start of the tables that are about a teacher's layers; the recorded student has layers of its own.
PRUNED = {"student.init_from": "pruned-teacher", "student.learning_rate": 1.2e-3}
#: Table -> line -> settings that differ from params.yaml.
LINES: dict[str, dict[str, dict[str, Any]]] = {
    "trainer": {PLAIN: {}, "this project": {}},
    "attention": {"eager": PRUNED, "sdpa": PRUNED},
    "start": {
        "the layers of params.yaml": PRUNED,
        "0-5, 28, 29": PRUNED | {"student.prune.layers": [0, 1, 2, 3, 4, 5, 28, 29]},
        "an even spread": PRUNED | {"student.prune.layers": 8, "student.prune.rule": "even"},
        "0-2, 11, 21, 24, 28, 29": PRUNED | {"student.prune.layers": [0, 1, 2, 11, 21, 24, 28, 29]},
        "learning rate 8e-4": PRUNED | {"student.learning_rate": 8e-4},
        "learning rate 2e-3": PRUNED | {"student.learning_rate": 2e-3},
    },
}


def train(table: str, name: str, steps: int) -> dict[str, float]:
    """Train for some steps; tokens/s of them, and the validation loss after them."""
    options = settings.load(overrides=LINES[table][name])
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
        train_rows, space, recipe, start.tokenizer, student, passes=student.epochs, dropout=options.commands.dropout
    )[: steps * student.batch_rows]
    if table == "attention":
        start.model.set_attn_implementation = lambda _: type(start.model).set_attn_implementation(start.model, name)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        if name == PLAIN:
            train_plainly(start, sequences, options, scratch)
        else:
            training.run_trainer(start, sequences, [], options, Path(scratch))
        seconds = time.perf_counter() - began
    held_out = training.validation_sequences(validation, space, recipe, start.tokenizer, student.max_tokens)
    return {
        "tokens_per_s": round(tokens_of(sequences) / seconds, 1),
        "validation_loss": round(validation_loss(start, held_out), 4),
        "seconds": round(seconds, 1),
    }


def train_plainly(start: Start, sequences: list[TrainingSequence], options: Settings, scratch: str) -> None:
    """As anyone would: transformers' Trainer as it comes; the same settings of the optimiser, bf16, batches padded to their longest."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    student = options.student
    arguments = TrainingArguments(
        output_dir=scratch, num_train_epochs=1, per_device_train_batch_size=student.batch_rows, bf16=precision.in_bf16(), seed=student.seed,
        learning_rate=student.learning_rate, lr_scheduler_type="cosine", weight_decay=student.weight_decay,
        warmup_steps=round(len(sequences) / student.batch_rows * student.warmup), use_cpu=not torch.cuda.is_available(),
        report_to=[], disable_tqdm=True, log_level="error", save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=start.model,
        args=arguments,
        train_dataset=[sequence.features() for sequence in sequences],
        data_collator=lambda features: collate(features, start.tokenizer.pad_token_id),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def validation_loss(start: Start, held_out: list[TrainingSequence]) -> float:
    """The mean loss of a token, over all answers."""
    import torch

    start.model.eval()
    summed, count = 0.0, 0
    with torch.inference_mode():
        for first in range(0, len(held_out), 64):
            batch = collate([sequence.features() for sequence in held_out[first : first + 64]], start.tokenizer.pad_token_id)
            batch = {name: tensor.to(start.model.device) for name, tensor in batch.items()}
            answers = int((batch["labels"][:, 1:] >= 0).sum())
            summed, count = summed + float(trainer.answer_loss(start.model, **batch)["loss"]) * answers, count + answers
    return summed / count


def page(result: dict[str, Any]) -> str:
    lines = [
        "# Training speed",
        "",
        f"`benchmarks/training.py --steps {result['steps']}`: each line trains a fresh student on the same sequences; {result['machine']}.",
    ]
    for table, names in LINES.items():
        found = {name: result[table][name] for name in names if name in result.get(table, {})}
        if found:
            lines += ["", f"| {table} | tokens/s | seconds | validation loss |", "|---|---:|---:|---:|"]
            lines += [
                f"| {name} | {m['tokens_per_s']:,.0f} | {m['seconds']:.1f} | {m['validation_loss']:.3f} |" for name, m in found.items()
            ]
    both = result.get("trainer", {})
    if len(both) == 2:
        plain, ours = (both[name]["tokens_per_s"] for name in LINES["trainer"])
        lines += ["", f"This project trains at {ours / plain:.2f} times the speed of a plain Trainer."]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=LINES, help="these tables alone; what the file holds of others stays")
    parser.add_argument("--out", type=Path, default=Path("docs/results/training.json"))
    arguments = parser.parse_args()
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.only and arguments.out.exists() else {}
    result: dict[str, Any] = known | {"steps": arguments.steps, "machine": where}
    for table, names in LINES.items():
        if arguments.only and table not in arguments.only:
            continue
        result[table] = {}
        for name in names:
            measured = result[table][name] = train(table, name, arguments.steps)
            print(
                f"{table:10} {name:28} {measured['tokens_per_s']:8.1f} tokens/s   validation loss {measured['validation_loss']:.3f}",
                flush=True,
            )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    if allocator.ENVIRONMENT.items() <= os.environ.items():
        main()
    else:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | allocator.ENVIRONMENT)
