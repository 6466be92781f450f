"""A synthetic store of any size: rows with texts of 8 to 30 words, and generations of versions made from them.

A generation is five versions: intents, teacher_corpus, labeled_dataset, student/udrl and evaluation_report. The first holds nine tenths of
the rows, the last all of them. Keys, hashes, labels, bin edges, Parquet files, manifests and ledger rows come from the library's own
functions; texts are drawn from the words of the recorded rows, relevance from a normal distribution, and students and reports are dummies.
"""

import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from udrl_pipeline import corpus, dataset, rewards
from udrl_pipeline import settings as settings_module
from udrl_pipeline.intents import Intent, Intents, split_of
from udrl_pipeline.recorded import recorded_rows
from udrl_pipeline.settings import Settings
from udrl_pipeline.store.names import SEEN_FILE
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Quarantined, Version, Workspace
from udrl_pipeline.versioning import canonical, code_version, content_hash, files_sha256

PARAMS = Path(__file__).parent.parent / "params.yaml"
SAMPLES = 4
ASSETS = ("intents", corpus.ASSET, dataset.ASSET, "student/udrl", "evaluation_report")
#: Share of the texts that were cut off, and so are in every corpus and in no dataset.
UNFINISHED = 0.01
BASE = ".base.parquet"


def load(folder: Path, **overrides: object) -> Settings:
    return settings_module.load(PARAMS, preset="", overrides={"artifacts": str(folder), "teacher.samples": SAMPLES, **overrides})


def make(folder: Path, rows: int, generations: int, most: int | None = None) -> None:
    """Make the store, or go on with one that is half made; `most` generations this time."""
    workspace = Workspace(load(folder))
    base = folder / BASE
    if not base.exists():
        frame = _base(workspace, rows, generations)
        _enter(workspace, frame)
        frame.to_parquet(base, compression="zstd", index=False)
    done = sum(1 for version in _ledger(workspace) if version == "evaluation_report")
    if done < generations:
        frame = pd.read_parquet(base)
        for generation in list(range(done, generations))[:most]:
            _generation(folder, frame, generation)
            print(f"generation {generation + 1} of {generations}", flush=True)


def _ledger(workspace: Workspace) -> list[str]:
    with workspace.database.reader() as connection:
        return [asset for (asset,) in connection.execute("SELECT asset FROM versions").fetchall()]


