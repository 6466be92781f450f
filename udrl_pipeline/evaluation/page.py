"""Evaluation -> one self-contained HTML page (report.html.j2). Nothing here measures; it chooses, words and draws."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, get_args

import pandas as pd

from udrl_pipeline import dataset
from udrl_pipeline.evaluation import plots
from udrl_pipeline.evaluation.figures import MEAN
from udrl_pipeline.evaluation.run import Evaluation
from udrl_pipeline.evaluation.statistics import percent
from udrl_pipeline.evaluation.systems import teacher_name
from udrl_pipeline.settings import GateMeasure
from udrl_pipeline.store.workspace import PACKAGES, Version, Workspace, asset_of, git_state

#: Intents per task whose texts are shown.
SHOWN_INTENTS = 8
#: Columns of the systems tables: figure -> its heading and what it says.
COLUMNS = {
    "relevance": ("relevance", "cosine of intent and text embeddings, the reward's scorer"),
    "reward": ("reward", "fidelity + gain - repetition, as the dataset is labelled"),
    "information": ("information", "second judge: nats per intent token that the text gives the teacher about the intent"),
    "retrieval": ("retrieval", "third judge: 1 / the place of the text's own intent among all intents, by the teacher's hidden states"),
    "preferred": ("preferred", "fourth judge: how often a chat model prefers the text to the teacher's by a rubric, a tie counting half"),
    "spread": ("spread", "mean cosine distance of two texts; higher is more diverse"),
    "distinct_2": ("distinct-2", "different word pairs over all word pairs"),
    "self_bleu": ("self-BLEU", "resemblance to the other texts; lower is more diverse"),
    "copied": ("copied", "share of the intent's word pairs that the text repeats"),
    "finished": ("finished", "share of texts that ended by themselves"),
    "words": ("words", "mean length"),
}
SHARES = ("preferred", "copied", "finished")
#: Digits after the point where it is not 3.
DIGITS = {"words": 1, "information": 2}


def render(
    workspace: Workspace, evaluation: Evaluation, *, version: str, parents: Mapping[str, str], params: Mapping[str, Any], code: str
) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("udrl_pipeline.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "percent": percent,
        "millions": lambda n: f"{n / 1e6:.1f} M",
        "pretty": pretty,
    }
    labels = {name: task.label for name, task in workspace.tasks.items()}
    metrics = evaluation.metrics
    return environment.get_template("report.html.j2").render(
        version=version,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        metrics=metrics,
        head=metrics["headline"],
        main=evaluation.main,
        main_label=next(system.label for system in evaluation.systems if system.key == evaluation.main),
        mean=MEAN,
        tasks=[(task, labels[task]) for task in metrics["intents"]],
        systems=evaluation.systems,
        teacher=teacher_name(workspace.settings),
        timed=_timed(evaluation),
        columns=_measured_columns(metrics),
        shares=SHARES,
        gate_measures=get_args(GateMeasure),
        digits=DIGITS,
        claims=list(_by_claim(metrics["claims"].values())),
        panels=panels(evaluation, labels, _edges(workspace, parents)),
        samples=[(labels[task], cards(evaluation, task)) for task in metrics["intents"]],
        lineage=list(lineage(workspace, parents)),
        params=pretty(params),
        code=code,
        git=git_state(workspace.settings.root),
        packages=_packages(),
        run_id=workspace.run_id,
        seconds=evaluation.seconds,
    )


def _measured_columns(metrics: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The columns in which any system has a figure."""
    found = {name for system in metrics["systems"].values() for name in system.get("figures", {}).get(MEAN, {})}
    return {name: column for name, column in COLUMNS.items() if name in found}


def panels(evaluation: Evaluation, labels: Mapping[str, str], edges: Mapping[str, list[float]]) -> dict[str, list[str]]:
    """The plots of each section, one a task (a student, for the loss)."""
    metrics, samples = evaluation.metrics, evaluation.samples
    compared = samples[samples.part == "compare"]
    measured = {system.key: system.label for system in evaluation.systems if not system.reason and system.key != "teacher_kept"}
    compare_rewards = [key for key in ("teacher", evaluation.main, f"{evaluation.main}_uncommanded") if key in measured]
    found: dict[str, list[str]] = {"relevance": [], "quality": [], "length": [], "reward": [], "loss": []}
    for task in metrics["intents"]:
        figures = {label: metrics["systems"][key]["figures"].get(task, {}).get("relevance") for key, label in measured.items()}
        by_system = {label: (f["value"], f["low"], f["high"]) for label, f in figures.items() if f}
        found["relevance"].append(plots.relevance_panel(f"relevance-{task}", labels[task], by_system))
        reward = metrics["systems"]["teacher"]["figures"][task]["reward"]["value"]
        if quality := _series(metrics["quality"], task, "levels"):
            best = evaluation.spaces[evaluation.main].best.get(task)
            found["quality"].append(plots.quality_panel(f"quality-{task}", labels[task], quality, ("teacher's mean", reward), best))
        if length := _series(metrics["length"], task, "lengths"):
            asked = metrics["teacher_length"].get(task, {}).get("lengths", {})
            teacher = [(float(n), of_length["value"]) for n, of_length in asked.items()]
            covered = evaluation.spaces[evaluation.main].covered[task]
            found["length"].append(plots.length_panel(f"length-{task}", labels[task], length, teacher, covered))
        rewards = {measured[key]: compared[(compared.system == key) & (compared.task == task)].reward.tolist() for key in compare_rewards}
        rewards = {label: values for label, values in rewards.items() if values}
        found["reward"].append(plots.reward_panel(f"reward-{task}", labels[task], rewards, edges.get(task, [])))
    found["loss"] = [plots.loss_panel(f"loss-{recipe}", recipe, losses) for recipe, losses in evaluation.losses.items() if losses]
    return found


