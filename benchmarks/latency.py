"""Latency and throughput of the student, its export, its teacher, and the architectures that the paper names, on one machine in one run.

    make bench-latency        (after `make run`; ARGS="--only student --requests 50")

Each line is measured alone, in a process of its own: single requests of 32 new tokens (to the first token, to the last), then batches.
The student writes as `udrl generate` does, drawing included; teacher and architectures write greedily. Every model reads the prompt
that it needs for its answer: the student its command, the others a chat with example pairs. The 7B and 8B architectures and the 104M
preset have random weights: speed does not depend on them. What takes too long is left out (`--budget`), and shown as such. Lines that FILE
holds already are not measured again: delete it to begin anew. Writes FILE (JSON), FILE.md with the table and FILE.svg with the plot.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udrl_pipeline import allocator, corpus, dataset, precision, settings
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.evaluation.latency import machine
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.models import resolve
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student.engines import engine_folder, load_student
from udrl_pipeline.usage import Usage

NEW_TOKENS = 32
BATCHES = (1, 2, 4, 8, 16, 32, 64)
#: From the models' published configurations.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama-3 8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "Qwen2 7B": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
    "Mistral 7B": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32768, "sliding_window": None,
    },
}  # fmt: skip
ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass(frozen=True)
class Line:
    """What is measured: a subject, the engine that runs it, and for students how hard the quality is pressed (1 reads one prompt)."""

    subject: str
    engine: str
    guidance: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.subject}, {self.engine}" + (", guided" if self.guidance != 1 else "")


LINES = [
    *(Line("student", engine, guidance) for engine in ("transformers", "export") for guidance in (1.0, 3.0)),
    Line("student", "vllm"),
    *(Line("104M preset", engine) for engine in ("transformers", "export")),
    *(Line("teacher", engine) for engine in ("transformers", "vllm")),
    *(Line(name, "transformers") for name in ARCHITECTURES),
]


@dataclass(frozen=True)
class Subject:
    """A model at work.

    Attributes:
        one: Makes the n-th request and gives the seconds to its first token and to its last.
        batch: Writes so many texts at once; seconds.
        size_mb: Of the weights as the engine holds them.
    """

    one: Callable[[int], tuple[float, float]]
    batch: Callable[[int], float]
    parameters: int
    size_mb: float
    prompt_tokens: float


# -- subjects -----------------------------------------------------------------------------------------------------------


def open_subject(line: Line, scratch: Path) -> Subject:
    chosen = settings.load()
    if line.subject in ARCHITECTURES:
        return of_architecture(ARCHITECTURES[line.subject], chosen)
    if line.subject == "teacher":
        folder = resolve(chosen.teacher.model, chosen).folder
        return of_vllm(folder, chats(chosen, folder)) if line.engine == "vllm" else of_checkpoint(folder, chats(chosen, folder))
    if line.subject == "104M preset":
        return of_student(random_student(line.engine, chosen, scratch), 1.0)
    workspace = Workspace(chosen)
    student = current_student(workspace)
    if line.engine == "vllm":
        folder = workspace.version_folder(student.asset, student.version)
        loaded = load_student(folder)
        return of_vllm(folder, loaded.tokenizer([loaded.space.render(c) for c in commands()], add_special_tokens=False)["input_ids"])
    return of_student(engine_folder(workspace, student, "export" if line.engine == "export" else "transformers"), line.guidance)


def current_student(workspace: Workspace) -> Version:
    found = workspace.current("student/udrl")
    if found is None:
        sys.exit("there is no student yet: `make run` first")
    return found


def commands() -> list[Command]:
    """Ideas of no split, at a length that no text ends before its 32nd token."""
    ideas = ("lighthouse in a storm", "farmers market", "jazz night", "red panda asleep on a branch", "city skyline from a rooftop bar")
    return [Command(task, idea, words=40, quality=5) for idea in ideas for task in ("image", "template", "search")]


def of_student(folder: Path, guidance: float) -> Subject:
    student, asked = load_student(folder), commands()
    guided: dict[str, Any] = {"guidance": guidance, "idea_guidance": None if guidance != 1 else 1.0}  # None: the student's own
    sampling: dict[str, Any] = settings.load().evaluation.sampling | guided | {"max_new_tokens": NEW_TOKENS}

    def one(n: int) -> tuple[float, float]:
        began, first = time.perf_counter(), 0.0
        for piece in student.stream(asked[n % len(asked)], **sampling | {"seed": n}):
            first = first or time.perf_counter() - began
            assert isinstance(piece, str) or piece.tokens == NEW_TOKENS, f"{piece.tokens} tokens"
        return first, time.perf_counter() - began

    def batch(rows: int) -> float:
        began = time.perf_counter()
        student.generate([asked[n % len(asked)] for n in range(rows)], batch_rows=rows, **sampling)
        return time.perf_counter() - began

    prompts = student.tokenizer([student.space.render(command) for command in asked], add_special_tokens=False)["input_ids"]
    weights = [file for kind in ("*.safetensors", "*.onnx*") for file in folder.glob(kind)]
    return Subject(one, batch, student.parameters, sum(f.stat().st_size for f in weights) / 1e6, float(np.mean([len(p) for p in prompts])))


def random_student(engine: str, chosen: Settings, scratch: Path) -> Path:
    """The folder of a GPT-2 of the paper's size, untrained: with the command tokens of the current dataset."""
    from udrl_pipeline.student import export
    from udrl_pipeline.student.generation import Student
    from udrl_pipeline.student.initialise import initialise
    from udrl_pipeline.student.recipes import RECIPES
    from udrl_pipeline.student.training import _save

    paper = settings.load(preset="paper")
    workspace = Workspace(chosen)
    version = workspace.parents(dataset.ASSET)[dataset.ASSET]
    made, rows = workspace.find(dataset.ASSET, version), dataset.read_dataset(workspace, version)
    assert made is not None
    space = CommandSpace.measure(rows[rows.split == "train"], made.facts["edges"], chosen.commands)
    start = initialise(paper, space, sorted({*rows.intent, *rows.text}))
    space = space.with_best(dict.fromkeys(space.covered, 5), dict.fromkeys(space.covered, 1.0))
    # what a small corpus has too few words for: the embeddings of the preset's whole vocabulary
    start.model.resize_token_embeddings(paper.student.scratch.vocabulary)
    student = Student(start.model.to(precision.dtype()).eval(), start.tokenizer, space, "udrl")
    _save(student, space, RECIPES["udrl"], [], scratch / "student")
    if engine == "transformers":
        return scratch / "student"
    export.write_export(Student.load(scratch / "student", precise=True), scratch / "student", scratch / "export", chosen.export.block)
    return scratch / "export"


