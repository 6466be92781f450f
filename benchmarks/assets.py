"""Seconds and peak memory of each asset, and the student's training tokens/s, from a run in an empty artifacts folder.

    .venv/bin/python benchmarks/assets.py [--preset NAME] [--artifacts EMPTY_FOLDER] [--only ASSET ...] [--out FILE]

Each asset is made in a process of its own. Its memory is the proportional set size of that process and all that it starts, sampled
four times a second. Prints a table and writes JSON (with --only, into what the file holds). With the default params this takes as
long as `make run`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from udrl_pipeline.allocator import ENVIRONMENT
from udrl_pipeline.usage import memory

STEPS = ("intents", "teacher_corpus", "labeled_dataset", "student/udrl", "evaluation_report")


def make(asset: str, artifacts: str, preset: str | None) -> dict[str, float]:
    """Make one asset in this process."""
    from udrl_pipeline import corpus, dataset, settings
    from udrl_pipeline.evaluation import report
    from udrl_pipeline.intents import asset as intents
    from udrl_pipeline.store.workspace import Workspace
    from udrl_pipeline.student import training

    workspace = Workspace(settings.load(preset=preset, overrides={"artifacts": artifacts}))
    workspace.begin_run()
    builders = {
        "intents": intents.build,
        "teacher_corpus": corpus.build,
        "labeled_dataset": dataset.build,
        "student/udrl": lambda w: training.build(w, "udrl"),
        "evaluation_report": report.build,
    }
    made = builders[asset](workspace)
    return {"seconds": round(made.seconds, 1), "rows": made.rows, **made.work}


def measured(command: list[str]) -> dict[str, float]:
    """Run a command that prints a JSON object last; the object, with the peak memory of the command and its children."""
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, env=os.environ | ENVIRONMENT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.25)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode:
        sys.exit("\n".join(lines[-20:]))
    return {**json.loads(lines[-1]), "peak_mb": round(peak / 2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset")
    parser.add_argument("--out", type=Path, default=Path("docs/results/assets.json"))
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="ASSET", help="these alone, in this order")
    parser.add_argument("--asset", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--artifacts", help="where to make them, kept (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.asset:
        print(json.dumps(make(arguments.asset, arguments.artifacts, arguments.preset)))
        return
    result = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.only and arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for asset in arguments.only or STEPS:
            command = [sys.executable, __file__, "--asset", asset, "--artifacts", arguments.artifacts or temporary]
            command += ["--preset", arguments.preset] if arguments.preset else []
            found = result[asset] = measured(command)
            extra = f"  {found['tokens_per_s']:.0f} training tokens/s" if "tokens_per_s" in found else ""
            print(f"{asset:18} {found['seconds']:8.1f} s {found['peak_mb']:8.0f} MB {found['rows']:8.0f} rows{extra}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
