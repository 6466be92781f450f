"""The `student_export/<recipe>` asset: a student made fast, and proof that it is still the same.

    student -> graph in fp32 -> the same greedy tokens as transformers?
            -> graph in int8 -> the same reward and length, on the same prompts and draws?

Both questions are blocking checks: an export that fails one is not published, and `udrl generate` goes on with transformers. A
student of an architecture that graph.py does not know is published as not exported, with the reason, and written with transformers.
"""

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from udrl_pipeline import dataset, exploration, rewards
from udrl_pipeline.commands import FILE as COMMANDS
from udrl_pipeline.commands import Command
from udrl_pipeline.store.database import typed_errors
from udrl_pipeline.store.names import EXPORTS
from udrl_pipeline.store.workspace import Expected, Version, Workspace
from udrl_pipeline.student import graph, lexicon
from udrl_pipeline.student.engines import DESCRIPTION
from udrl_pipeline.student.fast import MODEL, FastStudent
from udrl_pipeline.student.generation import LENGTH_SLACK, Generated, Sampling, Student
from udrl_pipeline.student.recipes import Recipe
from udrl_pipeline.student.training import asset_name, find_recipe
from udrl_pipeline.versioning import code_version, content_hash, files_sha256, unit_draw

logger = logging.getLogger(__name__)

SOURCES = (
    "student/export.py", "student/graph.py", "student/fast.py", "student/drawing.py", "student/generation.py", "student/decoding.py",
    "student/lexicon.py", "student/sequences.py", "commands.py", "rewards.py",
)  # fmt: skip
#: What an export takes over from its student's folder.
TAKEN = ("tokenizer.json", "recipe.json", COMMANDS)
#: Two tokens nearer to each other than this (nats) are a tie: in fp32 the order of a sum decides between them.
TIE = 1e-3
#: Texts that transformers reads at once: their scores take some 250 MB.
PARITY_ROWS = 64
#: The checks: (name, blocking, what it says).
CHECKS = (
    ("architecture_is_known", False, "The student's architecture can be exported"),
    ("same_greedy_tokens", True, "In fp32 the export writes the tokens that transformers writes, greedily, in fp32"),
    ("same_quality", True, "In int8 it loses no more reward, and changes the length no more, than `export` in params.yaml allows"),
)


def build(workspace: Workspace, recipe_name: str) -> Version:
    """Export the current student of a recipe, or find that this was done.

    Raises:
        StudentError, CorruptArtifact: The student cannot be loaded.
        QualityError: The dataset that it was trained on is gone.
    """
    started, settings, recipe = time.monotonic(), workspace.settings, find_recipe(recipe_name)
    asset, code = EXPORTS + recipe.name, code_version(SOURCES)
    params = {
        "export": settings.export.model_dump(mode="json"),
        "sampling": settings.evaluation.sampling,
        "rewards": settings.rewards.model_dump(mode="json", exclude={"scorer", "cluster"}),
        "scorer": rewards.scorer_version(settings),
    }
    parents = workspace.parents(asset_name(recipe.name))
    fingerprint = workspace.fingerprint(asset, code, params, parents)
    with workspace.lock(asset):
        workspace.drop_scratch(asset)  # of a run that was killed, maybe just before it did this itself
        if made := workspace.reuse(asset, fingerprint):
            return made
        [student] = [found for name, version in parents.items() if (found := workspace.find(name, version))]
        workspace.check_files(student.asset, student.version)
        scratch = workspace.scratch_folder(asset, fingerprint)
        with typed_errors(scratch):
            facts, expected = _export(workspace, student, recipe, scratch)
        made = workspace.record(
            asset,
            version=content_hash(files_sha256(scratch / "result")),
            fingerprint=fingerprint,
            code_version=code,
            rows=1,
            params=params,
            parents=parents,
            facts=facts,
            write=lambda folder: _copy(scratch / "result", folder),
            expectations=expected,
            started=started,
        )
        workspace.drop_scratch(asset)
        return made


