"""A day in the Dagster UI, in a real Chromium, on a project of its own with small settings: look, materialise, read, break, see it.

    make browser        (some minutes; writes the pictures of docs/images)

The tests are one story and run in this order. They click what a user clicks; what Dagster then did is read from its GraphQL.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from benchmarks.operations.graphql import ask
from conftest import REPOSITORY

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: What is smaller than in presets/tiny.yaml, so that nine assets are made in minutes on two cores.
SMALLER: dict[str, dict[str, Any]] = {
    "intents": {"builtin": 90},
    "teacher": {"engine": "transformers", "samples": 1},
    "quality": {"min_rows_per_task": 10},
    "student": {"max_steps": 12, "save_every": 6},
    "rounds": {"intents": 8},
    "evaluation": {"intents": 4, "sweep_intents": 2, "quality_intents": 2, "length_intents": 2, "judge_rows": 2, "bootstrap": 100},
    "schedule": {"cron": "* * * * *"},
}
BY_SCHEDULE = [
    "intents",
    "teacher_corpus",
    "labeled_dataset",
    "student/udrl",
    "student/sft",
    "evaluation_report",
    "student_export/udrl",
    "promotion",
]
GROUPS = ("data", "students", "verdict")


@dataclass
class Site:
    """The project, its UI, and a browser window on it."""

    folder: Path
    url: str
    page: Any
    images: Path

    def open(self, path: str, until: str) -> None:
        """Open a page, and wait until a text stands in it."""
        self.page.goto(self.url + path)
        self.page.get_by_text(until, exact=True).first.wait_for()

    def picture(self, name: str, width: int = 1400, height: int = 900) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(1500)  # what moves has come to rest
        self.page.screenshot(path=self.images / name)

    def ask(self, query: str, **variables: Any) -> Any:
        return ask(self.url, query, **variables)

    def runs(self) -> list[dict[str, str]]:
        """All runs, the newest first: id and status."""
        found = self.ask("{ runsOrError { ... on Runs { results { id status } } } }")
        return list(found["runsOrError"]["results"])

    def versions(self) -> dict[str, str]:
        """The current data version of each asset that has one, and when it was materialised."""
        query = "{ assetNodes { assetKey { path } assetMaterializations(limit: 1) { timestamp tags { key value } } } }"
        found = {}
        for node in self.ask(query)["assetNodes"]:
            for made in node["assetMaterializations"]:
                tags = {tag["key"]: tag["value"] for tag in made["tags"]}
                found["/".join(node["assetKey"]["path"])] = f"{tags['dagster/data_version']} at {made['timestamp']}"
        return found

    def materialise_all(self) -> dict[str, str]:
        """Click the button, and wait until the run has ended. Returns it."""
        before = {run["id"] for run in self.runs()}
        self.open("/asset-groups", "Materialize all")
        self.page.get_by_role("button", name="Materialize all").click()
        deadline = time.monotonic() + 540
        while time.monotonic() < deadline:
            ended = [run for run in self.runs() if run["id"] not in before and run["status"] in ("SUCCESS", "FAILURE", "CANCELED")]
            if ended:
                return ended[0]
            time.sleep(1)
        raise AssertionError(f"the run has not ended: {self.runs()}")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text(encoding="utf-8")[-2000:])


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }


@pytest.fixture(scope="module")
def chromium() -> str:
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium here")
    return found


@pytest.fixture(scope="module")
def site(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("project")
    images = Path(os.environ.get("UDRL_IMAGES") or tmp_path_factory.mktemp("images")).absolute()
    read: Callable[[str], dict[str, Any]] = lambda name: yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))  # noqa: E731
    settings = merged(merged(read("params.yaml"), read("presets/tiny.yaml")), SMALLER)
    (folder / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    shutil.copy(REPOSITORY / "dagster.yaml", folder)
    port, pages = free_port(), free_port()
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY), "DAGSTER_HOME": str(folder), "UDRL_PARAMS": str(folder / "params.yaml"), "UDRL_PRESET": "",
        "UDRL_PAGES_URL": f"http://127.0.0.1:{pages}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    commands = {
        f"http://127.0.0.1:{port}/server_info": ["dagster", "dev", "-m", "assets.definitions", "-p", str(port), "-h", "127.0.0.1"],
        f"http://127.0.0.1:{pages}/": ["udrl_pipeline.cli", "pages", "--port", str(pages)],
    }
    processes = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell's `&` ignores it, Dagster would ignore SIGTERM, too
    try:
        for url, command in commands.items():
            log = folder / f"{command[0]}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", *command], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
                )
            processes.append(process)
            wait_for(url, process, log)
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.set_default_timeout(60_000)
            yield Site(folder, f"http://127.0.0.1:{port}", page, images)
            browser.close()
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(timeout=60)


def test_the_asset_graph_reads_from_left_to_right(site: Site) -> None:
    site.open(f"/asset-groups?expanded={','.join(f'global@global:{group}' for group in GROUPS)}", "evaluation_report")
    names = ("intents", "labeled_dataset", "explored_rows", "evaluation_report")
    across = [site.page.get_by_text(name, exact=True).last.bounding_box()["x"] for name in names]
    assert across == sorted(across)
    assert across[0] + 100 < across[-1]


def test_everything_is_materialised_with_one_click(site: Site) -> None:
    assert site.versions() == {}
    assert site.materialise_all()["status"] == "SUCCESS"
    made = site.versions()
    assert set(BY_SCHEDULE) < set(made)
    site.page.set_viewport_size({"width": 2200, "height": 1240})  # before it is opened: the graph is fitted to the window then
    site.open(f"/asset-groups?expanded={','.join(f'global@global:{group}' for group in GROUPS)}", "evaluation_report")
    site.picture("asset-graph.png", 2200, 1240)


def test_the_checks_are_green(site: Site) -> None:
    site.open("/assets/labeled_dataset?view=checks", "rows_per_task")
    site.page.get_by_text("Passed").first.wait_for()
    assert site.page.get_by_text("Failed", exact=True).count() == 0
    site.picture("checks.png", 1400, 1000)


def test_a_page_shows_plots_and_sample_rows_in_place(site: Site) -> None:
    site.open("/assets/student/udrl", "loss_curve")
    plots = site.page.locator('img[src^="data:image/svg+xml"]')
    plots.first.wait_for()
    assert plots.count() == 2
    assert all(plots.nth(n).bounding_box()["width"] > 200 for n in range(2))
    site.picture("student.png", 1400, 1500)
    site.page.get_by_text("Plots", exact=True).first.click()
    site.page.locator("canvas").nth(4).wait_for()  # a curve over the runs for each number
    site.open("/assets/labeled_dataset", "rewards")
    assert site.page.locator('img[src^="data:image/svg+xml"]').count() == 1
    assert site.page.locator("table table tr").count() > 3


def test_the_report_and_the_audit_open_from_the_page(site: Site) -> None:
    for link, shown in (("open the report", "Samples"), ("what it was made from", "udrl audit trace")):
        site.open("/assets/evaluation_report", "report_file")
        target = site.page.get_by_role("link", name=link).get_attribute("href")
        site.page.goto(target)
        site.page.get_by_text(shown).first.wait_for()


def test_the_schedule_is_turned_on_and_its_tick_skips_with_its_reason(site: Site) -> None:
    runs = site.runs()
    site.open("/locations/__repository__@assets.definitions/schedules/retraining", "Every minute")
    switch = site.page.locator("label", has=site.page.locator("input[type=checkbox]"))
    switch.click()
    site.page.get_by_text("0 runs requested", exact=True).first.wait_for(timeout=150_000)
    site.page.get_by_text("0 runs requested", exact=True).first.hover()
    reason = site.page.get_by_text("nothing is new: ").first.inner_text()
    versions = {asset: told.split()[0] for asset, told in site.versions().items()}
    assert reason == "nothing is new: " + ", ".join(f"{asset} {versions[asset]}" for asset in BY_SCHEDULE)
    site.page.screenshot(path=site.images / "schedule.png", clip={"x": 0, "y": 0, "width": 1400, "height": 620})
    switch.click()
    assert site.runs() == runs


def test_broken_data_turn_a_check_red_and_train_no_student(site: Site) -> None:
    """A teacher that went wrong: its rows of one task say the same word over and over."""
    before = site.versions()
    with duckdb.connect(str(site.folder / "artifacts" / "tiny" / "udrl.duckdb")) as store:
        (broken,) = store.execute("UPDATE rows SET text = 'lamp lamp lamp lamp lamp lamp' WHERE task = 'image'").fetchall()[0]
    assert broken > 50
    settings = yaml.safe_load((site.folder / "params.yaml").read_text(encoding="utf-8"))
    settings["intents"]["builtin"] += 2  # or nothing would be new
    (site.folder / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = site.materialise_all()
    assert run["status"] == "FAILURE"
    after = site.versions()
    assert {asset for asset in before if after[asset] != before[asset]} == {"intents", "teacher_corpus"}
    site.open("/assets/labeled_dataset?view=checks", "quarantined_share")
    site.page.get_by_text("Failed").first.wait_for()
    site.page.get_by_text("quarantined_share", exact=True).first.click()
    site.picture("red-check.png", 1400, 1000)
