"""Cancel and kill twenty runs of a real deployment in a row, and look at what each leaves behind.

    make operations                             (ARGS="--minutes 5" does as much as fits, and the next call goes on from there)

`dagster dev` runs as `make ui` runs it, on a small project; runs are launched and cancelled through the UI's own GraphQL. A run is
ended in turn by the button Terminate, by SIGKILL of its step and by SIGKILL of its worker, in turn in the teacher's corpus (vLLM first,
where it is installed, then a slow endpoint), the dataset, a training, an evaluation and an export. After each the daemon has a minute
to leave no process, no slot of a pool and no lock. Retries are switched off for these runs, so that each kill stays alone. At the end a run
with the settings of the last kills has to complete.

Prints a table and writes docs/results/operations.json and .md. Ends with 1 where something was left.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.operations.deployment import REPOSITORY, Deployment, Endpoint, wait
from udrl_pipeline.store.database import Database

RESULTS = REPOSITORY / "docs" / "results"
KILLS = 20
PATIENCE_S = 60.0
HOW = {"cancel": "Terminate in the UI", "step": "SIGKILL of the step", "worker": "SIGKILL of the run's worker"}
#: The assets in which runs are ended, and the longest time into their step.
WHERE = {"teacher_corpus": 25.0, "labeled_dataset": 2.5, "student/udrl": 12.0, "evaluation_report": 12.0, "student_export/udrl": 3.0}


@dataclass(frozen=True)
class Ending:
    """One run that was ended, and how long what it had lasted (seconds after it; None: longer than anybody waits)."""

    how: str
    where: str
    engine: str
    after_s: float
    ended_s: float | None
    gone_s: float | None
    free_s: float | None
    status: str
    children: int
    locks: list[str]

    @property
    def harm(self) -> list[str]:
        left = {"run under way": self.ended_s, "process": self.gone_s, "slot": self.free_s}
        return [f"{what} after {PATIENCE_S:g} s" for what, seconds in left.items() if seconds is None] + self.locks


def config(number: int, where: str, engine: str) -> dict[str, Any]:
    """What the launchpad sets for the run of a kill: something that gives the asset work to do."""
    chosen: dict[str, Any] = {}
    if where == "teacher_corpus":
        chosen["teacher"] = {"engine": engine, "temperature": round(0.6 + number / 100, 2)}
    elif where == "labeled_dataset":
        chosen["overrides"] = {"rewards.gain_cap": round(0.5 + number / 100, 2)}
    elif where == "student/udrl":
        chosen["student"] = {"seed": 100 + number}
    elif where == "evaluation_report":
        chosen["evaluation"] = {"seed": 100 + number}
    else:
        chosen["evaluation"] = {"temperature": round(0.6 + number / 100, 2)}
    return chosen


def plan() -> list[tuple[str, str, str]]:
    """How, where, and with which engine each run is ended."""
    first = "vllm" if importlib.util.find_spec("vllm") else "server"
    ways = [(how, where) for where in WHERE for how in HOW]
    return [(*ways[number % len(ways)], first if number < len(ways) else "server") for number in range(KILLS)]


def end_a_run(deployment: Deployment, number: int, draw: random.Random) -> Ending:
    how, where, engine = plan()[number]
    while True:
        run = deployment.launch(assets=[where], config=config(number, where, engine))
        deployment.wait_for_step(run, where)
        after = draw.uniform(0.2, WHERE[where])
        time.sleep(after)
        if deployment.status(run) == dg.DagsterRunStatus.STARTED:
            break
        number += KILLS  # its step had ended before: another one
    children = len(deployment.of_runs())
    began = time.monotonic()
    if how == "cancel":
        deployment.cancel(run)
    else:
        (deployment.step(run) if how == "step" else deployment.worker(run)).kill()
    left: dict[str, float | None] = {}
    for name, question in (
        ("ended_s", lambda: (found := deployment.instance.get_run_by_id(run)) and found.is_finished),
        ("gone_s", lambda: not deployment.of_runs()),
        ("free_s", lambda: not any(deployment.slots().values())),
    ):
        try:
            wait(question, PATIENCE_S, name)
            left[name] = round(time.monotonic() - began, 1)
        except TimeoutError:
            left[name] = None
    with Database(deployment.folder / "artifacts" / "udrl.duckdb", wait_s=2).writer() as connection:
        connection.execute("SELECT 1")
    status = deployment.status(run).value.lower()
    return Ending(how, where, engine, round(after, 1), **left, status=status, children=children, locks=deployment.locks_held())


def go_on(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Do what is left, as long as there is time; what was found until now."""
    file = folder / "state.json"
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"endings": [], "first": None, "last": None}
    deadline = time.monotonic() + 60 * minutes
    project = folder / "project"
    with Endpoint(seconds=1.0) as endpoint, Deployment(project, endpoint.url, webserver=True) as deployment:
        if state["first"] is None:
            state["first"] = _whole_run(deployment, {})
            file.write_text(json.dumps(state), encoding="utf-8")
        while (number := len(state["endings"])) < KILLS and time.monotonic() < deadline:
            ending = end_a_run(deployment, number, random.Random(f"{seed}/{number}"))
            state["endings"].append(asdict(ending))
            file.write_text(json.dumps(state), encoding="utf-8")
            took = f"run {ending.ended_s} s, processes {ending.gone_s} s, slots {ending.free_s} s"
            print(f"{number + 1:3} of {KILLS}  {HOW[ending.how]:28} {ending.where:18} {took}  {ending.harm or 'nothing left'}", flush=True)
        if len(state["endings"]) == KILLS and state["last"] is None and time.monotonic() < deadline:
            of_kills = [config(number, plan()[number][1], "server") for number in range(KILLS)]
            last = {name: section for chosen in of_kills for name, section in chosen.items()}
            state["last"] = _whole_run(deployment, last)
            file.write_text(json.dumps(state), encoding="utf-8")
    return state