def _export(workspace: Workspace, version: Version, recipe: Recipe, scratch: Path) -> tuple[dict[str, Any], list[Expected]]:
    """Write the export to `scratch/result`. Returns the facts, and what the checks observed."""
    settings, folder = workspace.settings, workspace.version_folder(version.asset, version.version)
    student = Student.load(folder, precise=True)
    if reason := graph.refusal(student.model.config):
        (scratch / "result").mkdir(exist_ok=True)
        _describe(scratch / "result", {"exported": False, "reason": reason})
        return {"exported": False, "reason": reason}, [_expected(0, passed=False, first=[reason])]
    began = time.monotonic()
    exact = write_export(student, folder, scratch / "exact", None)
    small = write_export(student, folder, scratch / "result", settings.export.block) if settings.export.weights == "int8" else None
    if small is None:
        shutil.copytree(scratch / "exact", scratch / "result", dirs_exist_ok=True)
    converted = time.monotonic()
    commands = check_commands(_validation(workspace, version, recipe), student)
    same = parity(student, exact, commands[: settings.export.parity_prompts], settings.evaluation.repetition_penalty)
    compared = time.monotonic()
    change: dict[str, float] = quality_change(exact, small, commands[: settings.export.quality_texts], workspace) if small else {"texts": 0}
    ended = time.monotonic()
    took = [round(seconds, 1) for seconds in (converted - began, compared - converted, ended - compared)]
    facts = {
        "exported": True,
        "weights": settings.export.weights,
        "parameters": student.parameters,
        "model_mb": round((scratch / "result" / MODEL).stat().st_size / 1e6, 1),
        "student_mb": round((folder / "model.safetensors").stat().st_size / 1e6, 1),
        "onnxruntime": metadata.version("onnxruntime"),
        "parity": {name: same[name] for name in ("prompts", "tokens", "ties", "different")},
        "change": change,
        "took_s": {"conversion": took[0], "parity": took[1], "quality": took[2]},
    }
    faults = list(quality_faults(change, settings.export.max_reward_loss, settings.export.max_length_change))
    expected = [
        _expected(0, passed=True),
        _expected(1, passed=same["different"] == 0, **same),
        _expected(2, passed=not faults, first=faults, **change),
    ]
    return facts, expected


def _expected(number: int, *, passed: bool, **observed: Any) -> Expected:
    name, blocking, description = CHECKS[number]
    return Expected(name, passed, blocking, observed, description)


def write_export(student: Student, folder: Path, target: Path, block: int | None) -> FastStudent:
    """Export a student, whose own files are in `folder`, to `target`.

    Args:
        block: How many weights share a scale in int8; None keeps fp32.
    """
    target.mkdir(parents=True, exist_ok=True)
    config = student.model.config
    for name in TAKEN:
        shutil.copyfile(folder / name, target / name)
    lexicon.save(student.words, target)
    graph.save(graph.to_onnx(student.model, block), target / MODEL)
    description = {
        "exported": True,
        "weights": "fp32" if block is None else "int8",
        "parameters": student.parameters,
        "vocabulary": config.vocab_size,
        "end": student.tokenizer.eos_token_id,
        "numbered": config.model_type == "gpt2",
        **graph.shape_of(config),
    }
    _describe(target, description)
    return FastStudent.load(target)


def _describe(folder: Path, description: dict[str, Any]) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def _validation(workspace: Workspace, student: Version, recipe: Recipe) -> pd.DataFrame:
    """A validation row for each task and intent that the student has seen nothing of; in an order of their own."""
    read = exploration.read_pool if recipe.data == exploration.ASSET else dataset.read_dataset
    rows = read(workspace, student.parents[recipe.data])
    rows = rows[rows.split == "validation"].sort_values("row_key").drop_duplicates(["task", "intent_key"])
    order = [unit_draw("export", task, key) for task, key in zip(rows.task, rows.intent_key, strict=True)]
    return rows.assign(order=order).sort_values("order", ignore_index=True)


def check_commands(rows: pd.DataFrame, student: Student) -> list[Command]:
    """What both sides are asked: the best quality, and every other time the length that the teacher's text had."""
    if not student.commanded:
        return [Command(row.task, row.intent) for row in rows.itertuples()]
    lengths = [int(words) if n % 2 else None for n, words in enumerate(rows.words)]
    commands = [Command(r.task, r.intent, w, student.space.best[r.task]) for r, w in zip(rows.itertuples(), lengths, strict=True)]
    return [student.space.clamp(command)[0] for command in commands]