def _base(workspace: Workspace, rows: int, generations: int) -> pd.DataFrame:
    """Every row there will be, sorted by key, with its labels and the generation that it comes with."""
    settings, tasks = workspace.settings, workspace.tasks
    draw = np.random.default_rng(settings.intents.seed)
    words, shares = _words()
    per_intent = len(tasks) * SAMPLES
    ideas = _ideas(draw, words, shares, -(-rows // per_intent))
    source = corpus.source_digest(settings)
    planned = corpus.plan([Intent(i, i, tuple(tasks), split_of(i, settings.intents), "ideas.csv") for i in ideas], tasks, settings, source)
    place = {idea: n for n, idea in enumerate(ideas)}
    planned = sorted(planned, key=lambda row: (place[row.intent_key], row.sample, row.task))[:rows]
    lengths = draw.integers(8, 31, len(planned))
    drawn = np.array(words, dtype=object)[draw.choice(len(words), int(lengths.sum()), p=shares)]
    ends = np.cumsum(lengths)
    texts = [
        " ".join([*row.intent.capitalize().split(), *drawn[end - length + 3 : end]])
        for row, length, end in zip(planned, lengths, ends, strict=True)
    ]
    examples = {
        (name, asked): canonical([e.intent for e in task.drawn_examples(asked, settings.teacher.examples, "", 0)])
        for name, task in tasks.items()
        for asked in settings.teacher.asked_words
    }
    # the first generation brings nine tenths of the intents, the others the rest in equal parts
    bounds = np.linspace(0.9, 1.0, generations) * (len(ideas) - 1)
    since = np.searchsorted(bounds, [place[row.intent_key] for row in planned])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    frame = pd.DataFrame(
        {
            "row_key": [row.row_key for row in planned],
            "task": [row.task for row in planned],
            "intent": [row.intent for row in planned],
            "intent_key": [row.intent_key for row in planned],
            "text": texts,
            "tokens": [round(1.4 * len(text.split())) for text in texts],
            "finish_reason": np.where(draw.random(len(planned)) < UNFINISHED, "length", "stop"),
            "engine": "synthetic",
            "engine_version": "1",
            "source": source,
            "template_hash": [tasks[row.task].template_hash for row in planned],
            "sampling": [canonical(row.sampling) for row in planned],
            "asked_words": [row.asked_words for row in planned],
            "examples": [examples[row.task, row.asked_words] for row in planned],
            "sample": [row.sample for row in planned],
            "run_id": [f"run-{n}" for n in since],
            "created_at": [start + timedelta(days=int(n)) for n in since],
            "recorded": False,
            "generation": since,
            "relevance": np.round(np.clip(draw.normal(0.65, 0.12, len(planned)), 0, 1), 4),
            "words": [len(text.split()) for text in texts],
        }
    )
    frame["split"] = frame.intent_key.map({idea: split_of(idea, settings.intents) for idea in ideas})
    return rewards.label(frame, settings.rewards).sort_values("row_key", ignore_index=True)


def _words() -> tuple[list[str], "np.ndarray[tuple[int], np.dtype[np.float64]]"]:
    """The words of the recorded rows, and how often each is drawn."""
    texts = pd.concat([pd.read_parquet(file, columns=["text"]) for file in recorded_rows()]).text
    counts = Counter(itertools.chain.from_iterable(text.lower().split() for text in texts))
    words = sorted(word for word in counts if word.isalpha())
    shares = np.array([counts[word] for word in words], dtype=float)
    return words, shares / shares.sum()


def _ideas(draw: np.random.Generator, words: list[str], shares: "np.ndarray[tuple[int], np.dtype[np.float64]]", count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        drawn = draw.choice(len(words), (count, 3), p=shares)
        found |= dict.fromkeys(" ".join(words[n] for n in row) for row in drawn)
    return list(found)[:count]


def _enter(workspace: Workspace, frame: pd.DataFrame) -> None:
    """The rows and their scores, as the teacher's and the scorer's steps would have left them."""
    scores = pd.DataFrame(
        {"row_key": frame.row_key, "scorer_version": rewards.scorer_version(workspace.settings), "relevance": frame.relevance}
    )
    with workspace.database.writer() as connection:
        connection.register("frame", frame)
        connection.execute(f"INSERT INTO rows ({', '.join(corpus.COLUMNS)}) SELECT {', '.join(corpus.COLUMNS)} FROM frame")
        connection.register("scores_frame", scores)
        connection.execute("INSERT INTO scores SELECT * FROM scores_frame")


def _generation(folder: Path, base: pd.DataFrame, generation: int) -> None:
    # the weight of gain changes every fifth generation, the number of bins every eighth
    gain, bins = (0.4, 0.5, 0.45)[generation // 5 % 3], 4 if generation % 8 == 7 else 5
    workspace = Workspace(load(folder, **{"rewards.weights.gain": gain, "commands.quality_bins": bins}), run_id=f"run-{generation}")
    workspace.begin_run()
    rows = base[base.generation <= generation].reset_index(drop=True)
    intents = _intents(workspace, rows)
    made = _corpus(workspace, rows, intents)
    data = _dataset(workspace, rows, intents, made)
    before = workspace.current("student/udrl")
    parents = {dataset.ASSET: data.version} | ({"student/udrl": before.version} if before and generation % 5 else {})
    student = _student(workspace, rows, parents)
    _report(workspace, {dataset.ASSET: data.version, corpus.ASSET: made.version, "student/udrl": student.version})


def _record(
    workspace: Workspace, asset: str, sources: tuple[str, ...], params: dict[str, object], parents: dict[str, str], **record: object
) -> Version:
    code = code_version(sources)
    return workspace.record(
        asset, code_version=code, params=params, parents=parents, fingerprint=workspace.fingerprint(asset, code, params, parents), **record
    )  # type: ignore[arg-type]


def _intents(workspace: Workspace, rows: pd.DataFrame) -> Version:
    frame = rows[["intent_key", "intent", "split"]].drop_duplicates("intent_key").sort_values("intent_key", ignore_index=True)
    frame = frame.assign(tasks=",".join(workspace.settings.tasks.names), source="ideas.csv:1")
    columns = zip(frame.intent_key, frame.intent, frame.split, strict=True)
    kept = [Intent(key, text, tuple(workspace.settings.tasks.names), split, "ideas.csv:1") for key, text, split in columns]
    return _record(
        workspace, "intents", ("intents/asset.py",), {"builtin": 0, "sources": ["ideas.csv"], "rows": len(frame)}, {},
        version=Intents(kept, [], 0).version, rows=len(frame), facts={},
        write=lambda folder: write_table(frame[["intent_key", "intent", "tasks", "split", "source"]], folder / "intents.parquet"),
    )  # fmt: skip


def _corpus(workspace: Workspace, rows: pd.DataFrame, intents: Version) -> Version:
    frame = rows[list(corpus.COLUMNS)]
    params = {
        "source": frame.source[0],
        "templates": {name: task.template_hash for name, task in workspace.tasks.items()},
        "samples": SAMPLES,
    }
    return _record(
        workspace, corpus.ASSET, corpus.SOURCES, params, {"intents": intents.version},
        version=corpus.content_of(frame), rows=len(frame), facts={"tokens": int(frame.tokens.sum())},
        write=lambda folder: write_table(frame, folder / "rows.parquet"),
    )  # fmt: skip


def _dataset(workspace: Workspace, rows: pd.DataFrame, intents: Version, made: Version) -> Version:
    settings = workspace.settings
    weights = settings.rewards.weights
    aside = rows[rows.finish_reason == "length"]
    kept = rows[rows.finish_reason == "stop"].reset_index(drop=True)
    reward = weights.fidelity * kept.fidelity + weights.gain * kept.gain - weights.repetition * kept.repetition
    kept = kept.assign(reward=reward.round(4))
    edges = dataset.quality_edges(kept, settings.commands.quality_bins)
    kept = kept.assign(quality=dataset.quality_bins(kept, edges))[dataset.COLUMNS]
    params = {
        "rewards": settings.rewards.model_dump(mode="json", exclude={"scorer"}),
        "scorer": rewards.scorer_version(settings),
        "quality": settings.quality.model_dump(mode="json"),
        "quality_bins": settings.commands.quality_bins,
    }
    return _record(
        workspace, dataset.ASSET, dataset.SOURCES, params, {corpus.ASSET: made.version, "intents": intents.version},
        version=dataset.content_of(kept, edges), rows=len(kept), facts=dataset.facts_of(kept, edges),
        quarantined=[Quarantined(key, "finished", "", text) for key, text in zip(aside.row_key, aside.text, strict=True)],
        write=lambda folder: write_table(kept, folder / "rows.parquet"),
    )  # fmt: skip


def _student(workspace: Workspace, rows: pd.DataFrame, parents: dict[str, str]) -> Version:
    """A student without weights, which has read every training row once. Like a real one it is named by its files."""
    seen = rows.loc[(rows.split == "train") & (rows.finish_reason == "stop"), ["row_key"]].assign(times=1)
    made = workspace.scratch_folder("student/udrl", "synthetic")
    write_table(seen, made / SEEN_FILE)
    (made / "parents.json").write_text(canonical(parents), encoding="utf-8")  # the same rows, read by another student
    version = content_hash(files_sha256(made))
    return _dummy(workspace, "student/udrl", version, parents, lambda folder: shutil.copytree(made, folder, dirs_exist_ok=True))


def _report(workspace: Workspace, parents: dict[str, str]) -> Version:
    def write(folder: Path) -> None:
        (folder / "report.html").write_text(canonical(parents), encoding="utf-8")

    return _dummy(workspace, "evaluation_report", content_hash(parents), parents, write)


def _dummy(workspace: Workspace, asset: str, version: str, parents: dict[str, str], write: Callable[[Path], object]) -> Version:
    return _record(workspace, asset, ("dataset.py",), {}, parents, version=version, rows=1, facts={}, write=write)
