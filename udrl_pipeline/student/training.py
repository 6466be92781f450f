"""Train a student; resumes after a kill, warm-starts when only rows were added.

The result is a folder that `AutoModelForCausalLM` and `AutoTokenizer` load: safetensors, tokenizer, commands.json, recipe.json,
loss.json, words.json (which words it may write), seen.parquet (which rows it learned from, and how often) and the manifest.
"""

import json
import logging
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_pipeline import dataset, exploration, precision
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import StudentError
from udrl_pipeline.models import digest_of
from udrl_pipeline.settings import ModelRef, Settings
from udrl_pipeline.store.database import typed_errors
from udrl_pipeline.store.names import SEEN_FILE, STUDENTS
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Version, Workspace
from udrl_pipeline.student import lexicon, ranks, recorded
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.initialise import Start, from_folder, initialise
from udrl_pipeline.student.recipes import RECIPES, Recipe
from udrl_pipeline.student.sequences import TrainingSequence, encode, tokens_of, training_order
from udrl_pipeline.student.sweep import choose_best
from udrl_pipeline.student.trainer import Progress, last_step, losses, train
from udrl_pipeline.versioning import code_version, content_hash, files_sha256

logger = logging.getLogger(__name__)

SOURCES = (
    "commands.py", "student/training.py", "student/trainer.py", "student/sequences.py", "student/initialise.py", "student/vocabulary.py",
    "student/optimiser.py", "student/generation.py", "student/decoding.py", "student/sweep.py", "student/recipes.py", "student/recorded.py",
    "student/lexicon.py", "student/swapping.py",
)  # fmt: skip
#: The settings of the sweep that says what `best` means.
SWEPT_BY = {"sweep_intents", "guidance", "idea_guidance", "min_diversity", "temperature", "top_p", "min_p", "repetition_penalty", "seed"}


def asset_name(recipe: str) -> str:
    return f"{STUDENTS}{recipe}"


def build(workspace: Workspace, recipe_name: str) -> Version:
    """Train the student of a recipe on the current dataset, or find that this very student is there already.

    Raises:
        QualityError: The dataset did not pass; nothing is trained on it.
        StudentError, ModelError: The start that params.yaml names cannot be had.
        StoreFull: There is no space for a checkpoint; the training goes on from the last one.
    """
    started, settings, recipe = time.monotonic(), workspace.settings, find_recipe(recipe_name)
    asset, code = asset_name(recipe.name), code_version(SOURCES)
    params = _params(settings, recipe)
    parents = workspace.parents(recipe.data)
    fingerprint = workspace.fingerprint(asset, code, params, parents)
    with workspace.lock(asset):
        if made := workspace.reuse(asset, fingerprint):
            workspace.drop_scratch(asset, fingerprint)  # of a run that was killed just before it did
            return made
        data = workspace.find(recipe.data, parents[recipe.data])
        assert data is not None, f"{parents[recipe.data]} was read from the ledger"
        explored = recipe.data == exploration.ASSET
        read = exploration.read_pool if explored else dataset.read_dataset
        rows = read(workspace, data.version)
        previous = _sampled_student(workspace, data) if explored else _warm_start(workspace, asset, code, params, rows)
        if previous:
            parents |= {previous.asset: previous.version}
        elif settings.student.init_from == "recorded":
            parents |= {recorded.ASSET: recorded.adopt(workspace, rows).version}
        scratch = workspace.scratch_folder(asset, fingerprint)
        with typed_errors(scratch):
            facts, work = _train(workspace, recipe, rows, data.facts["edges"], previous, scratch)
        if explored:
            facts |= {"round": data.facts["round"]}
        result = scratch / "result"
        made = workspace.record(
            asset,
            version=content_hash(files_sha256(result)),
            fingerprint=fingerprint,
            code_version=code,
            rows=facts["sequences"],
            params=params,
            parents=parents,
            facts=facts,
            write=lambda folder: _copy(result, folder),
            started=started,
            work=work,
        )
        workspace.drop_scratch(asset)  # also what runs with other inputs left when they were killed
        return made


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        StudentError: There is none.
    """
    if name not in RECIPES:
        raise StudentError(f"unknown recipe {name!r}", where="recipe", remedy=f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]


def _params(settings: Settings, recipe: Recipe) -> dict[str, Any]:
    kind = settings.student.init_from
    if kind == "pruned-teacher":
        start = digest_of(settings.teacher.model, settings)
    elif kind in ("scratch", "previous"):
        start = kind
    elif kind == "recorded":
        start = recorded.manifest()["version"]
    else:
        start = digest_of(ModelRef(ref=kind), settings)
    return {
        "recipe": recipe.name,
        "start": start,
        "student": settings.student.model_dump(mode="json", exclude={"save_every", "processes", "cluster"}),
        "commands": settings.commands.model_dump(mode="json"),
        "sweep": settings.evaluation.model_dump(mode="json", include=SWEPT_BY),
        **({"epochs": settings.rounds.epochs} if recipe.data == exploration.ASSET else {}),
    }


def _warm_start(workspace: Workspace, asset: str, code: str, params: dict[str, Any], rows: pd.DataFrame) -> Version | None:
    """The current student of the same recipe, code and params, if the dataset still holds every row that it was trained on.

    `init_from: previous` takes the current student whatever has changed.
    """
    current = workspace.current(asset)
    if workspace.settings.student.init_from == "previous":
        if current is None:
            raise StudentError(
                f"there is no {asset} to start from", where="params.yaml: student.init_from", remedy="train one from another start first"
            )
        _refuse_forgotten(workspace, current, "student.init_from", "train from another start")
        return current
    if current is None or (current.code_version, current.params) != (code, params) or dataset.ASSET not in current.parents:
        return None
    if has_learned_forgotten(workspace, current):
        logger.info("%s %s has learned from rows that were forgotten since: starting anew", asset, current.version)
        return None
    before = workspace.version_folder(dataset.ASSET, current.parents[dataset.ASSET]) / "rows.parquet"
    if not before.exists():
        return None
    old = set(pd.read_parquet(before, columns=["row_key"]).row_key)
    return current if old <= set(rows.row_key) else None


def _sampled_student(workspace: Workspace, pool: Version) -> Version:
    """The student that wrote a pool's newest texts: the next one goes on from there."""
    asset, version = pool.facts["sampled_from"].split("@")
    found = workspace.find(asset, version)
    assert found is not None, f"{asset} {version} is a parent of the pool"
    workspace.check_files(asset, version)
    _refuse_forgotten(workspace, found, "rounds.number", f"run `udrl run --select {asset}` first")
    return found


