"""Rows/s of the `teacher_corpus` asset against bare `vllm.LLM` on the same prompts, start-up excluded from both.

    make vllm && .venv/bin/python benchmarks/teacher_throughput.py [--rows 768] [--out FILE]

Each side runs in a fresh process with a cold prefix cache. Prints a table; writes JSON, and the table beside it as Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from udrl_pipeline import corpus, precision, settings
from udrl_pipeline.evaluation.latency import machine
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.models import resolve
from udrl_pipeline.store.workspace import Workspace


def of_asset(rows: int, artifacts: str) -> dict[str, float]:
    """Build a corpus of about `rows` rows through the asset's own call; what it reports of its generation."""
    per_intent = len(settings.load().tasks.names)
    chosen = settings.load(
        overrides={"artifacts": artifacts, "teacher.engine": "vllm", "teacher.recorded": False, "intents.builtin": rows // per_intent}
    )
    workspace = Workspace(chosen)
    workspace.begin_run()
    intents.build(workspace)
    work = corpus.build(workspace).work
    return {"rows": work["teacher_rows"], "tokens": work["teacher_tokens"], "seconds": work["teacher_seconds"]}


def bare(rows: int, artifacts: str) -> dict[str, float]:
    """The same prompts through `vllm.LLM.chat` in one call, in the environment of the asset's engine but with vLLM's own sampling."""
    from udrl_pipeline.teacher.vllm_engine import CPU_ENVIRONMENT
    from udrl_pipeline.teacher.vllm_sampling import WANTED

    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": cores, **CPU_ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR"}
    del os.environ[WANTED]
    from vllm import LLM, SamplingParams

    chosen = settings.load(overrides={"artifacts": artifacts})
    workspace = Workspace(chosen)
    parents = workspace.parents("intents")
    planned = corpus.plan(intents.read_intents(workspace, parents["intents"]), workspace.tasks, chosen, corpus.source_digest(chosen))
    requests = [corpus.request(workspace.tasks[row.task], row, chosen.teacher) for row in planned]
    teacher = chosen.teacher
    folder = str(resolve(teacher.model, chosen).folder)
    engine = LLM(
        folder,
        dtype=precision.name(),
        enforce_eager=True,
        seed=teacher.seed,
        max_model_len=teacher.max_model_len,
    )
    names = ("temperature", "top_p", "repetition_penalty", "max_tokens")
    params = [SamplingParams(stop=["\n"], **{n: getattr(r, n) for n in names}) for r in requests]
    started = time.monotonic()
    outputs = engine.chat([r.messages for r in requests], params, use_tqdm=False)  # type: ignore[arg-type]
    seconds = time.monotonic() - started
    return {"rows": len(outputs), "tokens": sum(len(o.outputs[0].token_ids) for o in outputs), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=768)
    parser.add_argument("--out", type=Path, default=Path("docs/results/teacher.json"))
    parser.add_argument("--side", choices=["asset", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--artifacts", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps((of_asset if arguments.side == "asset" else bare)(arguments.rows, arguments.artifacts)))
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as artifacts:
        for side in ("asset", "bare"):
            command = [sys.executable, __file__, "--side", side, "--rows", str(arguments.rows), "--artifacts", artifacts]
            last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
            result[side] = json.loads(last)
    for side, measured in result.items():
        measured["rows_per_s"] = measured["rows"] / measured["seconds"]
        measured["tokens_per_s"] = measured["tokens"] / measured["seconds"]
        speed = f"{measured['rows_per_s']:6.2f} rows/s {measured['tokens_per_s']:7.1f} tokens/s"
        print(f"{side:6} {measured['rows']:6.0f} rows {measured['seconds']:7.1f} s {speed}")
    # texts are sampled, so the two sides write different numbers of tokens: tokens/s is the fair ratio
    result["ratio_tokens_per_s"] = result["asset"]["tokens_per_s"] / result["bare"]["tokens_per_s"]
    print(f"asset / bare, tokens/s: {result['ratio_tokens_per_s']:.3f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result["machine"] = machine()
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    names = {"asset": "`teacher_corpus`, start to end of the generation", "bare": "bare `vllm.LLM.chat`, as vLLM comes"}
    lines = [
        "# Teacher",
        "",
        f"`benchmarks/teacher_throughput.py`, on {result['machine']}: the same prompts, start-up excluded, each in a fresh process.",
        "",
        "| | rows | seconds | rows/s | tokens/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for side, name in names.items():
        m = result[side]
        lines.append(f"| {name} | {m['rows']:.0f} | {m['seconds']:.1f} | {m['rows_per_s']:.2f} | {m['tokens_per_s']:.1f} |")
    return "\n".join([*lines, "", f"The asset writes {result['ratio_tokens_per_s']:.2f} times the tokens/s of bare vLLM.", ""])


if __name__ == "__main__":
    main()