def _whole_run(deployment: Deployment, chosen: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    run = deployment.launch("everything", config=chosen)
    status = deployment.wait_for_end(run)
    made = deployment.materialised(run)
    if status != dg.DagsterRunStatus.SUCCESS:
        print(*deployment.failures(run), sep="\n", file=sys.stderr)
    return {"status": status.value.lower(), "seconds": round(time.monotonic() - began, 1), "assets": sorted(made)}


COLUMNS = ("ended by", "runs", "run ended (s)", "processes gone (s)", "slots free (s)", "processes left", "slots left", "locks left")


def table(endings: list[Ending]) -> list[tuple[Any, ...]]:
    """A line for each way to end a run, and their sum; times as median and longest."""
    lines = [(HOW[how], [ending for ending in endings if ending.how == how]) for how in HOW]
    return [
        (title, len(found), *(_times(found, name) for name in ("ended_s", "gone_s", "free_s")),
         *(sum(getattr(ending, name) is None for ending in found) for name in ("gone_s", "free_s")),
         sum(len(ending.locks) for ending in found))
        for title, found in [*lines, ("all", endings)] if found
    ]  # fmt: skip


def _times(endings: list[Ending], name: str) -> str:
    found = [seconds for ending in endings if (seconds := getattr(ending, name)) is not None]
    return f"{statistics.median(found):.1f}, at most {max(found):.1f}" if found else "-"


PAGE = """# {done} runs cancelled or killed

`dagster dev` as `make ui` runs it, on the small project of `make torture`. Each run is launched from the launchpad's GraphQL and
ended in the middle of its step: by the button Terminate, by SIGKILL of the step's process, or by SIGKILL of the run's worker; in turn in
the teacher's corpus ({engines}), the dataset, a training, an evaluation and an export. Nothing is cleaned up between them but by the
pipeline and Dagster's daemon, which has {patience:g} s. Seconds are counted from the signal, as median and longest.

{table}

{done} of {planned} are done. {harm} {last}

Each run reached its step, so none found a pool or a lock taken by the one before. A slot of a killed run is freed by the daemon, which
looks every ten seconds for runs that ended ten seconds ago (`run_monitoring` in dagster.yaml).

On {cores} cores ({machine}), shared with other work. Made by `make operations`; `ARGS="--minutes 5"` does as much as fits.
"""


def write(state: dict[str, Any], folder: Path) -> list[tuple[Any, ...]]:
    """Write operations.json and operations.md; the lines of the table."""
    endings = [Ending(**ending) for ending in state["endings"]]
    lines = table(endings)
    harmful = [f"{HOW[ending.how]} in {ending.where}: {', '.join(ending.harm)}" for ending in endings if ending.harm]
    last = state["last"]
    told = (
        f"The run after them, with the settings of the last ones, ended with {last['status']} in {last['seconds']:g} s and made "
        f"{', '.join(last['assets'])}."
        if last
        else "The run after them is still to do."
    )
    result = {
        **state,
        "kills": len(endings),
        "planned": KILLS,
        "harmful": harmful,
        "table": [dict(zip(COLUMNS, line, strict=True)) for line in lines],
    }
    (folder / "operations.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [COLUMNS, ["---"] * len(COLUMNS), *lines]
    page = PAGE.format(
        done=len(endings), planned=KILLS, patience=PATIENCE_S, last=told, cores=os.cpu_count(), machine=platform.machine(),
        engines=" and ".join(dict.fromkeys(ending.engine for ending in endings if ending.where == "teacher_corpus")),
        harm="Left behind: " + "; ".join(harmful) + "." if harmful else "None of them left anything behind.",
        table="\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows),
    )  # fmt: skip
    (folder / "operations.md").write_text(page, encoding="utf-8")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no other run after so many minutes")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "artifacts" / "operations", help="where the project and the state lie")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    state = go_on(given.folder.absolute(), given.minutes, given.seed)
    for line in write(state, given.results):
        print(*line, sep=" | ")
    failed = any(Ending(**ending).harm for ending in state["endings"]) or (state["last"] or {}).get("status", "success") != "success"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
