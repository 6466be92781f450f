"""Small pictures for the metadata. They live in Dagster's event log, so each is a PNG of some 10 KB."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def histogram(frame: pd.DataFrame, column: str, label: str, bins: int = 30) -> dg.MarkdownMetadataValue:
    """How a column is distributed, one line a task. `frame` has the columns task and `column`."""
    figure, axes = _figure()
    for task, rows in frame.groupby("task"):
        axes.hist(rows[column], bins=bins, histtype="step", linewidth=1.6, label=str(task))
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


def _figure() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure, and looks for a display

    figure = Figure(figsize=(5.2, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: "Figure", name: str) -> dg.MarkdownMetadataValue:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(data.getvalue()).decode()})")
