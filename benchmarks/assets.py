"""Seconds and peak memory of each asset, and the student's training tokens/s, from a run in an empty artifacts folder.

    .venv/bin/python benchmarks/assets.py [--preset NAME] [--out FILE] [--artifacts EMPTY_FOLDER]

Each asset is made in a process of its own, whose peak resident memory is what the operating system reports for it and its
children. Prints a table and writes JSON. With the default params this takes as long as `make run`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from udrl_pipeline.allocator import ENVIRONMENT

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
    kibibytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": round(made.seconds, 1), "peak_mb": round(kibibytes / 1024), "rows": made.rows, **made.work}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/assets.json"))
    parser.add_argument("--asset", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--artifacts", help="where to make them, kept (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.asset:
        print(json.dumps(make(arguments.asset, arguments.artifacts, arguments.preset)))
        return
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        for asset in STEPS:
            command = [sys.executable, __file__, "--asset", asset, "--artifacts", arguments.artifacts or temporary]
            command += ["--preset", arguments.preset] if arguments.preset else []
            result[asset] = json.loads(
                subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ENVIRONMENT)
                .stdout.strip()
                .splitlines()[-1]
            )
            measured = result[asset]
            extra = f"  {measured['tokens_per_s']:.0f} training tokens/s" if "tokens_per_s" in measured else ""
            print(f"{asset:18} {measured['seconds']:8.1f} s {measured['peak_mb']:8.0f} MB {measured['rows']:8.0f} rows{extra}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
