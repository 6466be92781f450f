"""params.yaml -> frozen, validated models. Every knob is described here, with its unit and range.

`load()` reads params.yaml, lays a preset (presets/<name>.yaml) over it and validates the result. An unknown key, a wrong
type or a value out of range is a `SettingsError` that names the key, the value and what is allowed.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from udrl_pipeline.characters import quoted
from udrl_pipeline.errors import SettingsError
from udrl_pipeline.yaml_text import parse_yaml

PARAMS_ENV = "UDRL_PARAMS"
PRESET_ENV = "UDRL_PRESET"

#: The fields of a cron expression and their ranges.
CRON_RANGES = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))

Share = Annotated[float, Field(ge=0, le=1)]
#: Also a file's name, a token and a part of a plot's id, so it holds nothing that means something there.
TaskName = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,30}$")]
#: What the gate can look at: figures that the report compares two students by, higher being better.
GateMeasure = Literal["reward", "relevance", "spread", "distinct_2", "retrieval", "finished"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
#: Where a step's work is done. Like `teacher.engine` it is no part of a version: the same rows come from one process and from a cluster.
Cluster = Annotated[Literal["ray"] | None, Field(description="none: in this process | ray: by the workers of `ray` below")]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes`, `on` and `true` as a truth value, which would count as the number 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError(f"must not be {'yes' if value else 'no'} (true or false)")
        return value


class ModelRef(_Settings):
    """Where a model's files come from, and what they must hash to."""

    ref: str = Field(description="wheel:package==version | path:folder | hf:org/name@revision")
    file: str = Field("", description="The file (GGUF, safetensors) or folder inside the reference; empty: all of it")
    sha256: Sha256 | None = Field(None, description="sha256 of the GGUF file, or of the folder's model.safetensors")

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, file: str) -> str:
        if PurePath(file).is_absolute() or ".." in PurePath(file).parts or "\0" in file:
            raise ValueError("must lead to something inside the reference")
        return file


class IntentsSettings(_Settings):
    builtin: int = Field(4320, ge=0, description="Built-in intents to use; a larger number keeps the smaller one's")
    seed: int = Field(13, ge=0, description="Order in which the built-in intents are drawn")
    sources: tuple[str, ...] = Field((), description="CSV, JSONL or Parquet files, or folders of them")
    folder: str | None = Field("intents", description="A folder of such files that is read when it exists, and watched; none: no folder")
    max_words: int = Field(16, ge=1, le=200, description="Longer intents go to quarantine (words)")
    validation: Share = Field(0.05, description="Share of intents in the validation split")
    test: Share = Field(0.05, description="Share of intents in the test split")

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> "IntentsSettings":
        if self.validation + self.test > 0.9:
            raise ValueError(f"validation + test = {self.validation + self.test:g} leaves less than a tenth to train on")
        return self


class TasksSettings(_Settings):
    names: tuple[TaskName, ...] = Field(("image", "template", "search"), min_length=1, description="Tasks to build")
    folder: str | None = Field(None, description="A folder with the user's own <task>.yaml files")

    @model_validator(mode="after")
    def _each_once(self) -> "TasksSettings":
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"names holds {', '.join(twice)} more than once")
        return self


class ServerSettings(_Settings):
    base_url: str = Field(
        "http://127.0.0.1:8000/v1", pattern="^https?://[^/@]+(/.*)?$", description="An OpenAI-compatible endpoint, without a password"
    )
    model: str = Field("teacher", description="The name under which the endpoint serves the model")
    api_key_env: str = Field("UDRL_TEACHER_API_KEY", description="The environment variable with the key; never stored")
    concurrency: int = Field(16, ge=1, le=1024, description="Requests in flight")
    timeout_s: float = Field(60, gt=0, description="Seconds for one request")
    retries: int = Field(4, ge=0, le=20, description="Retries of a request, with exponential backoff")
    repetition_penalty: bool = Field(True, description="Send repetition_penalty (vLLM takes it; some servers refuse it)")


