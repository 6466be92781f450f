"""What a row costs in each step beside the models' own work: the figures of docs/scale.md that no other benchmark tells.

    .venv/bin/python benchmarks/scale.py [--rows 50000] [--out FILE.json]

Each measure is taken in a process of its own, at half of the rows and at all of them: what a row costs is the difference, so that the start
of a process counts nothing. The teacher answers at once with a recorded text; the scorer is the real one. Prints a table and writes JSON.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import synthetic

from udrl_pipeline import corpus, dataset, quality, rewards, settings
from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.recorded import recorded_rows
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.student.recipes import RECIPES
from udrl_pipeline.teacher import Reply, Request

#: What a measure tells of some rows: how many there were, and the seconds that they took.
Found = tuple[int, float]


class Instantly:
    """A teacher that takes no time."""

    name, version = "instantly", "1"

    def __init__(self) -> None:
        self._texts = itertools.cycle(pd.concat([pd.read_parquet(file, columns=["text"]) for file in recorded_rows()]).text.tolist())

    def generate(self, requests: list[Request]) -> list[Reply]:
        return [Reply(text, round(1.4 * len(text.split())), "stop") for text in itertools.islice(self._texts, len(requests))]

    def close(self) -> None:
        pass


def with_ideas(folder: Path, ideas: int) -> Workspace:
    """A workspace whose intents shall be so many ideas."""
    file = folder / "ideas.csv"
    pd.DataFrame({"intent": [f"idea {n} of many" for n in range(ideas)]}).to_csv(file, index=False)
    return Workspace(synthetic.load(folder, **{"intents.builtin": 0, "intents.sources": [str(file)], "teacher.recorded": False}))


def ideas(folder: Path, rows: int) -> Found:
    """`intents`, per idea; as many as the others have rows."""
    workspace = with_ideas(folder, rows)
    return rows, taken(lambda: intents.build(workspace))


def corpus_without_teacher(folder: Path, rows: int) -> Found:
    """`teacher_corpus`: planned, committed in chunks, published; the teacher takes no time."""
    workspace = with_ideas(folder, -(-rows // (len(settings.load(synthetic.PARAMS, preset="").tasks.names) * synthetic.SAMPLES)))
    intents.build(workspace)
    corpus.open_engine = lambda settings: Instantly()  # type: ignore[assignment]
    return rows, taken(lambda: corpus.build(workspace))


def scoring(folder: Path, rows: int) -> Found:
    """Relevance of recorded rows; a twenty-fifth of the rows, for this is the only model here."""
    frame = pd.concat([pd.read_parquet(file, columns=["intent", "text"]) for file in recorded_rows()]).head(rows // 25)
    scorer = rewards.Scorer(synthetic.load(folder))
    scorer.embed(["warm"])
    return len(frame), taken(lambda: scorer.relevance(frame.intent.tolist(), frame.text.tolist()))


def training_rows(folder: Path, rows: int) -> Found:
    """What a student does before its first step: its vocabulary, and the sequences of one pass over the training rows."""
    from udrl_pipeline.student.initialise import initialise
    from udrl_pipeline.student.sequences import training_order

    workspace = Workspace(synthetic.load(folder))
    frame = synthetic._base(workspace, rows, 1)
    edges = dataset.quality_edges(frame, workspace.settings.commands.quality_bins)
    train = frame.assign(quality=dataset.quality_bins(frame, edges))[dataset.COLUMNS]
    space, options = CommandSpace.measure(train, edges, workspace.settings.commands), workspace.settings.student

    def work() -> None:
        start = initialise(workspace.settings, space, sorted({*train.intent, *train.text}))
        ordered = training_order(
            train, space, RECIPES["udrl"], start.tokenizer, options, passes=1, dropout=workspace.settings.commands.dropout
        )
        kept.append([sequence.features() for sequence in ordered])

    kept: list[object] = []
    return rows, taken(work)


def near_duplicates(folder: Path, rows: int) -> Found:
    """Pairs of texts of one idea and task that are compared."""
    texts = pd.concat([pd.read_parquet(file, columns=["text"]) for file in recorded_rows()]).text.drop_duplicates().head(rows // 40)
    frame = pd.DataFrame({"task": "image", "intent_key": "one", "text": texts.to_numpy()})
    return len(frame) * (len(frame) - 1) // 2, taken(lambda: quality._similarity_to_earlier(frame))


def taken(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


MEASURES: dict[str, Callable[[Path, int], Found]] = {
    "intents, ideas": ideas,
    "teacher_corpus without teacher": corpus_without_teacher,
    "scoring": scoring,
    "training sequences": training_rows,
    "near duplicates, pairs": near_duplicates,
}


def in_process(name: str, rows: int, answer: "multiprocessing.Queue[tuple[int, float, int]]") -> None:
    with tempfile.TemporaryDirectory() as folder:
        units, seconds = MEASURES[name](Path(folder), rows)
    answer.put((units, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure(name: str, rows: int) -> dict[str, float]:
    """Seconds and bytes of memory of one more row (or pair), between half of the rows and all of them."""
    context, found = multiprocessing.get_context("spawn"), list[tuple[int, float, int]]()
    for size in (rows // 2, rows):
        answer: multiprocessing.Queue[tuple[int, float, int]] = context.Queue()
        process = context.Process(target=in_process, args=(name, size, answer))
        process.start()
        found.append(answer.get())
        process.join()
    (fewer, less, smaller), (more, longer, larger) = found
    return {
        "from": fewer, "to": more, "seconds": round(longer, 2), "peak_mb": round(larger / 2**20),
        "us_each": round((longer - less) / (more - fewer) * 1e6, 2), "bytes_each": round((larger - smaller) / (more - fewer)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="NAME", help="these alone; what the file holds of others stays")
    parser.add_argument("--out", type=Path, default=Path("docs/results/scale.json"))
    arguments = parser.parse_args()
    result = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {"measures": {}}
    for name in arguments.only or MEASURES:
        result["measures"][name] = found = measure(name, arguments.rows) | {"load": round(os.getloadavg()[0], 1)}
        print(f"{name:<32} {found['us_each']:>10.2f} us  {found['bytes_each']:>8,.0f} bytes each, {found['seconds']} s", flush=True)
    result["cores"] = len(os.sched_getaffinity(0))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
