"""The plots and samples of the asset pages: small enough to be shown in place, and true to the numbers."""

import re
import xml.etree.ElementTree as ET
from urllib.parse import unquote

import pandas as pd
import pytest

from assets.plots import BOTTOM, IN_PLACE, LEFT, RIGHT, TOP, achieved, histogram, loss_curve, plot, throughput
from assets.results import sample
from assets.teacher_corpus import rows_per_second

SVG = "{http://www.w3.org/2000/svg}"


def drawn(markdown: str) -> tuple[list[list[tuple[int, int]]], list[str]]:
    """The pixels of each line of a plot, and its texts, as a browser reads them."""
    found = re.fullmatch(r"!\[[^]]*\]\(<data:image/svg\+xml,(.*)>\)", markdown)
    assert found
    root = ET.fromstring(unquote(found[1]))
    lines = []
    for path in root.iter(f"{SVG}path"):
        start = re.match(r"M(\d+) (\d+)l", path.attrib["d"])
        if start:
            x, y = int(start[1]), int(start[2])
            steps = [int(n) for n in re.findall(r"-?\d+", path.attrib["d"][start.end() :])]
            line = [(x, y)]
            for dx, dy in zip(steps[::2], steps[1::2], strict=True):
                line.append((line[-1][0] + dx, line[-1][1] + dy))
            lines.append(line)
    return lines, [text.text or "" for text in root.iter(f"{SVG}text")]


def test_a_line_goes_through_its_points() -> None:
    lines, texts = drawn(plot({"a": [(0, 1.0), (5, 3.0), (10, 2.0)]}, "steps", "loss").md_str)
    assert lines == [[(LEFT, BOTTOM), ((LEFT + RIGHT) // 2, TOP), (RIGHT, (TOP + BOTTOM) // 2)]]
    assert texts == ["a", "3", "1", "0", "10", "steps; loss"]


def test_a_plot_of_many_points_keeps_both_ends_and_is_shown_in_place() -> None:
    points = [{"step": step, "loss": 9 - step / 250, "validation_loss": 9.5 if step % 500 == 0 else None} for step in range(2001)]
    markdown = loss_curve(points).md_str
    lines, texts = drawn(markdown)
    assert len(markdown) < IN_PLACE
    assert [line[0][0] for line in lines] == [LEFT, LEFT]
    assert [line[-1] for line in lines] == [(RIGHT, BOTTOM), (RIGHT, TOP)]
    assert {"training", "validation"} < set(texts)


def test_the_rewards_of_five_tasks_fit() -> None:
    rewards = [{"task": f"task-number-{n}-of-many", "reward": (k * (n + 1) % 97) / 97} for n in range(5) for k in range(400)]
    markdown = histogram(pd.DataFrame(rewards), "reward", "reward").md_str
    assert len(markdown) < IN_PLACE
    assert len(drawn(markdown)[0]) == 5


def test_a_histogram_shows_shares_so_that_splits_of_any_size_compare() -> None:
    frame = pd.DataFrame({"task": ["a"] * 3 + ["b"] * 30, "reward": [0.0, 0.0, 1.0] + [0.0, 0.0, 1.0] * 10})
    (a, b), texts = drawn(histogram(frame, "reward", "reward").md_str)
    assert a == b
    assert "66.7" in texts


def test_obedience_is_drawn_beside_what_was_commanded() -> None:
    lines, texts = drawn(achieved({"image": {"16": {"value": 15}, "8": {"value": 9}}}, "words", "words", ideal=True).md_str)
    assert lines[0][0][0] == LEFT
    assert lines[1] == [(LEFT, BOTTOM), (RIGHT, TOP)]
    assert "ideal" in texts


def test_the_names_of_the_built_in_tasks_stand_whole_beside_the_ideal() -> None:
    tasks = {task: {"16": {"value": 15}, "8": {"value": 9}} for task in ("image", "template", "search")}
    assert drawn(achieved(tasks, "words", "words", ideal=True).md_str)[1][:4] == ["image", "template", "search", "ideal"]


def test_large_numbers_are_written_out() -> None:
    assert drawn(throughput([(0, 10), (12, 8990.4)], "steps", "tokens/s").md_str)[1][:4] == ["8990", "0", "0", "12"]


@pytest.mark.parametrize(
    "nothing",
    [throughput([], "minutes", "rows/s"), loss_curve([]), achieved({}, "a", "b")],
)
def test_what_has_no_points_says_so(nothing: object) -> None:
    assert getattr(nothing, "md_str", None) == "nothing to draw"


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(1.0, 2.0), (1.0, 2.0)], [(0.0, 5.0), (9.0, 5.0)]])
def test_points_that_are_all_alike_are_drawn(points: list[tuple[float, float]]) -> None:
    assert len(throughput(points, "minutes", "rows/s").md_str) > 200


def test_the_throughput_of_the_teacher_is_that_of_the_last_run_chunk_by_chunk() -> None:
    start = pd.Timestamp("2026-01-01 00:00:00.999", tz="UTC")  # rows of one chunk on both sides of a second

    def chunk(run: str, second: float, rows: int, recorded: bool = False) -> pd.DataFrame:
        times = [start + pd.Timedelta(seconds=second + n / 1000) for n in range(rows)]
        return pd.DataFrame({"run_id": run, "created_at": times, "recorded": recorded})

    frame = pd.concat([chunk("b", 130, 20), chunk("b", 100, 32), chunk("a", 0, 500), chunk("b", 110, 41), chunk("r", 900, 9, True)])
    found = rows_per_second(frame.reset_index(drop=True))
    assert [(round(minutes, 2), round(rate, 2)) for minutes, rate in found] == [(0.17, 4.1), (0.5, 1.0)]
    assert rows_per_second(frame[frame.recorded]) == []
    assert rows_per_second(chunk("b", 0, 7)) == []


def test_a_name_is_text_whatever_it_holds() -> None:
    markdown = plot({"<script>'\"&>)": [(0, 1), (1, 2)]}, "](x) <a", "b|c").md_str
    _, texts = drawn(markdown)
    assert texts[0] == "script)"
    assert markdown.count("](<data:") == 1


def test_a_sample_is_as_long_as_is_shown_in_place() -> None:
    frame = pd.DataFrame({"task": "image", "text": [f"{n:03} " + "word " * 30 for n in range(300)]})
    shown = sample(frame, ["task", "text"]).md_str
    assert len(shown) < IN_PLACE
    assert shown.count("\n") - 1 == 5
    assert sample(frame.assign(text="x" * 600), ["task", "text"]).md_str.count("\n") - 1 == 3
