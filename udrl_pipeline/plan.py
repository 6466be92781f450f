"""What a number of rows costs on paper: hours, tokens, bytes and memory of each step, and what gives way first.

A plan multiplies; it looks into no store and asks no model. Its rates are measured ones (`MEASURED`) or parameters of the machine: no GPU
was measured, so a plan for GPUs, for another teacher or for another student asks for its rate instead of making one up.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from udrl_pipeline.errors import PlanError
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.recipes import USUAL

#: Rows that a plan tells of when nobody says how many.
SIZES = (1e6, 1e8, 1e9)
MOST_ROWS = 1e15
HOUR, DAY, MICRO, GB = 3600.0, 86400.0, 1e-6, 1e9
#: Ideas that the package brings: the most that `intents.builtin` can give.
BUILTIN_IDEAS = 11_440
#: Bytes that a parameter takes: in a checkpoint (itself and AdamW's two moments, 4 bytes each), and in a finished student.
CHECKPOINT_BYTES, WEIGHT_BYTES = 12, 2


@dataclass(frozen=True, slots=True)
class Measured:
    """Rates of one machine: 2 cores of an AMD EPYC with AVX-512, 24 GB, no GPU, with the params.yaml of this project.

    Each group names the command that gave it and its file in docs/results; tests/test_plan.py holds the two together.
    """

    # `benchmarks/scale.py --rows 40000` on one core of a machine with other work: scale.json
    idea_us: float = 41.76
    corpus_us: float = 457.27  # a row planned, committed and published, without the teacher
    corpus_memory: float = 4_825
    score_us: float = 13_501.28
    pair_us: float = 0.7  # two texts of one idea and task, compared
    sequence_us: float = 617.36  # a training row made ready, before the first step
    sequence_memory: float = 4_953
    # `benchmarks/teacher_throughput.py`, vLLM on both cores: teacher.json
    teacher_tokens_per_s: float = 171.88
    tokens_per_row: float = 31.36
    # `benchmarks/ledger.py`, a million rows and their scores, with AVX-512: ledger.json
    label_us: float = 34.54
    label_memory: float = 3_053.45
    duckdb_bytes: float = 381.96
    parquet_bytes: float = 75.67  # of a row in a snapshot of the corpus or the dataset
    # `benchmarks/assets.py`: assets.json
    kept: float = 0.7704  # share of the teacher's rows that get into the dataset
    report_s: float = 225.9
    # `make run`: the README for the seconds, the manifest of student_export/udrl for the bytes, default/ for the rest
    training_tokens_per_s: float = 2_230.0
    tokens_per_sequence: float = 30.8
    sweep_s: float = 125.0  # of a student, beside its training
    export_s: float = 21.1
    export_bytes: float = 17.7e6
    report_bytes: float = 406443
    parameters: float = 11_599_360


MEASURED = Measured()
#: What the teacher and the student were measured with; anything else has a rate of its own.
MEASURED_TEACHER = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEASURED_WORDS = 95 / 7  # the mean of `teacher.asked_words`


@dataclass(frozen=True, slots=True)
class Machine:
    """What the plan is for. A rate that is None is the measured one.

    Attributes:
        teacher_tokens_per_s: Tokens that one teacher writes a second; with `gpus`, on one GPU.
        gpus: GPUs with a teacher each; None: no GPU.
        training_tokens_per_s: Tokens a second of a training, all its processes together.
        scored_rows_per_s: Rows a second of all scorers together.
        memory_gb: Memory of the machine that the steps run on.
        days: How long a step may take.
        versions: Snapshots of corpus and dataset that are kept.
    """

    teacher_tokens_per_s: float | None = None
    gpus: int | None = None
    training_tokens_per_s: float | None = None
    scored_rows_per_s: float | None = None
    memory_gb: float = 24.0
    days: float = 7.0
    versions: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise PlanError(f"{value:g} is not above 0, or not finite", where=option(name), remedy="give a number above 0")
        if self.gpus is not None and self.teacher_tokens_per_s is None:
            raise PlanError("no GPU was measured here", where="--gpus", remedy=f"give {option('teacher_tokens_per_s')}, of one GPU; {TOLD}")


#: How a user learns a rate.
TOLD = "a run of few ideas tells it: teacher tokens and seconds in its table, tokens/s of the training in its log"


def option(name: str) -> str:
    """How a field of `Machine` is called on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a step does or keeps. What is `_once` is the same for any number of rows; the rest grows with them, up to `up_to`."""

    step: str
    name: str
    seconds_per_row: float = 0.0
    seconds_once: float = 0.0
    tokens_per_row: float = 0.0
    bytes_per_row: float = 0.0
    bytes_once: float = 0.0
    memory_per_row: float = 0.0
    up_to: float = math.inf

    def costs(self, rows: float) -> dict[str, float]:
        grown = min(rows, self.up_to)
        return {
            "hours": (self.seconds_per_row * grown + self.seconds_once) / HOUR,
            "tokens": self.tokens_per_row * grown,
            "bytes": self.bytes_per_row * grown + self.bytes_once,
            "memory_bytes": self.memory_per_row * grown,
        }


@dataclass(frozen=True, slots=True)
class Limit:
    """What gives way at how many rows, and what to do then. `setting` is None where no line of params.yaml helps yet."""

    name: str
    rows: float
    setting: str | None
    change: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Costs by part, and the limits, the first to be met first."""

    rows_now: int
    parts: tuple[Part, ...]
    limits: tuple[Limit, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.step for part in self.parts))

    def costs(self, rows: float, step: str | None = None) -> dict[str, float]:
        """Hours, tokens and bytes of a step, or of all, added up; of memory the most, since one part follows another."""
        found = [part.costs(rows) for part in self.parts if step in (None, part.step)]
        added = {name: sum(costs[name] for costs in found) for name in ("hours", "tokens", "bytes")}
        return added | {"memory_bytes": max(costs["memory_bytes"] for costs in found)}

    def met(self, rows: float) -> tuple[Limit, ...]:
        """The limits that lie below so many rows: the one that they are farthest beyond comes first."""
        return tuple(limit for limit in self.limits if limit.rows < rows)

    def next(self, rows: float) -> Limit | None:
        """The limit that is met next."""
        return next((limit for limit in self.limits if limit.rows >= rows), None)

    def as_dict(self, rows: Iterable[float]) -> dict[str, Any]:
        return {"rows_of_params": self.rows_now, "per_million": self._at(1e6), "at": [self._at(number) for number in rows]}

    def _at(self, rows: float) -> dict[str, Any]:
        following = self.next(rows)
        return {
            "rows": rows,
            **_rounded(self.costs(rows)),
            "steps": {
                step: _rounded(self.costs(rows, step)) | {"parts": {p.name: _rounded(p.costs(rows)) for p in self.parts if p.step == step}}
                for step in self.steps
            },
            "met": [_rounded(asdict(limit)) for limit in self.met(rows)],
            "next": _rounded(asdict(following)) if following else None,
        }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Hours to four digits, everything that is counted to none."""
    return {name: round(v, 4) if name == "hours" else round(v) if isinstance(v, float) else v for name, v in values.items()}


def make_plan(settings: Settings, machine: Machine) -> Plan:
    """The plan of these settings on a machine.

    Raises:
        PlanError: The settings need a rate that was not measured.
    """
    per_idea = len(settings.tasks.names) * settings.teacher.samples
    parts = _parts(settings, machine, per_idea)
    ideas = Limit("ideas: those of the package", BUILTIN_IDEAS * per_idea, "intents.sources", "files with ideas of your own")
    limits = [ideas, *_of_time(parts, machine.days), *_of_memory(parts, machine.memory_gb)]
    limits = sorted((limit for limit in limits if math.isfinite(limit.rows)), key=lambda limit: limit.rows)
    return Plan(settings.intents.builtin * per_idea, parts, tuple(limits))


def _parts(settings: Settings, machine: Machine, per_idea: int) -> tuple[Part, ...]:
    found, teacher, student = MEASURED, settings.teacher, settings.student
    tokens = found.tokens_per_row * sum(teacher.asked_words) / len(teacher.asked_words) / MEASURED_WORDS
    written = _teacher_rate(settings, machine) * (machine.gpus or 1)
    scored = 1 / machine.scored_rows_per_s if machine.scored_rows_per_s else found.score_us * MICRO
    # a student reads the kept rows of the training split; each usual recipe trains one, which is one after the other
    read, students = found.kept * (1 - settings.intents.validation - settings.intents.test) * student.epochs, len(USUAL)
    trained = students * read * found.tokens_per_sequence
    cut = student.max_steps * student.batch_rows / read if student.max_steps else math.inf
    parameters = found.parameters if _is_measured_student(settings) else 0
    snapshot = found.parquet_bytes * machine.versions
    return (
        Part("intents", "ideas", found.idea_us * MICRO / per_idea),
        Part("teacher_corpus", "teacher", tokens / written, tokens_per_row=tokens),
        Part("teacher_corpus", "rows", found.corpus_us * MICRO, memory_per_row=found.corpus_memory),
        Part("teacher_corpus", "DuckDB", bytes_per_row=found.duckdb_bytes),  # scores and ledger included
        Part("teacher_corpus", "Parquet", bytes_per_row=snapshot),
        Part("labeled_dataset", "scorer", scored),
        Part("labeled_dataset", "labels", found.label_us * MICRO, memory_per_row=found.label_memory),
        # every text of an idea and task is compared with those before it
        Part("labeled_dataset", "near duplicates", (teacher.samples - 1) / 2 * found.pair_us * MICRO),
        Part("labeled_dataset", "Parquet", bytes_per_row=found.kept * snapshot),
        Part("student", "sequences", students * read * found.sequence_us * MICRO, memory_per_row=read * found.sequence_memory),
        Part("student", "training", trained / _training_rate(settings, machine), found.sweep_s, trained, up_to=cut),
        Part("student", "weights", bytes_once=students * parameters * WEIGHT_BYTES),
        Part("student", "checkpoint", bytes_once=parameters * CHECKPOINT_BYTES),
        Part("evaluation_report", "report", seconds_once=found.report_s, bytes_once=found.report_bytes),
        Part("student_export", "int8", seconds_once=found.export_s, bytes_once=found.export_bytes if parameters else 0),
    )


def _teacher_rate(settings: Settings, machine: Machine) -> float:
    """Tokens a second of one teacher."""
    if machine.teacher_tokens_per_s is not None:
        return machine.teacher_tokens_per_s
    if settings.teacher.model.sha256 == MEASURED_TEACHER and settings.teacher.engine in ("auto", "vllm"):
        return MEASURED.teacher_tokens_per_s
    raise PlanError(
        f"only the default teacher with vllm was measured, not {settings.teacher.model.ref} with {settings.teacher.engine}",
        where="params.yaml: teacher",
        remedy=f"give {option('teacher_tokens_per_s')}; {TOLD}",
    )


def _training_rate(settings: Settings, machine: Machine) -> float:
    if machine.training_tokens_per_s is not None:
        return machine.training_tokens_per_s
    if _is_measured_student(settings):
        return MEASURED.training_tokens_per_s
    raise PlanError(
        f"only the default student was measured, not this one ({settings.student.init_from}, {settings.student.optimiser})",
        where="params.yaml: student",
        remedy=f"give {option('training_tokens_per_s')}; {TOLD}",
    )


def _is_measured_student(settings: Settings) -> bool:
    return settings.student.init_from == "recorded" and settings.student.optimiser == "adamw"


#: What helps a part that takes too long: a setting, if there is one, and what to do.
FASTER = {
    "teacher": ("teacher.cluster: ray", "a teacher on each of many GPUs (`teacher.engine: vllm`, `ray.workers`)"),
    "rows": (None, "one process plans, commits and publishes the rows; `store: postgresql://` has one writer at a time, too"),
    "scorer": ("rewards.cluster: ray", "a scorer on each of many workers (`ray.workers`, `ray.gpus`)"),
    "labels": (None, "one process labels and judges all rows"),
    "near duplicates": ("teacher.samples", "fewer samples and more ideas: what is compared grows with the square of the samples"),
    "sequences": (None, "one process draws and tokenises all rows; `student.epochs` below 1 takes fewer of them"),
    "training": ("student.processes", "more processes (`student.cluster: ray`), or less of each pass (`student.epochs`, `max_steps`)"),
}
#: And one that needs too much memory.
SMALLER = {
    "rows": (None, "plan, keys and rows of the whole corpus are in memory at once; a machine with more memory"),
    "labels": (None, "rows, labels and what is expected of them are one table in memory; a machine with more memory"),
    "sequences": ("student.epochs", "below 1, so that fewer sequences are held; the table of all rows is held all the same"),
}


def _of_time(parts: Iterable[Part], days: float) -> Iterable[Limit]:
    for part in parts:
        if not part.seconds_per_row:
            continue
        rows = max(0.0, (days * DAY - part.seconds_once) / part.seconds_per_row)
        if part.name in FASTER and rows < part.up_to:
            yield Limit(f"{days:g} days: {part.step}, {part.name}", rows, *FASTER[part.name])


def _of_memory(parts: Iterable[Part], memory_gb: float) -> Iterable[Limit]:
    for part in parts:
        if part.memory_per_row:
            yield Limit(f"{memory_gb:g} GB: {part.step}, {part.name}", memory_gb * GB / part.memory_per_row, *SMALLER[part.name])