def chats(chosen: Settings, folder: Path) -> list[list[int]]:
    """Token ids of what the teacher is asked for planned rows."""
    from transformers import AutoTokenizer

    tokenizer, workspace = AutoTokenizer.from_pretrained(folder), Workspace(chosen)
    ideas = intents.read_intents(workspace, workspace.parents(intents.ASSET)[intents.ASSET])
    planned = corpus.plan(ideas, workspace.tasks, chosen, corpus.source_digest(chosen))[:32]
    asked = [corpus.request(workspace.tasks[row.task], row, chosen.teacher).messages for row in planned]
    return [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"] for m in asked]


def of_checkpoint(folder: Path, prompts: list[list[int]]) -> Subject:
    from transformers import AutoModelForCausalLM

    return of_model(AutoModelForCausalLM.from_pretrained(folder, dtype=precision.dtype(), trust_remote_code=False).eval(), prompts)


def of_architecture(config: dict[str, Any], chosen: Settings) -> Subject:
    """Random weights, and prompts as long as the teacher's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    lengths = [len(prompt) for prompt in chats(chosen, resolve(chosen.teacher.model, chosen).folder)]
    named = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **named), dtype=torch.bfloat16)
    rotary = type(empty.model.rotary_emb)(empty.config)  # its frequencies are no weights, and follow from the configuration
    model = empty.to_empty(device="cuda" if torch.cuda.is_available() else "cpu").eval()
    model.model.rotary_emb = rotary.to(model.device)
    for weights in model.parameters():
        weights.data.normal_(0, 0.02)
    drawing = np.random.default_rng(0)
    return of_model(model, [drawing.integers(10, 30_000, length).tolist() for length in lengths])


def of_model(model: Any, prompts: list[list[int]]) -> Subject:
    import torch

    model = model.to("cuda") if torch.cuda.is_available() else model

    class Clock:
        """A streamer of transformers that only notes when its first token came."""

        first, told = 0.0, 0

        def put(self, _: Any) -> None:
            self.told += 1
            if self.told == 2:  # the prompt is told first
                self.first = time.perf_counter()

        def end(self) -> None: ...

    def write(rows: Sequence[list[int]], clock: Clock | None) -> float:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        began = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, streamer=clock,
                pad_token_id=0,
            ).cpu()  # fmt: skip
        assert made.shape[1] == longest + NEW_TOKENS
        return time.perf_counter() - began

    def one(n: int) -> tuple[float, float]:
        clock, began = Clock(), time.perf_counter()
        return_after = write([prompts[n % len(prompts)]], clock)
        return clock.first - began, return_after

    parameters = sum(weights.numel() for weights in model.parameters())
    mean = float(np.mean([len(prompt) for prompt in prompts]))
    return Subject(one, lambda rows: write([prompts[n % len(prompts)] for n in range(rows)], None), parameters, parameters * 2 / 1e6, mean)


def of_vllm(folder: Path, prompts: list[list[int]]) -> Subject:
    from udrl_pipeline.evaluation.systems import count_parameters
    from udrl_pipeline.teacher.vllm_engine import CPU_ENVIRONMENT

    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": cores, **CPU_ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder),
        dtype=precision.name(),
        enforce_eager=True,
        max_model_len=max(map(len, prompts)) + NEW_TOKENS,
        enable_prefix_caching=False,
    )

    def write(rows: Sequence[list[int]], tokens: int) -> float:
        greedy = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        began = time.perf_counter()
        engine.generate([{"prompt_token_ids": row} for row in rows], greedy, use_tqdm=False)
        return time.perf_counter() - began

    def one(n: int) -> tuple[float, float]:
        asked = [prompts[n % len(prompts)]]
        return write(asked, 1), write(asked, NEW_TOKENS)

    parameters = count_parameters(folder)
    mean = float(np.mean([len(prompt) for prompt in prompts]))
    return Subject(
        one, lambda rows: write([prompts[n % len(prompts)] for n in range(rows)], NEW_TOKENS), parameters, parameters * 2 / 1e6, mean
    )


# -- measuring ----------------------------------------------------------------------------------------------------------


def measure(line: Line, requests: int, budget_s: float) -> dict[str, Any]:
    """Single requests after one that does not count, then batches, as far as they end within the budget (seconds, for each of the two)."""
    with tempfile.TemporaryDirectory() as scratch, Usage() as usage:
        subject = open_subject(line, Path(scratch))
        subject.one(0)
        first, last = list[float](), list[float]()
        energy, began = joules(), time.perf_counter()
        while len(last) < requests and (len(last) < 2 or time.perf_counter() - began < budget_s):
            seconds = subject.one(len(last) + 1)
            first.append(seconds[0])
            last.append(seconds[1])
        spent = joules()
        batches, began = dict[str, float](), time.perf_counter()
        for rows in BATCHES:
            if batches and (time.perf_counter() - began) + 2 * NEW_TOKENS * rows / max(batches.values()) > budget_s:
                break
            batches[str(rows)] = round(NEW_TOKENS * rows / subject.batch(rows), 2)
    percentiles = {f"p{q}_s": round(float(np.percentile(last, q)), 4) for q in (50, 95, 99)}
    return {
        **asdict(line), "requests": len(last), "first_token_s": round(float(np.median(first)), 4), **percentiles,
        "tokens_per_s": batches, "parameters": subject.parameters, "weights_mb": round(subject.size_mb, 1),
        "prompt_tokens": round(subject.prompt_tokens, 1), "peak_memory_mb": usage.peak // 10**6, "load": round(os.getloadavg()[0], 1),
        "joules_per_request": None if energy is None or spent is None else round((spent - energy) / len(last), 2),
    }  # fmt: skip


def joules() -> float | None:
    """What the processor has used so far, where the machine tells."""
    try:
        return int(ENERGY.read_text(encoding="ascii")) / 1e6
    except OSError:
        return None


def page(result: dict[str, Any]) -> str:
    lines: dict[str, dict[str, Any]] = result["lines"]
    energy = "" if any(line["joules_per_request"] for line in lines.values()) else " It does not tell its energy."
    parts = [
        "# Latency and throughput",
        "",
        f"`make bench-latency`, on {result['machine']}.{energy}",
        f"{NEW_TOKENS} new tokens a request; each line alone, in a process of its own. The 104M preset, Llama-3 8B, Qwen2 7B and",
        "Mistral 7B are their architectures with random weights, in bf16 (the export in int8).",
        "",
        "| | first token | p50 | p95 | p99 | requests | parameters | weights | peak memory | prompt |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, m in lines.items():
        times = " | ".join(f"{m[key]:.3f} s" for key in ("first_token_s", "p50_s", "p95_s", "p99_s"))
        size = f"{m['parameters'] / 1e6:,.1f}M | {m['weights_mb']:,.0f} MB | {m['peak_memory_mb']:,} MB | {m['prompt_tokens']:.0f} tokens"
        parts.append(f"| {name} | {times} | {m['requests']} | {size} |")
    parts += [
        "",
        "New tokens a second, by texts at once:",
        "",
        "| | " + " | ".join(map(str, BATCHES)) + " |",
        "|---|" + "---:|" * len(BATCHES),
    ]
    for name, m in lines.items():
        speeds = [f"{m['tokens_per_s'][str(rows)]:,.0f}" if str(rows) in m["tokens_per_s"] else "–" for rows in BATCHES]
        parts.append(f"| {name} | " + " | ".join(speeds) + " |")
    parts += ["", *(f"- {told}" for told in ratios(lines)), ""]
    return "\n".join(parts)


def ratios(lines: dict[str, dict[str, Any]]) -> list[str]:
    """The comparisons that matter, of what has been measured."""

    def of(name: str, other: str) -> str | None:
        if name in lines and other in lines:
            ours, theirs = lines[name]["p50_s"], lines[other]["p50_s"]
            return f"{name}: 1/{theirs / ours:,.1f} of the time of {other} ({ours:.3f} s against {theirs:.3f} s, p50)"
        return None

    told = [
        *(of("104M preset, export", f"{name}, transformers") for name in ARCHITECTURES),
        *(of("student, export", other) for other in ("teacher, transformers", "teacher, vllm", "student, transformers")),
    ]
    for name in ("student", "104M preset"):
        if {f"{name}, export", f"{name}, transformers"} <= lines.keys():
            ours, theirs = (lines[f"{name}, {engine}"]["tokens_per_s"].get("32") for engine in ("export", "transformers"))
            if ours and theirs:
                told.append(f"{name}, 32 texts at once: {ours / theirs:.1f} times the tokens/s of transformers")
    return [line for line in told if line]


def plot(result: dict[str, Any], file: Path) -> None:
    """Seconds of a request, a bar a line, on a logarithmic axis; throughput against the texts at once."""
    from matplotlib.figure import Figure

    lines = result["lines"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    names = list(lines)[::-1]
    bars.barh(names, [lines[name]["p50_s"] for name in names], color="#0072b2")
    bars.set_xscale("log")
    bars.set_xlabel(f"seconds for {NEW_TOKENS} tokens, one request (median)")
    for name, m in lines.items():
        points = sorted((int(rows), speed) for rows, speed in m["tokens_per_s"].items())
        curves.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    curves.set(xscale="log", yscale="log", xlabel="texts at once", ylabel="new tokens a second")
    curves.legend(frameon=False, fontsize=7)
    for axes in (bars, curves):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for the single requests of a line, and for its batches")
    parser.add_argument("--only", nargs="+", metavar="SUBJECT", help=f"of {', '.join(dict.fromkeys(line.subject for line in LINES))}")
    parser.add_argument("--out", type=Path, default=Path("docs/results/latency.json"))
    parser.add_argument("--line", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.line:
        [line] = [line for line in LINES if line.name == arguments.line]
        print(json.dumps(measure(line, arguments.requests, arguments.budget)))
        return
    result: dict[str, Any] = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {"lines": {}}
    result["machine"] = machine()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for line in LINES:
        if line.name not in result["lines"] and (not arguments.only or line.subject in arguments.only):
            options = ["--requests", str(arguments.requests), "--budget", str(arguments.budget)]
            done = subprocess.run([sys.executable, __file__, "--line", line.name, *options], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{line.name:32} not measured: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            result["lines"][line.name] = json.loads(done.stdout.strip().splitlines()[-1])
            result["lines"] = {known.name: result["lines"][known.name] for known in LINES if known.name in result["lines"]}
            arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
        if m := result["lines"].get(line.name):
            times = "  ".join(f"{key.removesuffix('_s')} {m[key]:.3f} s" for key in ("first_token_s", "p50_s", "p95_s"))
            print(f"{line.name:32} {times}  most {max(m['tokens_per_s'].values()):,.0f} tokens/s", flush=True)
    arguments.out.with_suffix(".md").write_text(page(result), encoding="utf-8")
    plot(result, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    if allocator.ENVIRONMENT.items() <= os.environ.items():
        main()
    else:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | allocator.ENVIRONMENT)
