"""What the Ray path costs on one node: rows of the default teacher through one worker, beside the same rows in one process.

    make ray && .venv/bin/python benchmarks/cluster.py [--rows 2000] [--core 0] [--ddp] [--out FILE]

Each side runs in a fresh process, with all that it starts (Ray's own processes too) on one core, with one thread, and an empty store.
What it takes until the engine is ready is told apart. Beside the time stand the seconds of processor that all of its processes took: what
the time would be if nothing else ran on that core. `--ddp` trains the student of params.yaml in one process and in two instead.
Prints a table; writes JSON (what the file holds of the other part stays), and the tables beside it as Markdown.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from udrl_pipeline import corpus, dataset, settings
from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.evaluation.latency import machine
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student import training
from udrl_pipeline.student.initialise import initialise
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.student.sequences import tokens_of, training_order

NAMES = {"direct": "in one process", "ray": "one worker of a Ray cluster on the same core"}
#: Line of the second table -> processes and threads of each.
TRAINED = {"one process": (1, 1), "one process, two threads": (1, 2), "two processes": (2, 1)}


class Meter(threading.Thread):
    """The processor time of this process and of all that it starts, those that have ended included; looked at every second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seen: dict[psutil.Process, float] = {}
        self._looked = [(time.time(), 0.0)]

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(1)

    def look(self) -> float:
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                taken = process.cpu_times()
                self._seen[process] = taken.user + taken.system
        self._looked.append((time.time(), sum(self._seen.values())))
        return self._looked[-1][1]

    def since(self, when: float) -> float:
        """Seconds of processor from a moment on."""
        return self.look() - next(taken for looked, taken in reversed(self._looked) if looked <= when)


def ask(side: str, rows: int, artifacts: str) -> dict[str, float]:
    """Build a corpus of about `rows` rows; how long the work took, and how long until its engine was ready."""
    ready, original, opened = Path(artifacts) / "ready", corpus._generate, corpus.open_engine
    begun, took, meter = list[float](), list[float](), Meter()
    meter.start()

    def open_and_tell(chosen: Settings) -> Any:
        engine = opened(chosen)
        ready.write_text(str(time.time()), encoding="utf-8")  # also from a worker of the cluster
        return engine

    def generate(*arguments: Any) -> Any:
        begun.append(time.time())
        work = original(*arguments)
        took.append(meter.since(float(ready.read_text(encoding="utf-8"))))
        return work

    corpus.open_engine, corpus._generate = open_and_tell, generate  # type: ignore[assignment]
    chosen = settings.load(
        overrides={
            "artifacts": artifacts, "teacher.recorded": False, "intents.builtin": rows // 6,
            "teacher.cluster": "ray" if side == "ray" else None,
            "ray.address": "local", "ray.workers": 1, "ray.cpus": 1,
        }
    )  # fmt: skip
    workspace = Workspace(chosen)
    workspace.begin_run()
    intents.build(workspace)
    made = corpus.build(workspace)
    start_up = float(ready.read_text(encoding="utf-8")) - begun[0]
    return {
        "rows": made.work["teacher_rows"], "tokens": made.work["teacher_tokens"],
        "seconds": round(made.work["teacher_seconds"] - start_up, 2), "processor": round(took[0], 2), "start_up": round(start_up, 2),
    }  # fmt: skip