class TeacherSettings(_Settings):
    model: ModelRef
    engine: Literal["auto", "transformers", "vllm", "server"] = Field(
        "auto", description="auto: vllm where it is installed, else transformers"
    )
    cluster: Cluster = None
    tensor_parallel: int = Field(1, ge=1, description="GPUs that one vllm engine spreads the model over (on one machine)")
    recorded: bool = Field(True, description="Import the package's recorded rows where their keys match")
    samples: int = Field(1, ge=1, le=1000, description="Rows per intent and task")
    asked_words: tuple[Annotated[int, Field(ge=1, le=400)], ...] = Field(
        min_length=1, description="Lengths to ask the teacher for (words); one is drawn per row"
    )
    examples: int = Field(3, ge=0, le=20, description="Example pairs shown per row, of the six nearest in length")
    temperature: float = Field(0.5, gt=0, le=2, description="Sampling temperature of the teacher")
    top_p: float = Field(0.92, gt=0, le=1)
    repetition_penalty: float = Field(1.1, ge=1, le=2)
    seed: int = Field(7, ge=0, description="Seed of the engine; row identity does not depend on it")
    chunk_rows: int = Field(384, ge=1, description="Most rows between two commits; fewer where the teacher is slow")
    batch_rows: int = Field(32, ge=1, description="Rows per forward pass of the transformers engine")
    max_model_len: int = Field(1024, ge=64, description="Context of the vllm engine (tokens)")
    server: ServerSettings = ServerSettings()


class RewardWeights(_Settings):
    fidelity: float = Field(1.0, ge=0)
    gain: float = Field(0.6, ge=0)
    repetition: float = Field(0.5, ge=0)


class RewardSettings(_Settings):
    scorer: ModelRef
    cluster: Cluster = None
    fidelity_cap: float = Field(0.7, gt=0, le=1, description="Relevance (cosine) above which fidelity earns nothing more")
    gain_cap: float = Field(0.7, gt=0, le=1, description="Share of new content words above which gain earns nothing more")
    weights: RewardWeights = RewardWeights()


class QualitySettings(_Settings):
    min_words: int = Field(3, ge=1, description="Shorter texts are quarantined (words)")
    max_words: int = Field(60, ge=1, description="Longer texts are quarantined (words)")
    max_repetition: Share = Field(0.3, description="Share of repeated word bigrams")
    min_latin: Share = Field(0.9, description="Share of letters in Latin script; 0 switches the expectation off")
    max_copied_example: Share = Field(0.7, description="Share of an example pair's word trigrams found in the text")
    max_jaccard: Share = Field(0.85, description="Similarity to another row of the same intent and task")
    min_rows_per_task: int = Field(50, ge=1, description="Training rows that every task needs")
    max_quarantined: Share = Field(0.6, description="Share of the teacher's rows that may fail")
    min_reward_std: float = Field(0.02, ge=0, description="Spread of rewards that every task needs")
    max_duplicate_rate: Share = Field(0.2, description="Share of rows that may repeat another row")
    max_drift: float = Field(0.1, ge=0, description="Change of a task's mean reward against the last version")


class CommandSettings(_Settings):
    words: tuple[int, int] = Field((6, 40), description="Shortest and longest length with a token of its own (words)")
    words_per_token: int = Field(1, ge=1, le=40, description="Neighbouring lengths that share a token; 1: each has its own")
    quality_bins: int = Field(5, ge=2, le=20, description="Quantile bins of the reward, per task")
    order: Literal["last", "first"] = Field(
        "last", description="Where length and quality stand: last, just before the text | first, before task and intent"
    )
    dropout: Share = Field(0.1, description="Share of training sequences on which a command is left out, each for itself")

    @model_validator(mode="after")
    def _ordered(self) -> "CommandSettings":
        if not 1 <= self.words[0] < self.words[1] <= 400:
            raise ValueError(f"words must rise from at least 1 to at most 400, not {list(self.words)}")
        return self


class ScratchSettings(_Settings):
    """The GPT-2 of `init_from: scratch`."""

    layers: int = Field(12, ge=1)
    width: int = Field(768, ge=8)
    heads: int = Field(12, ge=1)
    vocabulary: int = Field(16384, ge=300, description="Entries of the byte-level BPE trained on the training split")


