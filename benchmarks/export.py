"""Which engine is the fastest for a student on this CPU, and what each costs in quality: the figures behind `student_export`.

    .venv/bin/python benchmarks/export.py [--student FOLDER] [--engines NAME ...] [--requests 20] [--out FILE]

Each engine runs in a process of its own, one after the other, on all cores that the process may use. A request is one idea, commanded
to write at least 32 tokens and stopped there; `guided` reads the prompt without its quality and that without its idea beside it, as
`udrl generate` does. The batch is 32 of them at once. Through `generate`, so that tokenizing, drawing and everything else count,
unless an engine cannot take part in our decoding (CTranslate2: no logits of a step with a cache), which is then timed bare and
greedily. `teacher` is the default teacher in transformers with its three example pairs. Prints a table and writes JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from udrl_pipeline import settings
from udrl_pipeline.commands import Command
from udrl_pipeline.student import export
from udrl_pipeline.student.fast import MODEL, FastStudent, open_session
from udrl_pipeline.student.generation import Student
from udrl_pipeline.usage import cores

TOKENS, BATCH = 32, 32
IDEAS = ("lighthouse in a storm", "farmers market poster", "jazz night flyer", "red fox in snow", "paper boats on a pond")
#: Seconds of the first token, seconds of the rest; or of a batch.
Write = Callable[[int, bool], tuple[float, float]]


def of_student(student: Student) -> Write:
    """A way to write to `rows` ideas at once, guided or not."""
    sampling = settings.load().evaluation.sampling
    task = student.space.tasks[0]

    def write(rows: int, guided: bool) -> tuple[float, float]:
        most = student.space.covered[task][1]
        commands = [Command(task, f"{IDEAS[n % len(IDEAS)]} {n}", most, student.space.quality_bins) for n in range(rows)]
        quality, idea = (3.0, student.space.idea_guidance) if guided else (1.0, 1.0)
        options: dict[str, Any] = {**sampling, "guidance": quality, "idea_guidance": idea, "max_new_tokens": TOKENS}
        began = time.perf_counter()
        if rows > 1:
            made = student.generate(commands, **options, batch_rows=BATCH)
            assert all(one.tokens == TOKENS for one in made), [one.tokens for one in made]
            return 0.0, time.perf_counter() - began
        batch = student.batch(commands, [5], quality, 1.0, idea, 2, TOKENS)
        from udrl_pipeline.student.generation import Sampling

        drawn = Sampling(*(sampling[name] for name in ("temperature", "top_p", "min_p", "repetition_penalty")))
        times = [time.perf_counter() for _ in student._tokens(batch, drawn)]
        assert len(times) == TOKENS
        return times[0] - began, times[-1] - began

    return write


def transformers_engine(folder: Path, precise: bool) -> tuple[Write, float]:
    student = Student.load(folder, precise=precise)
    return of_student(student), student.parameters * (4 if precise else 2) / 1e6


def exported(folder: Path, block: int | None) -> tuple[Write, float]:
    with tempfile.TemporaryDirectory() as target:
        student = export.write_export(Student.load(folder, precise=True), folder, Path(target), block)
        return of_student(student), (Path(target) / MODEL).stat().st_size / 1e6


def per_tensor(folder: Path) -> tuple[Write, float]:
    """ONNX Runtime's dynamic quantisation: activations share one scale over the whole batch, so that texts depend on each other."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as target:
        student: FastStudent = export.write_export(Student.load(folder, precise=True), folder, Path(target), None)
        file = Path(target) / "dynamic.onnx"
        options = {"DefaultTensorType": 1}
        quantize_dynamic(Path(target) / MODEL, file, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
                         extra_options=options)  # fmt: skip
        student.model = open_session(onnxruntime, file)
        return of_student(student), file.stat().st_size / 1e6


