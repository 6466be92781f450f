"""Small plots for the metadata, as SVG within Markdown.

The UI shows Markdown in place only below 1,000 characters, and behind a link otherwise; and the event log keeps every plot for ever. So
a plot is drawn here with as many points as fit, rather than by matplotlib, whose smallest picture has ten times as many.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

#: Markdown that is shown in place is shorter.
IN_PLACE = 1000
#: The hues of Okabe and Ito that are dark enough for lines on white and light enough on black.
HUES = ("07b", "d50", "096", "c7a", "e90")
#: Where the curves are drawn, in pixels: left, right, top, bottom.
LEFT, RIGHT, TOP, BOTTOM = 34, 330, 16, 110
Points = Sequence[tuple[float, float]]


def histogram(frame: pd.DataFrame, column: str, label: str, by: str = "task") -> dg.MarkdownMetadataValue:
    """How a column is distributed: the share of the rows, one line for each value of the column `by`."""
    edges = np.histogram_bin_edges(frame[column], bins=16)
    middles = (edges[1:] + edges[:-1]) / 2
    lines = {}
    for name, rows in frame[[by, column]].groupby(by):  # a group is a copy, which of a million texts takes seconds
        counts = np.histogram(rows[column], bins=edges)[0]
        lines[str(name)] = list(zip(middles.tolist(), (100 * counts / max(len(rows), 1)).tolist(), strict=True))
    return plot(lines, label, "% of rows", from_zero=True)


def loss_curve(points: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """Training and validation loss over the optimiser steps, from a student's loss.json."""
    known = {
        label: [(float(point["step"]), float(point[key])) for point in points if point.get(key) is not None]
        for key, label in (("loss", "training"), ("validation_loss", "validation"))
    }
    return plot({label: found for label, found in known.items() if found}, "optimiser steps", "nats per token")


def throughput(points: Points, across: str, unit: str) -> dg.MarkdownMetadataValue:
    """How fast the work went: (where it stood, things per second)."""
    return plot({"": points} if points else {}, across, unit, from_zero=True)


def achieved(by_task: Mapping[str, Mapping[str, Any]], across: str, unit: str, ideal: bool = False) -> dg.MarkdownMetadataValue:
    """What a student achieved at each command, one line a task.

    Args:
        by_task: Task -> command -> an interval of metrics.json, whose `value` was achieved.
        ideal: Also draw what perfect obedience would be.
    """
    lines = {task: sorted((float(command), float(found["value"])) for command, found in of.items()) for task, of in by_task.items()}
    commands = [command for line in lines.values() for command, _ in line]
    if ideal and commands:
        lines["ideal"] = [(min(commands), min(commands)), (max(commands), max(commands))]
    return plot(lines, across, unit)


def plot(lines: Mapping[str, Points], across: str, unit: str, from_zero: bool = False) -> dg.MarkdownMetadataValue:
    """Lines over one axis, each with its name, and the ends of both axes: as many of the points as can be shown in place."""
    lines = {name: points for name, points in lines.items() if len(points)}
    if not lines:
        return dg.MetadataValue.md("nothing to draw")
    most = max(len(points) for points in lines.values())
    drawn = _drawn(lines, across, unit, from_zero, most)
    while len(drawn) >= IN_PLACE and most > 3:
        most -= 1
        drawn = _drawn(lines, across, unit, from_zero, most)
    return dg.MetadataValue.md(drawn)


def _drawn(lines: Mapping[str, Points], across: str, unit: str, from_zero: bool, most: int) -> str:
    every = np.array([point for points in lines.values() for point in points], float)
    (x0, y0), (x1, y1) = every.min(axis=0), every.max(axis=0)
    y0 = min(0.0, y0) if from_zero else y0
    parts, room = [], (RIGHT - LEFT) / max(len(lines), 1)
    for number, (name, points) in enumerate(lines.items()):
        chosen = [points[n] for n in np.unique(np.linspace(0, len(points) - 1, most).round().astype(int))]
        pixels = [(round(LEFT + (RIGHT - LEFT) * _share(x, x0, x1)), round(BOTTOM - (BOTTOM - TOP) * _share(y, y0, y1))) for x, y in chosen]
        hue = HUES[number % len(HUES)]
        parts.append(f"<path d='{_path(pixels)}' stroke='#{hue}'/>")
        if name:
            parts.append(_text(LEFT + room * number + 4, 9, _plain(name)[: 14 if len(lines) < 4 else 8], f" fill='#{hue}'"))
    ends = (
        _text(0, TOP + 8, _number(y1))
        + _text(0, BOTTOM, _number(y0))
        + _text(LEFT, 122, _number(x0))
        + _text(RIGHT - 14, 122, _number(x1))
        + _text(90, 122, _plain(f"{across}; {unit}"))
    )
    svg = (
        # without a size of its own a picture in a table's column has none
        "<svg xmlns='http://www.w3.org/2000/svg' width='345' height='126' viewBox='0 0 345 126'"
        " style='font:10px Arial' fill='gray'>"
        f"<g fill='none'><path d='M{LEFT} {TOP}V{BOTTOM}H{RIGHT}' stroke='gray'/>"
        + "".join(part for part in parts if part.startswith("<path"))
        + "</g>"
        + "".join(part for part in parts if not part.startswith("<path"))
        + ends
        + "</svg>"
    )
    quoted = svg.replace("%", "%25").replace("#", "%23").replace("<", "%3C").replace(">", "%3E")
    return f"![{_plain(unit)}](<data:image/svg+xml,{quoted}>)"


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _path(pixels: Sequence[tuple[int, int]]) -> str:
    """A line through the points, each told by its distance from the one before, which takes fewer characters."""
    (x, y), written = pixels[0], f"M{pixels[0][0]} {pixels[0][1]}l"
    if len(pixels) == 1:
        return f"M{x - 2} {y}h4"
    for next_x, next_y in pixels[1:]:
        written += f"{next_x - x} {next_y - y} "
        x, y = next_x, next_y
    return written.rstrip().replace(" -", "-")


def _text(x: float, y: int, text: str, look: str = "") -> str:
    return f"<text x='{round(x)}' y='{y}'{look}>{text}</text>"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plain(text: str) -> str:
    """A name without what means something in XML or Markdown; names of tasks and the like have no such thing."""
    return "".join(letter for letter in text if letter.isalnum() or letter in " _-/;%,.()")
