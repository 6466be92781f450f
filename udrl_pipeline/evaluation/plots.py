"""Small plots as inline SVG. Their colours are CSS variables of the page, so they follow its light and dark scheme.

One panel per task instead of one wide figure: the page lays panels side by side on a desktop and one below the other on a phone.
The hues are those of Okabe and Ito, which colour-blind readers can tell apart; systems also differ in their line or marker.
"""

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What matplotlib draws with -> what stands in the page.
INK, FAINT = "#101112", "#d0d1d2"
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
CSS = {INK: "currentColor", FAINT: "var(--grid)"} | {hue: f"var(--hue-{number})" for number, hue in enumerate(HUES)}
MARKERS = ("o", "s", "^", "D", "v", "P")
PANEL = (4.4, 3.1)

STYLE: Any = {
    "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.axisbelow": True, "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    "legend.frameon": False, "legend.fontsize": 8, "svg.fonttype": "none",
    "text.parse_math": False,
}  # fmt: skip

Series = Mapping[str, Sequence[tuple[float, float, float, float]]]


def hue(number: int) -> str:
    return HUES[number % len(HUES)]


def _styled(draw: Callable[..., str]) -> Callable[..., str]:
    """Run a plot under this page's style; matplotlib reads some of it when things are added, some when they are drawn."""

    @functools.wraps(draw)
    def styled(*arguments: Any, **options: Any) -> str:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*arguments, **options)

    return styled


def _panel(size: tuple[float, float] = PANEL) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: "Figure", name: str, description: str) -> str:
    """The figure as an <svg> element that scales with its container; `name` keeps its ids apart from other figures'."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    for _ in ("width", "height"):
        text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    text = re.sub(r'\b(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)  # the page's own
    for drawn, css in CSS.items():
        text = text.replace(drawn, css)
    return text.strip()


@_styled
def quality_panel(name: str, title: str, series: Series, base: tuple[str, float] | None, best: int | None) -> str:
    """Achieved reward for each commanded quality.

    Args:
        series: Student -> points (commanded, mean, low, high).
        base: Label and mean reward of a system to draw as a level line.
        best: The quality that `best` means.
    """
    figure, axes = _panel()
    _with_intervals(axes, series)
    ticks = sorted({point[0] for points in series.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:g}\n(best)" if tick == best else f"{tick:g}" for tick in ticks])
    if base:
        axes.axhline(base[1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label=base[0])
    axes.set(title=title, xlabel="commanded quality", ylabel="achieved reward")
    axes.legend(loc="best")
    return _svg(figure, name, f"{title}: achieved reward for each commanded quality")


@_styled
def length_panel(name: str, title: str, series: Series, teacher: Sequence[tuple[float, float]], covered: tuple[int, int]) -> str:
    """Achieved words for each commanded length, the diagonal of perfect obedience, and what the teacher makes of what it is asked."""
    figure, axes = _panel()
    _with_intervals(axes, series)
    top = 4 + max([point[0] for points in series.values() for point in points] + [x for x, _ in teacher])
    axes.plot([0, top], [0, top], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="as commanded")
    if teacher:
        axes.plot(*zip(*teacher, strict=True), color=hue(3), marker="x", linestyle=":", linewidth=1.2, label="teacher, as asked")
    axes.axvspan(*covered, color=FAINT, alpha=0.35, linewidth=0)
    axes.set(title=title, xlabel="commanded length (words)", ylabel="achieved length (words)", xlim=(0, top), ylim=(0, None))
    axes.legend(loc="best")
    return _svg(figure, name, f"{title}: achieved length for each commanded length, in words")


def _with_intervals(axes: "Axes", series: Series) -> None:
    for number, (label, points) in enumerate(series.items()):
        x, mean, low, high = (np.array(column) for column in zip(*points, strict=True))
        look: dict[str, Any] = {"color": hue(number), "marker": MARKERS[number % len(MARKERS)], "markersize": 4.5}
        axes.errorbar(x, mean, yerr=[mean - low, high - mean], label=label, linewidth=1.6, capsize=2.5, **look)


@_styled
def relevance_panel(name: str, title: str, systems: Mapping[str, tuple[float, float, float]]) -> str:
    """Mean relevance of each system with its interval, the first one on top."""
    figure, axes = _panel((4.4, 0.9 + 0.32 * len(systems)))
    for number, (value, low, high) in enumerate(systems.values()):
        axes.errorbar(
            value, -number, xerr=[[value - low], [high - value]], color=hue(number), marker=MARKERS[number % len(MARKERS)], capsize=3
        )
        axes.annotate(f"{value:.3f}", (value, -number), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8, color=INK)
    axes.set_yticks([-number for number in range(len(systems))], list(systems))
    axes.set_ylim(-len(systems) + 0.4, 0.7)
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel="relevance")
    return _svg(figure, name, f"{title}: mean relevance of each system with its 95% interval")


@_styled
def reward_panel(name: str, title: str, systems: Mapping[str, Sequence[float]], edges: Sequence[float]) -> str:
    """How each system's rewards are distributed, the first one's filled, with the inner edges of the quality bins."""
    figure, axes = _panel()
    everything = [reward for rewards in systems.values() for reward in rewards]
    bins = np.linspace(min(everything), max(everything) + 1e-9, 13).tolist()
    for number, (label, rewards) in enumerate(systems.items()):
        shares = np.full(len(rewards), 100 / max(len(rewards), 1))
        if number == 0:
            axes.hist(rewards, bins=bins, weights=shares, color=hue(0), alpha=0.3, label=label)
        else:
            axes.hist(
                rewards,
                bins=bins,
                weights=shares,
                histtype="step",
                color=hue(number),
                linewidth=1.8,
                linestyle=("-", "--", ":")[number % 3 - 1],
                label=label,
            )
    for edge in edges:
        axes.axvline(edge, color=INK, linewidth=0.6, linestyle=(0, (1, 3)))
    axes.set(title=title, xlabel="reward (dotted: edges of the quality bins)", ylabel="texts (%)")
    axes.legend(loc="upper left")
    return _svg(figure, name, f"{title}: distribution of rewards by system")


@_styled
def loss_panel(name: str, title: str, losses: Sequence[Mapping[str, float]]) -> str:
    """A student's training and validation loss (nats per token) over its optimiser steps."""
    figure, axes = _panel()
    for number, (key, label) in enumerate((("loss", "training"), ("validation_loss", "validation"))):
        points = [(entry["step"], entry[key]) for entry in losses if key in entry]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=hue(number),
                marker=MARKERS[number],
                markersize=2.5 + 2 * number,
                linewidth=1.5,
                label=label,
            )
    axes.set(title=title, xlabel="optimiser step", ylabel="loss (nats per token)")
    axes.legend(loc="upper right")
    return _svg(figure, name, f"{title}: loss over the steps of training")