def has_learned_forgotten(workspace: Workspace, student: Version) -> bool:
    """Whether a student, or one that it goes on from, was trained on rows that were forgotten since."""
    forgotten = {key for stone in workspace.tombstones() for key in stone.row_keys}
    found: Version | None = student
    while forgotten and found:
        seen = workspace.version_folder(found.asset, found.version) / SEEN_FILE
        if not seen.exists() or not forgotten.isdisjoint(pd.read_parquet(seen, columns=["row_key"]).row_key):
            return True  # of a student that does not tell the worst is assumed
        earlier = next((parent for parent in found.parents.items() if parent[0].startswith(STUDENTS)), None)
        found = workspace.find(*earlier) if earlier else None
    return False


def _refuse_forgotten(workspace: Workspace, student: Version, key: str, remedy: str) -> None:
    if has_learned_forgotten(workspace, student):
        raise StudentError(
            f"{student.asset} {student.version} has learned from rows that were forgotten since", where=f"params.yaml: {key}", remedy=remedy
        )


def _passes(settings: Settings, recipe: Recipe, previous: Version | None) -> float:
    if recipe.data == exploration.ASSET:
        return settings.rounds.epochs
    return settings.student.warm_epochs if previous else settings.student.epochs


def _train(
    workspace: Workspace, recipe: Recipe, rows: pd.DataFrame, edges: dict[str, list[float]], previous: Version | None, scratch: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train in `scratch`, leaving the student's files in `scratch/result`. Returns facts and the work done."""
    settings = workspace.settings
    train, validation = rows[rows.split == "train"], rows[rows.split == "validation"]
    space = replace(CommandSpace.measure(train, edges, settings.commands), idea_guidance=settings.evaluation.idea_guidance)
    if previous:
        folder = workspace.version_folder(previous.asset, previous.version)
        start = from_folder(folder, space, {"init_from": "previous", "version": previous.version})
    else:
        start = initialise(settings, space, sorted({*train.intent, *train.text}))
    options = settings.student
    sequences = training_order(
        train, space, recipe, start.tokenizer, options, passes=_passes(settings, recipe, previous), dropout=settings.commands.dropout
    )
    if options.max_steps:
        sequences = sequences[: options.max_steps * options.batch_rows]
    held_out = validation_sequences(validation, space, recipe, start.tokenizer, options.max_tokens)
    parameters = sum(p.numel() for p in start.model.parameters())
    logger.info("%s: %.1fM parameters, %d sequences, start %s", recipe.name, parameters / 1e6, len(sequences), start.how)
    began = time.monotonic()
    curve, speed, steps = run_trainer(start, sequences, held_out, settings, scratch, recipe.name)
    seconds = time.monotonic() - began
    resumed_at = -(-len(sequences) // options.batch_rows) - steps
    trained, tokens = tokens_of(sequences[resumed_at * options.batch_rows :]), tokens_of(sequences)
    model = start.model.bfloat16().to(precision.dtype()).eval()  # as whoever loads it will have it
    student = Student(model, start.tokenizer, space, recipe.name, words_of(train, start, options.word_ideas))
    space, sweep = choose_best(student, validation, settings) if recipe.commanded else (space.with_best({}, space.guidance), {})
    _save(student, space, recipe, curve, scratch / "result")
    write_table(seen_rows(sequences), scratch / "result" / SEEN_FILE)
    facts = {
        "parameters": student.parameters, "sequences": len(sequences), "tokens": tokens, "start": start.how,
        "words": len(student.words),
        "covered_words": {task: list(ends) for task, ends in space.covered.items()},
        "best_quality": space.best, "guidance": space.guidance, "idea_guidance": space.idea_guidance, "sweep": sweep,
        "loss": curve[-1].get("loss") if curve else None,
        "validation_loss": next((entry["validation_loss"] for entry in reversed(curve) if "validation_loss" in entry), None),
        "seed": options.seed, "processes": options.processes, "speed": speed,
    }  # fmt: skip
    return facts, {"train_steps": steps, "train_seconds": round(seconds, 2), "tokens_per_s": round(trained / seconds, 1)}


def words_of(rows: pd.DataFrame, start: Start, least: int) -> list[str]:
    """The words that a student may write: those of its rows, and those that its start might; none where it may write any.

    Args:
        least: `student.word_ideas`.
    """
    texts = zip(rows.intent, rows.text, strict=True)
    found = lexicon.known_words(start.tokenizer.backend_tokenizer, texts, least)
    return sorted({*found, *start.words}) if found else []


def seen_rows(sequences: list[TrainingSequence]) -> pd.DataFrame:
    """Which rows a training run reads (row_key), and how often (times); in the order of the keys."""
    counted = sorted(Counter(sequence.row_key for sequence in sequences).items())
    return pd.DataFrame(counted, columns=["row_key", "times"])


def validation_sequences(
    rows: pd.DataFrame, space: CommandSpace, recipe: Recipe, tokenizer: Any, max_tokens: int
) -> list[TrainingSequence]:
    """Every validation row at exactly the command that it achieved; at most 256, by their keys."""
    chosen = rows.sort_values("row_key").head(256)
    low, high = space.words
    commands = [
        Command(r.task, r.intent, int(r.words) if low <= r.words <= high else None, int(r.quality))
        if recipe.commanded
        else Command(r.task, r.intent)
        for r in chosen.itertuples()
    ]
    return encode(tokenizer, space, commands, chosen.text.tolist(), chosen.row_key.tolist(), max_tokens)


def run_trainer(
    start: Start, sequences: list[TrainingSequence], held_out: list[TrainingSequence], settings: Settings, scratch: Path, recipe: str = ""
) -> tuple[list[dict[str, float]], list[dict[str, float]], int]:
    """Train the start on the sequences in their order, in this process or in several; resumes from the last checkpoint in `scratch`.

    Returns the loss curve, the tokens/s between the lines of the log (of this run), and the steps of this run.
    """
    options = settings.student
    progress = Progress(sequences, options.batch_rows, asset=asset_name(recipe), recipe=recipe)
    done = last_step(scratch)
    if done:
        logger.info("resuming from step %d", done)
    if options.processes == 1 and options.cluster is None:
        history = train(start.model, start.tokenizer.pad_token_id, sequences, held_out, options, scratch, progress)
    else:
        history = ranks.train(start, sequences, held_out, settings, scratch, progress)
    return losses(history), progress.speed, -(-len(sequences) // options.batch_rows) - done


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _save(student: Student, space: CommandSpace, recipe: Recipe, losses: list[dict[str, float]], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    student.model.bfloat16().save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    space.save(folder)
    lexicon.save(student.words, folder)
    (folder / "recipe.json").write_text(json.dumps({"name": recipe.name, "description": recipe.description}), encoding="utf-8")
    (folder / "loss.json").write_text(json.dumps(losses), encoding="utf-8")