def _series(calibrated: Mapping[str, Any], task: str, part: str) -> dict[str, list[tuple[float, float, float, float]]]:
    return {
        recipe: [(float(x), point["value"], point["low"], point["high"]) for x, point in tasks[task][part].items()]
        for recipe, tasks in calibrated.items()
        if task in tasks
    }


def cards(evaluation: Evaluation, task: str) -> list[dict[str, Any]]:
    """Texts side by side for the first intents of a task: every system, then the main student at other commands."""
    samples = evaluation.samples[evaluation.samples.task == task]
    compared = samples[samples.part == "compare"]
    others = samples[(samples.part != "compare") & (samples.system == evaluation.main)]
    lengths = sorted(others[(others.part == "length") & (others.commanded_words == others.given_words)].commanded_words.unique())
    worst = others[(others.part == "quality")].commanded_quality.min()
    shown = []
    for intent in list(dict.fromkeys(compared.intent))[:SHOWN_INTENTS]:
        of_intent = compared[compared.intent == intent]
        texts = [
            _card(system.label, row, system.kind)
            for system in evaluation.systems
            if system.key != "teacher_kept"
            for row in of_intent[of_intent.system == system.key].to_dict("records")
        ]
        commanded = others[others.intent == intent]
        for row in commanded[(commanded.part == "quality") & (commanded.commanded_quality == worst)].to_dict("records"):
            texts.append(_card(f"{evaluation.main}, quality {row['commanded_quality']}", row, "command"))
        for length in dict.fromkeys([*lengths[:1], *lengths[-1:]]):
            for row in commanded[(commanded.part == "length") & (commanded.commanded_words == length)].to_dict("records"):
                texts.append(_card(f"{evaluation.main}, {length} words", row, "command"))
        shown.append({"intent": intent, "texts": texts})
    return shown


def _card(label: str, row: Mapping[Any, Any], kind: str) -> dict[str, Any]:
    return {
        "label": label,
        "kind": kind,
        "text": row["text"],
        "words": row["words"],
        "relevance": row["relevance"],
        "finished": row["finished"],
    }


def lineage(workspace: Workspace, parents: Mapping[str, str]) -> Iterable[tuple[int, Version]]:
    """Every version that the report stands on, each once, nearest first: (steps away, version)."""
    seen: set[tuple[str, str]] = set()
    waiting = [(1, asset_of(name), version) for name, version in parents.items()]
    while waiting:
        steps, asset, version = waiting.pop(0)
        if (asset, version) in seen:
            continue
        seen.add((asset, version))
        if found := workspace.find(asset, version):
            yield steps, found
            waiting += [(steps + 1, *parent) for parent in found.made_from]


def _by_claim(claims: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[Mapping[str, Any]]]]:
    """The claims with their lines: (claim, source, lines)."""
    for (claim, source), lines in itertools.groupby(claims, key=lambda line: (line["claim"], line["source"])):
        yield claim, source, list(lines)


def _timed(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Key and label of every model that has a time or a size."""
    keys = dict.fromkeys([*evaluation.metrics["latency"], *evaluation.metrics["sizes"]])
    labels = {system.key: system.label for system in evaluation.systems if system.kind != "student"}
    labels["teacher_without_examples"] = "teacher, no example pairs"
    return [(key, labels.get(key, key)) for key in keys]


def _edges(workspace: Workspace, parents: Mapping[str, str]) -> dict[str, list[float]]:
    found = workspace.find(dataset.ASSET, parents[dataset.ASSET])
    return dict(found.facts["edges"]) if found else {}


def _packages() -> dict[str, str]:
    installed = {distribution.metadata["Name"].lower().replace("_", "-"): distribution.version for distribution in metadata.distributions()}
    return {name: installed[name.replace("_", "-")] for name in PACKAGES if name.replace("_", "-") in installed}


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def pretty(params: Mapping[str, Any]) -> str:
    return json.dumps(params, indent=1, ensure_ascii=False)


def interval(figure: Mapping[str, float], share: bool = False, digits: int = 2) -> str:
    """`[low, high]`, or nothing for a figure without an interval."""
    if "low" not in figure:
        return ""
    return "[" + ", ".join(percent(figure[end]) if share else number(figure[end], digits) for end in ("low", "high")) + "]"