class PruneSettings(_Settings):
    """The cut of `init_from: pruned-teacher`."""

    layers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        9, description="How many layers are kept, chosen by `rule`; or the very layers, counted from 0, such as [0, 1, 11, 29]"
    )
    rule: Literal["ends", "even"] = Field("ends", description="ends: the first ones and the last two | even: spread evenly")
    keep_merges: int = Field(6000, ge=0, description="The teacher's most frequent merges, kept beside those of the corpus")


class StudentSettings(_Settings):
    init_from: str = Field("pruned-teacher", description="scratch | pruned-teacher | recorded | previous | path:folder | hf:org/name@rev")
    scratch: ScratchSettings = ScratchSettings()
    prune: PruneSettings = PruneSettings()
    seed: int = Field(11, ge=0, description="Seed of initialisation, order and dropout")
    epochs: float = Field(2.0, gt=0, description="Passes over the training rows of a run that starts anew")
    warm_epochs: float = Field(1.0, gt=0, description="Passes of a run that starts from the previous student")
    max_steps: int = Field(0, ge=0, description="Upper limit of optimiser steps; 0 for none")
    batch_rows: int = Field(32, ge=1, description="Rows per optimiser step")
    optimiser: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw | muon: for weight matrices, the rest by AdamW; learns faster where the start is scratch"
    )
    learning_rate: float = Field(8e-4, gt=0, description="Highest learning rate, reached after the warm-up")
    warmup: Share = Field(0.05, description="Share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0)
    max_tokens: int = Field(128, ge=16, description="Longest sequence (tokens); longer rows are quarantined by length before")
    word_ideas: int = Field(
        4,
        ge=0,
        description="A word is written when it stands in the rows of so many ideas (in proportion fewer below 2,000 ideas), "
        "or in an idea; 0: whatever the tokens spell",
    )
    idea_dropout: float = Field(
        0.0, ge=0, le=0.5, description="Share of training sequences on which the idea is left out, so that it can be guided (0.05 does)"
    )
    swapped_words: float = Field(
        0.0, ge=0, le=1,
        description="Share of training sequences on which a word that idea and text hold is another, so that unseen words are taken over",
    )  # fmt: skip
    save_every: int = Field(100, ge=1, description="Optimiser steps between two checkpoints")
    processes: int = Field(1, ge=1, description="Processes that share each batch (DDP); a divisor of batch_rows. No part of a version")
    cluster: Cluster = None

    @model_validator(mode="after")
    def _equal_shares(self) -> "StudentSettings":
        if self.batch_rows % self.processes:
            raise ValueError(f"batch_rows {self.batch_rows} cannot be shared evenly by {self.processes} processes")
        return self


class RoundsSettings(_Settings):
    """Rounds of exploring: what `explored_rows` samples, and how `student/udrl-rounds` learns from it."""

    number: int = Field(1, ge=1, le=100, description="The round: 1 samples student/udrl, 2 the student of round 1, and so on")
    intents: int = Field(1200, ge=1, description="Training intents per task that a round samples, each round others")
    samples: int = Field(1, ge=1, le=100, description="Texts per intent and task")
    epochs: float = Field(0.25, gt=0, description="Passes over the pool of a round's training, which starts from the sampled student")


class LlmComparator(_Settings):
    """Another model to compare with: any engine and model; one that cannot be loaded is shown as `not measured`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,60}$", description="Its name in the report")
    model: ModelRef
    engine: Literal["auto", "transformers", "vllm", "server"] = "auto"
    server: ServerSettings = ServerSettings()


class EvaluationSettings(_Settings):
    intents: int = Field(100, ge=2, description="Held-out intents per task that every system is compared on")
    sweep_intents: int = Field(60, ge=1, description="Validation intents on which the shipped command is chosen")
    guidance: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field(
        (1.0, 1.5, 2.0, 3.0, 4.0), min_length=1, description="Weights of the quality command that the sweep tries; 1 is unguided"
    )
    idea_guidance: float = Field(
        1.0, ge=0, le=10,
        description="Weight of the idea at decoding, which a student keeps; 1 is as trained, more keeps texts to it and obeys quality less",
    )  # fmt: skip
    min_diversity: float = Field(
        0.92, ge=0, le=2, description="Spread that a guided student must keep, as a share of the teacher's on the same intents"
    )
    quality_intents: int = Field(50, ge=2, description="Held-out intents per task and commanded quality")
    lengths: tuple[Annotated[int, Field(ge=1, le=400)], ...] = Field(
        (8, 12, 16, 24, 32, 40), min_length=1, description="Commanded lengths to test (words)"
    )
    length_intents: int = Field(40, ge=2, description="Held-out intents per task and commanded length")
    temperature: float = Field(0.8, ge=0, le=2, description="Sampling temperature of the students; 0 is greedy")
    top_p: float = Field(0.92, gt=0, le=1)
    min_p: float = Field(0.1, ge=0, le=1, description="Tokens less probable than this share of the likeliest one are not drawn")
    repetition_penalty: float = Field(1.1, ge=1, le=2)
    seed: int = Field(5, ge=0, description="Seed of the students' sampling and of the bootstrap")
    judge_rows: int = Field(40, ge=2, description="Texts per system and task that the second judge reads")
    rubric_judge: LlmComparator | None = Field(
        None, description="A chat model that compares texts with the teacher's by a rubric, as many as `judge_rows`; none: not measured"
    )
    bootstrap: int = Field(2000, ge=100, description="Draws of the intents behind each 95% interval")
    latency_repeats: int = Field(8, ge=2, description="Single requests timed per model")
    latency_tokens: int = Field(32, ge=1, description="New tokens of each timed request, the same for every model")
    latency_batch: int = Field(8, ge=1, description="Requests of the batch that tells the throughput")
    comparators: tuple[LlmComparator, ...] = Field((), description="Other models to compare with")

    @model_validator(mode="after")
    def _distinct_names(self) -> "EvaluationSettings":
        names = [comparator.name for comparator in self.comparators]
        if len(set(names)) < len(names):
            raise ValueError(f"two comparators have the same name: {', '.join(names)}")
        if taken := sorted({"teacher", "teacher_kept", "teacher_without_examples"}.intersection(names)):
            raise ValueError(f"a comparator cannot be called {taken[0]!r}")
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """How students are sampled: keyword arguments of `Student.generate`."""
        return self.model_dump(include={"temperature", "top_p", "min_p", "repetition_penalty", "seed"})


class ExportSettings(_Settings):
    """The student made fast: `student_export/<recipe>`."""

    weights: Literal["int8", "fp32"] = Field(
        "int8", description="int8: a quarter of the size, and the fastest | fp32: as exact as transformers"
    )
    block: Literal[16, 32, 64, 128, 256] = Field(128, description="Weights that share a scale in int8; fewer are more exact, and larger")
    parity_prompts: int = Field(
        500, ge=1, description="Validation prompts whose greedy tokens must be those of transformers in fp32; all where there are fewer"
    )
    quality_texts: int = Field(300, ge=1, description="Validation texts on which int8 is compared with fp32; all where there are fewer")
    max_reward_loss: float = Field(0.03, ge=0, description="Mean reward that int8 may lose against fp32 on the same prompts and draws")
    max_length_change: Share = Field(0.05, description="Change of the mean length against fp32 on the same, as a share of it")


class PromotionSettings(_Settings):
    """When a new student takes the place of the one in use: where the whole 95% interval of each measure, as a share of the mean
    of the one in use, lies above 1 - `margin`."""

    margin: float = Field(
        0.02, ge=0, le=1, description="Share of the mean of the student in use that a new one may lose and still count as not worse"
    )
    measures: tuple[GateMeasure, ...] = Field(
        ("reward", "relevance", "spread", "finished"), min_length=1, description="Figures of the report that must not be worse"
    )

    @field_validator("measures")
    @classmethod
    def _once_each(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(measures)) < len(measures):
            raise ValueError("names a measure twice")
        return measures


class ScheduleSettings(_Settings):
    """When the schedule looks, and what must be there for it to train. Without anything new it never does."""

    cron: str = Field("0 3 * * *", description="When the retraining schedule looks, as a cron expression; the schedule is off by default")
    timezone: str = Field("UTC", description="The time zone of `cron`, such as Europe/Berlin")
    new_rows: int = Field(200, ge=1, description="Train when the student has not seen this many of the rows that are wanted now")
    drift: float = Field(0.05, gt=0, description="... or a task's mean reward has moved this far from that of the student's rows")
    age_days: float = Field(30, gt=0, description="... or the student is this old, and anything is new (days)")
    changes: bool = Field(True, description="... or a setting or the code of scoring, training or evaluation has changed")

    @model_validator(mode="before")
    @classmethod
    def _a_cron_expression_alone(cls, value: Any) -> Any:
        """As it stood in params.yaml, and stands in the ledger, from before there were rules."""
        return {"cron": value} if isinstance(value, str) else value

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, cron: str) -> str:
        fields = cron.split()
        if len(fields) != len(CRON_RANGES):
            raise ValueError("must have five fields (minute hour day month weekday), such as `0 3 * * *`")
        for field, (name, lowest, highest) in zip(fields, CRON_RANGES, strict=True):
            numbers = [int(number) for number in re.findall(r"(?<!/)\b\d+", field)]
            if not re.fullmatch(r"[\w*/,-]+", field) or not all(lowest <= number <= highest for number in numbers):
                raise ValueError(f"{name} is {field!r}, not * or something from {lowest} to {highest}")
        return cron

    @field_validator("timezone")
    @classmethod
    def _is_there(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is no time zone; name one such as UTC or Europe/Berlin") from None
        return timezone


class ServeSettings(_Settings):
    """`udrl serve`: what one server takes in, and how it batches it. How texts are sampled stands in `evaluation`."""

    batch_texts: int = Field(32, ge=1, le=1024, description="Most texts that go through the model together")
    max_wait_ms: float = Field(5, ge=0, le=1000, description="How long a request waits for others to go with it (ms)")
    queue_texts: int = Field(256, ge=1, le=100_000, description="Most texts that wait; more are refused with 429 and Retry-After")
    timeout_s: float = Field(60, gt=0, le=3600, description="Seconds for one request, waiting included; then 504")
    drain_s: float = Field(60, ge=0, le=3600, description="Seconds for requests that are there when the server is told to end")
    reload_s: float = Field(5, gt=0, le=3600, description="How often it looks whether another student was put into use (s)")
    max_texts: int = Field(32, ge=1, le=1000, description="Most texts of one request: ideas times `n`")
    max_words: int = Field(60, ge=1, le=400, description="Longest length that may be asked for (words); ideas: `intents.max_words`")
    max_body_bytes: int = Field(65_536, ge=1024, le=2**26, description="Largest request body (bytes)")
    scores: bool = Field(False, description="Tell the reward of each text, too; costs the scorer's memory and some milliseconds a text")
    api_key_env: str = Field("UDRL_SERVE_API_KEY", description="The environment variable with the key that clients must send; empty: none")


class RaySettings(_Settings):
    """The cluster of every step that says `cluster: ray`. No part of any version."""

    address: str | None = Field(
        None,
        pattern="^(auto|local|[^:/@ ]+:[0-9]+)$",
        description="HOST:PORT of the head (6379), or auto: the cluster that this machine is a node of | local: one on this machine for as "
        "long as the step runs | none: $RAY_ADDRESS where it is set, else local",
    )
    workers: int = Field(2, ge=1, description="Workers of the teacher and of scoring; each holds an engine, or a scorer, of its own")
    cpus: float = Field(1, ge=0, description="CPUs that a worker, or a process of training, takes")
    gpus: float = Field(0, ge=0, description="GPUs that each takes; a worker of the teacher takes teacher.tensor_parallel times as many")
    attempts: int = Field(3, ge=1, le=100, description="How often a shard is begun before its rows are set aside")


class Settings(_Settings):
    artifacts: str = Field(
        "artifacts", description="Folder of versions, DuckDB file and caches, relative to params.yaml; or a URL such as s3://bucket/prefix"
    )
    artifacts_cache: str = Field(
        "artifacts", description="While `artifacts` is a URL: the local folder where work is done and versions are kept"
    )
    store: str | None = Field(
        None,
        pattern="^postgres(ql)?://",
        description="Where the ledger and the rows are: a Postgres URL without a password (PGPASSWORD or ~/.pgpass has it); none: DuckDB",
    )
    scratch: str | None = Field(
        None, description="Folder of work in progress; every node of a cluster must see it under this path. none: `.work` in artifacts"
    )
    intents: IntentsSettings = IntentsSettings()
    tasks: TasksSettings = TasksSettings()
    teacher: TeacherSettings
    rewards: RewardSettings
    quality: QualitySettings = QualitySettings()
    commands: CommandSettings = CommandSettings()
    student: StudentSettings = StudentSettings()
    rounds: RoundsSettings = RoundsSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    export: ExportSettings = ExportSettings()
    promotion: PromotionSettings = PromotionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    serve: ServeSettings = ServeSettings()
    ray: RaySettings = RaySettings()

    _root: Path = Path()

    @field_validator("artifacts")
    @classmethod
    def _holds_no_secret(cls, artifacts: str) -> str:
        if "://" in artifacts and "@" in artifacts.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError("must hold no credentials: the environment has them, as the store's own tools read them")
        return artifacts

    @field_validator("store")
    @classmethod
    def _holds_no_password(cls, store: str | None) -> str | None:
        if store and (urlsplit(store).password or "password=" in store):
            raise ValueError("must hold no password: it would stand in the ledger; set PGPASSWORD or write it to ~/.pgpass")
        return store

    @property
    def root(self) -> Path:
        """The folder of params.yaml; every relative path in it starts here."""
        return self._root

    @property
    def artifacts_folder(self) -> Path:
        """The local folder of versions."""
        return self.path(self.artifacts_cache if self.artifacts_url else self.artifacts)

    @property
    def artifacts_url(self) -> str | None:
        """Where versions are published to besides; None: nowhere."""
        return self.artifacts if "://" in self.artifacts else None

    @property
    def scratch_folder(self) -> Path:
        return self.path(self.scratch) if self.scratch else self.artifacts_folder / ".work"

    def path(self, text: str) -> Path:
        """A path from params.yaml: absolute, or relative to the folder of params.yaml."""
        return self.root / Path(text).expanduser()


def load(path: Path | str | None = None, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read params.yaml (default: $UDRL_PARAMS, else ./params.yaml), the preset and overrides such as `{"student.seed": 3}`.

    Raises:
        SettingsError: A file is missing or malformed, a key unknown, a value of the wrong type or out of range.
    """
    path = Path(path or os.environ.get(PARAMS_ENV) or "params.yaml").absolute()
    values = _read_yaml(path)
    preset = preset if preset is not None else os.environ.get(PRESET_ENV, "")
    if preset:
        values = _merge(values, _read_yaml(_preset_file(path, preset)))
    for key, value in (overrides or {}).items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = _merge(values, nested)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error), where=str(path), remedy="udrl_pipeline/settings.py describes every key") from None
    settings._root = path.parent
    return settings


def _preset_file(params: Path, preset: str) -> Path:
    file = params.parent / "presets" / f"{preset}.yaml"
    if Path(preset).name != preset or not file.is_file():
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.yaml"))) or "none"
        raise SettingsError(f"no preset named {preset!r}", where=str(file), remedy=f"presets here: {known}")
    return file


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError("no such file", where=str(path), remedy="run in the project's folder, or pass --params") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot be read: {error}", where=str(path), remedy="make it a readable UTF-8 file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"not valid YAML: {error}", where=str(path), remedy="mend the line that is named") from None
    if not isinstance(values, dict):
        raise SettingsError("holds no mapping of keys", where=str(path), remedy="start from the project's params.yaml")
    return values


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            value = "" if isinstance(problem["input"], dict) else f" = {quoted(problem['input'])}"
            lines.append(f"{key}{value}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