def train(processes: int, steps: int, artifacts: str) -> dict[str, Any]:
    """Train the student of params.yaml for some steps on recorded rows; its tokens/s and its curve."""
    chosen = settings.load(overrides={"artifacts": artifacts, "intents.builtin": 600, "student.processes": processes})
    workspace = Workspace(chosen)
    workspace.begin_run()
    intents.build(workspace)
    corpus.build(workspace)
    made = dataset.build(workspace)
    rows = dataset.read_dataset(workspace, made.version)
    student, recipe, train_rows = chosen.student, RECIPES["udrl"], rows[rows.split == "train"]
    space = CommandSpace.measure(train_rows, made.facts["edges"], chosen.commands)
    start = initialise(chosen, space, sorted({*train_rows.intent, *train_rows.text}))
    sequences = training_order(train_rows, space, recipe, start.tokenizer, student, passes=1.0, dropout=chosen.commands.dropout)[
        : steps * student.batch_rows
    ]
    held_out = training.validation_sequences(rows[rows.split == "validation"], space, recipe, start.tokenizer, student.max_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        curve, speed, _ = training.run_trainer(start, sequences, held_out, chosen, Path(scratch), "udrl")
    told = [0, *(int(line["step"]) for line in speed)]
    tokens = [tokens_of(sequences[a * student.batch_rows : b * student.batch_rows]) for a, b in itertools.pairwise(told)]
    seconds = sum(n / line["tokens_per_s"] for n, line in zip(tokens, speed, strict=True))
    return {
        "steps": steps,
        "tokens": sum(tokens),
        "seconds": round(seconds, 2),
        "tokens_per_s": round(sum(tokens) / seconds, 1),
        "curve": curve,
    }


def compare(curves: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The largest relative difference of each curve from that of one process, by kind of loss."""
    alone, told = curves["one process"], dict[str, dict[str, float]]()
    for name, curve in curves.items():
        pairs = list(zip(alone, curve, strict=True))
        told[name] = {
            kind: round(max(abs(a[kind] - b[kind]) / a[kind] for a, b in pairs if kind in a), 5) for kind in ("loss", "validation_loss")
        }
    return told


def in_a_process(cores: list[int], threads: int, *arguments: str) -> dict[str, Any]:
    """What this script prints when it is started with these arguments, on these cores."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as artifacts:
        command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, __file__, *arguments, "--artifacts", artifacts]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed; its own message stands above")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def page(result: dict[str, Any]) -> str:
    lines = ["# The Ray path on one node, and training in two processes", "", f"`benchmarks/cluster.py`, on {result['machine']}."]
    if asked := result.get("teacher"):
        lines += [
            "",
            "Rows of the default teacher, all of it on one core with one thread. Overhead of Ray:"
            f" {asked['overhead']:.1%} of the time per token, {asked['overhead_processor']:.1%} of the processor's time per token;"
            " start-up is in neither.",
            "", "| | rows | tokens | seconds | of the processor | rows/s | tokens/s | start-up (s) |", "|---|" + "---:|" * 7,
        ]  # fmt: skip
        for side, name in NAMES.items():
            m = asked[side]
            speed = f"{m['rows'] / m['seconds']:.2f} | {m['tokens'] / m['seconds']:.1f} | {m['start_up']:.1f}"
            lines.append(f"| {name} | {m['rows']:,} | {m['tokens']:,} | {m['seconds']:.1f} | {m['processor']:.1f} | {speed} |")
    if trained := result.get("training"):
        lines += [
            "",
            "The student of params.yaml on the recorded rows (`--ddp`), a core for each process or thread; how far a loss is from that of"
            " one process, at most, as a share of it. Start-up (of processes, by torchrun) is not counted.",
            "", "| | steps | tokens/s | training loss | validation loss |", "|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        for name in TRAINED:
            m, off = trained[name], trained["off"][name]
            lines.append(f"| {name} | {m['steps']} | {m['tokens_per_s']:,.0f} | {off['loss']:.2%} | {off['validation_loss']:.2%} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="for both paths of the teacher")
    parser.add_argument("--ddp", action="store_true", help="train in one process and in two, in place of the teacher's rows")
    parser.add_argument("--steps", type=int, default=60, help="of --ddp")
    parser.add_argument("--out", type=Path, default=Path("docs/results/cluster.json"))
    parser.add_argument("--side", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--artifacts", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(ask(arguments.side, arguments.rows, arguments.artifacts)))
        return
    if arguments.processes:
        print(json.dumps(train(arguments.processes, arguments.steps, arguments.artifacts)))
        return
    result = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    if arguments.ddp:
        cores = sorted(os.sched_getaffinity(0))[:2]
        found: dict[str, Any] = {}
        for name, (processes, threads) in TRAINED.items():
            options = ("--processes", str(processes), "--steps", str(arguments.steps))
            found[name] = in_a_process(cores[: processes * threads], threads, *options)
            print(f"{name:26} {found[name]['tokens_per_s']:8.1f} tokens/s", flush=True)
        found["off"] = compare({name: found[name].pop("curve") for name in TRAINED})
        print(found["off"])
        result["training"] = found
    else:
        found = {}
        for side in NAMES:
            m = found[side] = in_a_process([arguments.core], 1, "--side", side, "--rows", str(arguments.rows))
            speed = f"{m['rows'] / m['seconds']:.2f} rows/s, {m['tokens'] / m['seconds']:.1f} tokens/s, {m['processor']:.1f} s of processor"
            print(f"{side:7} {m['rows']:6.0f} rows {m['seconds']:8.1f} s, {speed}, after {m['start_up']:.1f} s of start-up", flush=True)
        a, b = found["direct"], found["ray"]
        for name, kind in {"overhead": "seconds", "overhead_processor": "processor"}.items():
            found[name] = round((b[kind] / b["tokens"]) / (a[kind] / a["tokens"]) - 1, 4)
        print(f"overhead of Ray: {found['overhead']:.1%} of the time per token, {found['overhead_processor']:.1%} of the processor's")
        result["teacher"] = found
    result["machine"] = machine()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
