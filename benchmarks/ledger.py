"""The ledger's questions, and publishing, in a store of a million rows and two hundred versions.

    .venv/bin/python benchmarks/ledger.py [--rows 1000000] [--versions 200] [--artifacts FOLDER] [--only NAME ...] [--out FILE.json]

Makes the store (benchmarks/synthetic.py; with --artifacts it is kept, and used again), then runs each command in a fresh process of its
own, as a user would: seconds from its start to its end, the CPU seconds in them, and its peak memory. Questions are asked three times;
the median counts. Prints a table; writes JSON, and the table beside it as Markdown. At full size the store takes 7 GB and ten minutes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import synthetic

from udrl_pipeline import audit, corpus, dataset, rewards
from udrl_pipeline.store.tables import write_table
from udrl_pipeline.store.workspace import Workspace

CLI = [sys.executable, "-m", "udrl_pipeline.cli"]
#: Most seconds, start of the process included.
QUESTION, PUBLISH = 2.0, 60.0
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--versions", type=int, default=200, help="five to a generation")
    parser.add_argument("--artifacts", type=Path, help="where the store is made, kept (default: a temporary folder)")
    parser.add_argument("--generations", type=int, metavar="N", help="only make the store, and at most N generations of it")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these measures alone; what the file holds of others stays")
    parser.add_argument("--out", type=Path, default=Path("docs/results/ledger.json"))
    parser.add_argument("--record", metavar="VERSION", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record:
        print(json.dumps(record_again(arguments.artifacts, arguments.record)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.artifacts or Path(temporary)).absolute()
        # in a process of its own: the peak memory of a child is at least what its parent held when it was started
        making = multiprocessing.get_context("spawn").Process(
            target=synthetic.make, args=(folder, arguments.rows, arguments.versions // len(synthetic.ASSETS), arguments.generations)
        )
        making.start()
        making.join()
        if making.exitcode:
            sys.exit(making.exitcode)
        if arguments.generations is None:
            measure_all(folder, arguments)


def measure_all(folder: Path, arguments: argparse.Namespace) -> None:
    out: Path = arguments.out
    result = json.loads(out.read_text(encoding="utf-8")) if arguments.only and out.exists() else {"measures": {}}
    known = measures(folder)
    if unknown := set(arguments.only or ()) - known.keys():
        sys.exit(f"no such measure: {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    for name, measure in known.items():
        if not arguments.only or name in arguments.only:
            result["measures"][name] = found = measure()
            print(line(name, found), flush=True)
    result |= {"store": store(folder), "cores": os.cpu_count()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    out.with_suffix(".md").write_text(page(result), encoding="utf-8")


def measures(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> how it is measured, in the order of the table."""
    workspace = Workspace(synthetic.load(folder))
    datasets = audit.versions(workspace, dataset.ASSET)
    made = [version for version in datasets if version.run_id.startswith("run-")]
    after, before = made[0], made[min(5, len(made) - 1)]
    # one row, and without pandas: a process starts with the peak memory of the one that starts it, so this one stays small
    found = duckdb.execute("SELECT row_key, intent, source FROM read_parquet(?) LIMIT 1", [str(folder / synthetic.BASE)]).fetchall()
    key, idea, source = found[0]
    middle = f"run-{len(made) // 2}"
    chosen = ["--set", f"artifacts={folder}", "--set", f"teacher.samples={synthetic.SAMPLES}", "--params", str(synthetic.PARAMS)]

    def asked(*words: str, target: float | None = QUESTION, repeats: int = REPEATS) -> Callable[[], dict[str, Any]]:
        return lambda: run([*CLI, "audit", *words, *chosen], target, repeats)

    # a weight that no version before had, so that there is something to publish
    weight = ["--set", f"rewards.weights.gain={0.3 + 0.001 * len(datasets):.3f}"]
    return {
        "publish": lambda: publish(workspace, [*CLI, "run", "--select", dataset.ASSET, *chosen, *weight]),
        "publish: hash, Parquet, ledger": lambda: run(
            [sys.executable, __file__, "--artifacts", str(folder), "--record", after.version], PUBLISH, 1, parts=True
        ),
        "diff": asked("diff", before.version, after.version),
        "trace": asked("trace", after.version),
        "trace --row": asked("trace", "--row", key),
        "versions": asked("versions"),
        "impact --row": asked("impact", "--row", key),
        "impact --intent": asked("impact", "--intent", idea),
        "impact --source": asked("impact", "--source", source),
        "impact --run": asked("impact", "--run", middle),
        "verify, one version": asked("verify", after.version, target=None),
        "verify, all": asked("verify", target=None, repeats=1),
    }


def publish(workspace: Workspace, command: list[str]) -> dict[str, Any]:
    """Score (all rows have a score), label, judge, bin, hash, write and enter the newest corpus: what `udrl run` does."""
    before = len(audit.versions(workspace, dataset.ASSET))
    # Dagster has not seen the synthetic versions, and `udrl run` tells of books that disagree with the exit code 1
    found = run(command, PUBLISH, 1, accepted=(0, 1))
    made = audit.versions(workspace, dataset.ASSET)
    if len(made) != before + 1 or made[0].verdict != "PASS":
        sys.exit(f"nothing was published: {' '.join(command)}")
    return found