def parity(student: Student, exact: Student, commands: Sequence[Command], repetition_penalty: float) -> dict[str, Any]:
    """Whether both write the same tokens greedily, unguided (guidance would press on the last digits too).

    Transformers reads each text of the export in one pass. If at every place its own choice, given all before, is the token that
    stands there, then it would have written the very same text token by token.

    Returns:
        The number of prompts, tokens, ties (which count as the same) and different texts; `first` names some of those.
    """
    sampling = Sampling(temperature=0.0, top_p=1.0, min_p=0.0, repetition_penalty=repetition_penalty)
    found = exact.generate(commands, **asdict(sampling), guidance=1.0, idea_guidance=1.0, seed=0)
    texts, ties, different = sorted(found, key=lambda made: len(made.ids)), 0, []
    for start in range(0, len(texts), PARITY_ROWS):
        some = texts[start : start + PARITY_ROWS]
        for made, gaps in zip(some, lost_to_the_likeliest(student, some, sampling), strict=True):
            ties += sum(0 < gap < TIE for gap in gaps)
            if place := next((n for n, gap in enumerate(gaps, 1) if gap >= TIE), 0):
                different.append(f"{made.command.task}, {made.command.intent!r}: token {place} of {made.text!r}")
    tokens = sum(made.tokens for made in found)
    return {"prompts": len(commands), "tokens": tokens, "ties": ties, "different": len(different), "first": different[:5]}


def lost_to_the_likeliest(student: Student, texts: Sequence[Generated], sampling: Sampling) -> list[list[float]]:
    """For each token of each text how much likelier transformers finds its own choice (nats); 0 where it is the same token."""
    import torch

    longest = max(len(made.ids) for made in texts)
    batch = student.batch([made.command for made in texts], [0] * len(texts), 1.0, 1.0, 1.0, LENGTH_SLACK, longest)
    device, width = student.model.device, max(len(prompt) for prompt in batch.prompts)
    blank = student.tokenizer.pad_token_id
    rows = [
        [blank] * (width - len(prompt)) + prompt + list(made.ids) + [blank] * (longest - len(made.ids))
        for prompt, made in zip(batch.prompts, texts, strict=True)
    ]
    ids = torch.tensor(rows, device=device)
    places = torch.arange(ids.shape[1], device=device) - torch.tensor([[width - len(prompt)] for prompt in batch.prompts], device=device)
    with torch.inference_mode():
        scores = student.model(input_ids=ids, attention_mask=(places >= 0).long(), position_ids=places.clamp(min=0)).logits
    choose = student.decoding(batch, sampling, width)
    gaps: list[list[float]] = [[] for _ in texts]
    for step in range(longest):
        weighed = choose(ids[:, : width + step], scores[:, width + step - 1])
        lost = (weighed.amax(dim=1) - weighed.gather(1, ids[:, width + step, None])[:, 0]).tolist()
        for row, made in enumerate(texts):
            if step < len(made.ids):
                gaps[row].append(lost[row])
    return gaps


def quality_change(exact: Student, small: Student, commands: Sequence[Command], workspace: Workspace) -> dict[str, float]:
    """Mean reward and length of both, on the same prompts and draws, sampled as `evaluation` in params.yaml says."""
    settings, scorer = workspace.settings, rewards.Scorer(workspace.settings)
    intents = [command.intent for command in commands]
    measured = []
    for side in (exact, small):
        made = side.generate(commands, **settings.evaluation.sampling)
        texts = [one.text for one in made]
        rows = pd.DataFrame({"intent": intents, "text": texts, "relevance": scorer.relevance(intents, texts)})
        measured.append((float(rewards.label(rows, settings.rewards).reward.mean()), float(np.mean([one.words for one in made]))))
    (reward, words), (small_reward, small_words) = measured
    return {
        "texts": len(commands),
        "reward_fp32": round(reward, 4),
        "reward_int8": round(small_reward, 4),
        "words_fp32": round(words, 2),
        "words_int8": round(small_words, 2),
    }


def quality_faults(change: dict[str, float], max_reward_loss: float, max_length_change: float) -> Sequence[str]:
    """What is worse than allowed; nothing where nothing was compared."""
    if not change["texts"]:
        return []
    lost = change["reward_fp32"] - change["reward_int8"]
    longer = change["words_int8"] / max(change["words_fp32"], 1e-9) - 1
    found = []
    if lost > max_reward_loss:
        found.append(f"the mean reward fell by {lost:.3f}, more than export.max_reward_loss: set export.weights: fp32, or a smaller block")
    if abs(longer) > max_length_change:
        found.append(f"the mean length changed by {longer:+.1%}, more than export.max_length_change: set export.weights: fp32")
    return found


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)
