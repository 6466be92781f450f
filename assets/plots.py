"""Small pictures for the metadata. They live in Dagster's event log, so each is a PNG of some 10 KB."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def histogram(frame: pd.DataFrame, column: str, label: str, by: str = "task", bins: int = 30) -> dg.MarkdownMetadataValue:
    """How a column is distributed, one line for each value of the column `by`."""
    figure, axes = _figure()
    for name, rows in frame.groupby(by):
        axes.hist(rows[column], bins=bins, histtype="step", linewidth=1.6, label=str(name))
    axes.set_xlabel(label)
    axes.set_ylabel("rows")
    axes.legend(frameon=False)
    return _picture(figure, label)


def loss_curve(points: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """Training and validation loss over the optimiser steps, from a student's loss.json."""
    figure, axes = _figure()
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        known = [(point["step"], point[key]) for point in points if point.get(key) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), label=label, linewidth=1.6, marker="." if len(known) < 20 else None)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    return _picture(figure, "loss")


def throughput(points: Sequence[tuple[float, float]], across: str, unit: str) -> dg.MarkdownMetadataValue | None:
    """How fast the work went: (where it stood, things per second); None where nothing was to be done."""
    if not points:
        return None
    figure, axes = _figure()
    axes.plot(*zip(*points, strict=True), linewidth=1.6, marker=".")
    axes.set(xlabel=across, ylabel=unit, ylim=(0, None))
    return _picture(figure, unit)


def obedience(length: Mapping[str, Any], quality: Mapping[str, Any]) -> dg.MarkdownMetadataValue:
    """What a student achieved against what it was commanded, one line a task: length beside quality.

    Args:
        length: By task, as in metrics.json: `lengths` with the mean achieved words of each commanded length.
        quality: By task: `levels` with the mean reward of each commanded quality.
    """
    figure, (left, right) = _figure(2)
    for axes, measured, part in ((left, length, "lengths"), (right, quality, "levels")):
        for task, of_task in measured.items():
            points = sorted((float(commanded), found["value"]) for commanded, found in of_task[part].items())
            axes.plot(*zip(*points, strict=True), label=task, linewidth=1.6, marker=".")
    top = max((float(commanded) for of_task in length.values() for commanded in of_task["lengths"]), default=1)
    left.plot([0, top], [0, top], color="0.6", linewidth=1, linestyle="--", label="as commanded")
    left.set(xlabel="commanded length (words)", ylabel="achieved length (words)")
    right.set(xlabel="commanded quality", ylabel="achieved reward")
    left.legend(frameon=False, fontsize=8)
    return _picture(figure, "commanded against achieved")


def _figure(panels: int = 1) -> "tuple[Figure, Any]":
    """A figure and its axes; a list of axes where there are several panels."""
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure, and looks for a display

    figure = Figure(figsize=(5.2 if panels == 1 else 7.2, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots(1, panels)
    for each in [axes] if panels == 1 else axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: "Figure", name: str) -> dg.MarkdownMetadataValue:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(data.getvalue()).decode()})")