def ctranslate2_engine(folder: Path) -> tuple[Write, float]:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as target:
        TransformersConverter(str(folder)).convert(target, quantization="int8", force=True)
        config = json.loads((Path(target) / "config.json").read_text())
        end = config["eos_token"]
        (Path(target) / "config.json").write_text(json.dumps({name: end if value is None else value for name, value in config.items()}))
        engine = ctranslate2.Generator(target, device="cpu", intra_threads=cores(), compute_type="int8")
        size = (Path(target) / "model.bin").stat().st_size / 1e6
    student = Student.load(folder)

    def write(rows: int, guided: bool) -> tuple[float, float]:
        commands = [Command(student.space.tasks[0], f"{IDEAS[n % len(IDEAS)]} {n}", 40, 5) for n in range(rows)]
        prompts = student.batch(commands, [0] * rows, 1.0, 1.0, 1.0, None, 1).prompts * (3 if guided else 1)
        tokens = [student.tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
        began = time.perf_counter()
        engine.generate_batch(tokens, max_length=TOKENS, min_length=TOKENS, include_prompt_in_result=False, sampling_topk=1)
        return 0.0, time.perf_counter() - began

    return write, size


def teacher(folder: Path) -> tuple[Write, float]:
    from udrl_pipeline.evaluation.latency import _seconds
    from udrl_pipeline.models import resolve
    from udrl_pipeline.tasks import load_tasks
    from udrl_pipeline.teacher.transformers_engine import TransformersEngine

    chosen = settings.load()
    engine = TransformersEngine(resolve(chosen.teacher.model, chosen).folder, chosen.teacher)
    task = load_tasks(chosen)[chosen.tasks.names[0]]

    def write(rows: int, guided: bool) -> tuple[float, float]:
        chats = [task.messages(IDEAS[n % len(IDEAS)], 20, task.drawn_examples(20, chosen.teacher.examples, str(n), 0)) for n in range(rows)]
        prompts = [engine.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        ids = engine.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        return 0.0, _seconds(engine.model, engine.tokenizer, ids, TOKENS)

    return write, sum(parameter.numel() for parameter in engine.model.parameters()) * 2 / 1e6


ENGINES: dict[str, Callable[[Path], tuple[Write, float]]] = {
    "transformers bf16": lambda folder: transformers_engine(folder, precise=False),
    "transformers fp32": lambda folder: transformers_engine(folder, precise=True),
    "onnx fp32": lambda folder: exported(folder, None),
    "onnx int8/16": lambda folder: exported(folder, 16),
    "onnx int8/32": lambda folder: exported(folder, 32),
    "onnx int8/128": lambda folder: exported(folder, 128),
    "onnx dynamic": per_tensor,
    "ctranslate2 int8": ctranslate2_engine,
    "teacher": teacher,
}


def measure(engine: str, folder: Path, requests: int) -> dict[str, Any]:
    write, size = ENGINES[engine](folder)
    found: dict[str, Any] = {"model_mb": round(size, 1)}
    for name, guided in (("plain", False), ("guided", True)):
        if guided and engine == "teacher":
            break
        write(1, guided)
        times = np.array([write(1, guided) for _ in range(requests)]) * 1e3
        write(BATCH, guided)
        batch = min(write(BATCH, guided)[1] for _ in range(3))
        p50, p95, p99 = np.percentile(times[:, 1], (50, 95, 99)).round(1).tolist()
        found[name] = {
            "best_ms": round(float(times[:, 1].min()), 1), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
            "first_token_ms": round(float(np.median(times[:, 0])), 1), "batch_tokens_per_s": round(BATCH * TOKENS / batch, 1),
        }  # fmt: skip
    found["memory_mb"] = round(psutil.Process().memory_info().rss / 2**20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help="A student's folder; default: the student in use")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/results/export.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.student is None:
        from udrl_pipeline.cli_generate import student_folder

        arguments.student = student_folder("udrl", settings.load(), "transformers")
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.student, arguments.requests)))
        return
    result: dict[str, Any] = {}
    print(f"{'':25} {'MB':>6} | {'one request of 32 tokens, ms':^38} | {'batch of 32':>12}")
    print(f"{'':25} {'':>6} | {'best':>7} {'p50':>7} {'p95':>7} {'p99':>7} {'first':>6} | {'tokens/s':>12}")
    for engine in arguments.engines:
        command = [sys.executable, __file__, "--student", str(arguments.student), "--one", engine, "--requests", str(arguments.requests)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(cores())})
        if done.returncode:
            result[engine] = {"not_measured": done.stderr.strip().splitlines()[-1]}
            print(f"{engine:20} not measured: {result[engine]['not_measured']}")
            continue
        result[engine] = json.loads(done.stdout.strip().splitlines()[-1])
        for name in ("plain", "guided"):
            if found := result[engine].get(name):
                times = " ".join(f"{found[key]:7.1f}" for key in ("best_ms", "p50_ms", "p95_ms", "p99_ms"))
                label = engine if name == "plain" else f"{engine}, guided"
                first = f"{found['first_token_ms']:6.1f}" if found["first_token_ms"] else "     -"
                print(
                    f"{label:20.28} {result[engine]['model_mb']:6.1f} | {times} {first} | {found['batch_tokens_per_s']:12.1f}", flush=True
                )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