def run(command: list[str], target: float | None, repeats: int, parts: bool = False, accepted: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run a command some times: median seconds and CPU seconds, highest peak memory (MB)."""
    taken, busy, peaks, printed = [], [], [], ""
    with tempfile.TemporaryDirectory() as home:
        Path(home, "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
        env = os.environ | {"DAGSTER_HOME": home}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's modules are compiled once, not in every process
        for _ in range(repeats):
            with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
                began = time.perf_counter()
                process = subprocess.Popen(command, stdout=output, stderr=errors, env=env)
                _, status, used = os.wait4(process.pid, 0)
                taken.append(time.perf_counter() - began)
                output.seek(0)
                errors.seek(0)
                printed, told = output.read(), errors.read()
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode not in accepted:
                if "No such command" in told:
                    return {"missing": "no such command"}
                sys.exit(f"{' '.join(command)}\n{printed}{told}")
            busy.append(used.ru_utime + used.ru_stime)
            peaks.append(used.ru_maxrss / 1024)
    found: dict[str, Any] = {
        "seconds": round(statistics.median(taken), 2),
        "cpu_seconds": round(statistics.median(busy), 2),
        "peak_mb": round(max(peaks)),
        "target_seconds": target,
        "load": round(os.getloadavg()[0], 1),
    }
    return found | ({"parts": json.loads(printed.splitlines()[-1])} if parts else {})


def record_again(folder: Path, version: str) -> dict[str, float]:
    """Publish the rows of a dataset once more under another label: what is left of publishing when everything is judged. Seconds."""
    workspace = Workspace(synthetic.load(folder), run_id="again")
    made = workspace.find(dataset.ASSET, version)
    assert made is not None, f"{version} is in the ledger"
    rows = dataset.read_dataset(workspace, version)
    rows["reward"] = (rows.reward + 0.001 * len(audit.versions(workspace, dataset.ASSET))).round(4)
    began = time.perf_counter()
    content = dataset.content_of(rows, made.facts["edges"])
    hashed = time.perf_counter()
    wrote = 0.0

    def write(target: Path) -> None:
        nonlocal wrote
        start = time.perf_counter()
        write_table(rows, target / "rows.parquet")
        wrote = time.perf_counter() - start

    workspace.record(
        dataset.ASSET, version=content, fingerprint=content, code_version=made.code_version, rows=len(rows), params=made.params,
        parents=made.parents, facts=made.facts, write=write,
    )  # fmt: skip
    ended = time.perf_counter()
    return {"hash": round(hashed - began, 2), "Parquet": round(wrote, 2), "manifest and ledger": round(ended - hashed - wrote, 2)}


def store(folder: Path) -> dict[str, Any]:
    workspace = Workspace(synthetic.load(folder))
    with workspace.database.reader() as connection:
        rows, scores = (connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in ("rows", "scores"))
    found = audit.versions(workspace)
    tables = [v for v in found if v.asset in (corpus.ASSET, dataset.ASSET)]
    files = [f for asset in synthetic.ASSETS for f in (folder / asset).rglob("*") if f.is_file()]
    return {
        "rows": rows, "scores": scores, "versions": len(found), "snapshots": len(tables),
        "rows_in_snapshots": sum(v.rows for v in tables),
        "bytes_of_versions": sum(f.stat().st_size for f in files), "bytes_of_ledger": workspace.database.path.stat().st_size,
        "scorer": rewards.scorer_version(workspace.settings),
    }  # fmt: skip


def line(name: str, found: dict[str, Any]) -> str:
    if "missing" in found:
        return f"{name:32} {found['missing']}"
    target = f"at most {found['target_seconds']:g} s" if found["target_seconds"] else ""
    parts = "  ".join(f"{part} {seconds:.1f} s" for part, seconds in found.get("parts", {}).items())
    return f"{name:32} {found['seconds']:8.2f} s {found['cpu_seconds']:8.2f} CPU s {found['peak_mb']:7} MB   {target:14} {parts}".rstrip()


def page(result: dict[str, Any]) -> str:
    sizes = result["store"]
    lines = [
        "# A million rows in the ledger",
        "",
        f"`benchmarks/ledger.py`: {sizes['rows']:,} teacher rows, {sizes['versions']} versions, {result['cores']} CPU cores.",
        f"{sizes['snapshots']} of them are snapshots of the corpus or the dataset, with {sizes['rows_in_snapshots']:,} rows together:",
        f"{sizes['bytes_of_versions'] / 1e9:.1f} GB, beside {sizes['bytes_of_ledger'] / 1e9:.2f} GB of DuckDB.",
        "Each line is a process of its own, its start included. `load` is how many processes wanted a core meanwhile: far above the",
        "number of cores, seconds tell of the others too, and CPU seconds of the command alone.",
        "",
        "| command | seconds | CPU seconds | load | peak memory | target |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, found in result["measures"].items():
        if "missing" in found:
            lines.append(f"| {name} | {found['missing']} | | | | |")
            continue
        target = f"{found['target_seconds']:g} s" if found["target_seconds"] else ""
        lines.append(
            f"| {name} | {found['seconds']:.2f} | {found['cpu_seconds']:.2f} | {found['load']:.0f} | {found['peak_mb']:,} MB | {target} |"
        )
        lines += [f"| &nbsp;&nbsp;of it: {part} | {seconds:.2f} | | | | |" for part, seconds in found.get("parts", {}).items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
