"""Kill the pipeline with SIGKILL, 100 times, and see that each run resumes to the very result of a run that nobody killed.

    make torture                                (ARGS="--minutes 3" does as much as fits, and the next call goes on from there)

60 kills come at moments drawn over all steps, ten each at the worst ones: between a version's folder and its ledger rows, inside a
publish, inside a checkpoint, inside a transaction. To save time a run that is killed begins at the step of its moment, with what an
uninterrupted run had made until then. After each kill the store is examined as it lies; then the run is started again, and what it
ends with is compared with the uninterrupted run: versions, every row, the ledger, the bytes of the student and of its export.

Runs are forked from this process, which has imported everything and computed nothing: it has one thread, so a fork is safe.
Prints a table and writes docs/results/reliability.json and .md. Ends with 1 where a kill did harm; that store is kept.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

# before these libraries are imported: no thread but the main one, and nobody is asked or told anything
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "GX_ANALYTICS_ENABLED": "false"}

from benchmarks.torture import store
from benchmarks.torture.moments import ANYWHERE, CHECKPOINT, POINTS, PUBLISH, TRANSACTION, UNENTERED, Moment, arm, run_armed
from benchmarks.torture.pipeline import REPOSITORY, SMALL, STEPS, open_workspace, run
from udrl_pipeline.versioning import code_version, content_hash, file_sha256

KILLS_PER_MOMENT = 10
RESULTS = REPOSITORY / "docs" / "results"
Told = list[tuple[float, str]]
Tell = Callable[[str], None]
TITLES = {
    ANYWHERE: "anywhere in {where}",
    UNENTERED: "between a version's folder and its ledger rows",
    PUBLISH: "inside a publish",
    CHECKPOINT: "inside a checkpoint of the Trainer",
    TRANSACTION: "inside a transaction or its commit",
}


def warm_up() -> None:
    """Import what the steps import, so that a forked run does not."""
    import evaluate  # noqa: F401
    import great_expectations  # noqa: F401
    import matplotlib.pyplot as plt  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, Trainer  # noqa: F401


def in_child(work: Callable[[Tell], None], log: Path, kill: tuple[str, float] | None = None) -> tuple[int, Told]:
    """Do something in a forked process.

    Args:
        kill: A line that the work tells, and how many seconds after it the process is killed.

    Returns:
        The exit status (negative: the signal), and what it told, each line with the second since the start.
    """
    assert threading.active_count() == 1, threading.enumerate()
    reading, writing = os.pipe()
    started, pid = time.monotonic(), os.fork()
    if pid == 0:
        _be_the_child(work, log, writing)
    os.close(writing)
    told: Told = []
    with os.fdopen(reading, encoding="utf-8") as lines:
        for line in lines:
            told.append((time.monotonic() - started, line.rstrip("\n")))
            if kill and told[-1][1] == kill[0]:
                time.sleep(kill[1])
                os.kill(pid, signal.SIGKILL)  # one that has ended is not reaped yet, so the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def _be_the_child(work: Callable[[Tell], None], log: Path, writing: int) -> None:
    status = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work(lambda line: (os.write(writing, f"{line}\n".encode()), None)[1])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Torture:
    """The kills that are planned, and those that are done.

    Args:
        folder: Where stores, logs and the state lie.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)
        self.state_file, self.log = folder / "state.json", folder / "log.txt"
        library = REPOSITORY / "udrl_pipeline"
        sources = sorted(file.relative_to(library).as_posix() for file in library.rglob("*.py"))
        harness = [file_sha256(Path(__file__).with_name(name)) for name in ("moments.py", "pipeline.py", "store.py")]
        code = content_hash([seed, code_version(sources), harness])  # kills of other code tell nothing about this one
        self.state: dict[str, Any] = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}
        if self.state.get("code") != code:
            self.state = {"code": code, "seed": seed, "kills": [], **self._uninterrupted()}
            self._save()

    def _save(self) -> None:
        staged = self.state_file.with_suffix(".new")
        staged.write_text(json.dumps(self.state), encoding="utf-8")
        staged.replace(self.state_file)

    def _ask(self, work: Callable[[Tell], None]) -> Any:
        status, told = in_child(work, self.log)
        if status:
            sys.exit(f"the harness failed, see {self.log}")
        return json.loads(told[-1][1])

    def _uninterrupted(self) -> dict[str, Any]:
        """Two runs that nobody kills: what they make, which must be the same, and how long the steps and commits of the second take."""
        made = []
        for name in ("first", "second"):
            artifacts = self.folder / name
            shutil.rmtree(artifacts, ignore_errors=True)

            def work(tell: Tell, artifacts: Path = artifacts) -> None:
                arm(Moment(ANYWHERE), tell)
                run(artifacts, tell, before=lambda step: _copy(artifacts, self._until(step)))

            status, told = in_child(work, self.log)
            if status:
                sys.exit(f"the uninterrupted run failed, see {self.log}")
            made.append(self._ask(lambda tell, artifacts=artifacts: tell(json.dumps(store.contents(open_workspace(artifacts))))))
        if different := [part for part in made[0] if made[0][part] != made[1][part]]:
            sys.exit(f"two uninterrupted runs differ in {', '.join(different)}")
        at = {line: second for second, line in told}
        commits = {line: at[f"committed {line.split()[1]}"] - at[line] for line in at if line.startswith("commit ")}
        within = {step: [line for line in commits if at[f"begin {step}"] < at[line] < at[f"end {step}"]] for step in STEPS}
        return {
            "expected": made[0],
            "seconds": {step: at[f"end {step}"] - at[f"begin {step}"] for step in STEPS},
            "transactions": [(step, number) for step, lines in within.items() for number in range(1, len(lines) + 1)],
            "commit_s": sorted(commits.values())[len(commits) // 2],
            "checkpoints": sum(line.startswith("checkpoint ") for line in at),
        }

    def _until(self, step: str) -> Path:
        """What an uninterrupted run had made before a step."""
        return self.folder / "until" / step.replace("/", "-")

    def plan(self) -> list[Moment]:
        """Every kill, always the same ones; the kinds in turn, so that a part of them is a fair part."""
        draw, assets = random.Random(self.state["seed"]), list(STEPS)
        planned: list[Moment] = []
        for i in range(KILLS_PER_MOMENT):
            planned += [Moment(ANYWHERE, step, draw=draw.random()) for step in STEPS]
            planned.append(Moment(UNENTERED, assets[i % len(assets)], POINTS[UNENTERED][0]))
            planned.append(Moment(PUBLISH, assets[i % len(assets)], POINTS[PUBLISH][i % 5], draw=draw.random()))
            nth = 2 + draw.randrange(self.state["checkpoints"] - 2)
            planned.append(Moment(CHECKPOINT, "student/udrl", POINTS[CHECKPOINT][i % 3], nth, draw.random()))
            every = self.state["transactions"]
            step, nth = every[int((i + draw.random()) / KILLS_PER_MOMENT * len(every))]
            planned.append(Moment(TRANSACTION, step, POINTS[TRANSACTION][i % 2], 1 + nth, draw.random()))  # the first enters the run
        return planned

    def go_on(self, minutes: float) -> None:
        """Do what is left, as long as there is time."""
        planned, deadline = self.plan(), time.monotonic() + 60 * minutes
        for moment in planned[len(self.state["kills"]) :]:
            if time.monotonic() > deadline:
                return
            kill = self.kill(moment)
            self.state["kills"].append(kill)
            self._save()
            print(
                f"{len(self.state['kills']):3} of {len(planned)}  {_told(moment):88} {'harmless' if not kill['harm'] else kill['harm']}",
                flush=True,
            )

    def kill(self, moment: Moment) -> dict[str, Any]:
        """Run until the moment, look at what is left, resume, and compare."""
        while True:
            artifacts = self.folder / f"kill-{len(self.state['kills']) + 1}"
            _copy(self._until(moment.where), artifacts)

            status, told = in_child(partial(run_armed, moment, artifacts), self.log, self._trigger(moment))
            if status != -signal.SIGKILL and not self._trigger(moment):
                sys.exit(f"{moment}: the run ended with {status}, not by the kill, see {self.log}")
            if status == -signal.SIGKILL and (moment.kind == TRANSACTION or _step(told) == moment.where):
                break
            moment = Moment(**(asdict(moment) | {"draw": self.random.random()}))  # the step had ended before: another moment of it
        left = self._ask(lambda tell: tell(json.dumps(store.as_dict(store.examine(open_workspace(artifacts))))))
        status, _ = in_child(lambda tell: run(artifacts, tell), self.log)
        if status:
            difference = {"lost": 0, "doubled": 0, "others": [f"the resumed run failed, see {self.log}"]}
        else:
            expected = self.state["expected"]
            difference = self._ask(lambda tell: tell(json.dumps(store.as_dict(store.compare(open_workspace(artifacts), expected)))))
        harm = [f"not named: {name}" for name in left["unnamed"]] + left["faults"] + difference["others"]
        harm += [f"{difference[what]} rows {what}" for what in ("lost", "doubled") if difference[what]]
        if not harm:
            shutil.rmtree(artifacts)
        return {
            **asdict(moment), "step": _step(told), "orphans": len(left["orphans"]),
            "named": len(set(left["orphans"]) - set(left["unnamed"])), "staged": len(left["staged"]),
            "lost": difference["lost"], "doubled": difference["doubled"], "same": not difference["others"], "harm": harm,
        }  # fmt: skip

    def _trigger(self, moment: Moment) -> tuple[str, float] | None:
        if moment.kind == ANYWHERE:
            return f"begin {moment.where}", moment.draw * self.state["seconds"][moment.where]
        if (moment.kind, moment.point) == (TRANSACTION, "in the commit"):
            return f"commit {moment.number}", moment.draw * self.state["commit_s"]
        return None


def _copy(folder: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, to)


def _step(told: Told) -> str:
    """The step that was being made; empty before the first and after the last one."""
    lines = [line.split() for _, line in told if line.startswith(("begin", "end"))]
    return lines[-1][1] if lines and lines[-1][0] == "begin" else ""


def _told(moment: Moment) -> str:
    number = f" {moment.number}" if moment.kind in (CHECKPOINT, TRANSACTION) else ""
    point = f": {moment.point} ({moment.where})" if moment.point else ""
    return TITLES[moment.kind].format(where=moment.where) + number + point


COLUMNS = ("moment", "kills", "resumed with the same versions", "rows lost", "rows doubled", "orphans", "of these named")


def table(kills: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """A line for each kind of moment, and their sum."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for kill in sorted(kills, key=lambda kill: [*TITLES].index(kill["kind"])):
        groups.setdefault(TITLES[kill["kind"]].format(where=kill["where"]), []).append(kill)
    total = [("all", kills)] if kills else []
    return [
        (title, len(found), *(sum(kill[name] for kill in found) for name in ("same", "lost", "doubled", "orphans", "named")))
        for title, found in [*groups.items(), *total]
    ]


PAGE = """# Killed {done} times

A small but whole pipeline ({ideas} ideas, {rows} rows, the real scorer, a real Trainer on a student of a few layers, a teacher that makes
its texts up) is killed with SIGKILL and started again. To save time the run that is killed begins at the step of its moment, with
what an uninterrupted run had made until then. Each resumed run is compared with one that nobody killed: the versions of all six
assets, every row and score, every published row, the ledger without its times, and the bytes of the intents, the dataset, the student
and its export. Before it is started again, `verify` has to name every whole folder that the ledger does not hold, and nothing else;
afterwards it has to find nothing, and no half-written folder, checkpoint or work in progress may be left.

{table}

{done} of {planned} planned kills are done{rest}. {harm}

What a kill finds:

{points}

The report's version is the hash of its inputs, texts and figures. The times that it shows are not part of it, so its files differ from
run to run and are not compared.

Made by `make torture`; `ARGS="--minutes 3"` does as much as fits and goes on from there the next time.
"""


def write(torture: Torture, folder: Path) -> list[tuple[Any, ...]]:
    """Write reliability.json and reliability.md; the lines of the table."""
    kills, planned = torture.state["kills"], len(torture.plan())
    lines = table(kills)
    harmful = [
        f"{_told(Moment(**{name: kill[name] for name in Moment.__slots__}))}: {'; '.join(kill['harm'])}" for kill in kills if kill["harm"]
    ]
    result = {
        "kills": len(kills), "planned": planned, "seed": torture.state["seed"], "harmful": harmful,
        "table": [dict(zip(COLUMNS, line, strict=True)) for line in lines],
        "each": [{name: value for name, value in kill.items() if name != "harm"} for kill in kills],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reliability.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *lines]
    page = PAGE.format(
        done=len(kills), planned=planned, rest="" if len(kills) == planned else "; the same command does the rest",
        ideas=SMALL["intents"]["builtin"], rows=len(torture.state["expected"]["rows"]),
        table="\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows),
        harm="None did harm." if not harmful else "These did harm:\n\n" + "\n".join(f"- {line}" for line in harmful),
        points="\n".join(f"- {TITLES[kind]}: {'; '.join(points)}" for kind, points in POINTS.items()),
    )  # fmt: skip
    (folder / "reliability.md").write_text(page, encoding="utf-8")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=600, help="begin no kill after so many; the next call goes on")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "artifacts" / "torture", help="where stores and the state lie")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warm_up()
    torture = Torture(arguments.folder, arguments.seed)
    torture.go_on(arguments.minutes)
    lines = write(torture, arguments.out)
    width = max(len(str(line[0])) for line in [COLUMNS, *lines])
    for line in [COLUMNS, *lines]:
        print(f"{line[0]:{width}}  " + "  ".join(f"{cell!s:>{len(title)}}" for title, cell in zip(COLUMNS[1:], line[1:], strict=True)))
    sys.exit(any(kill["harm"] for kill in torture.state["kills"]))


if __name__ == "__main__":
    main()
