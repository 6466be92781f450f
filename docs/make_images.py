"""The README's pictures, taken from the real thing: Dagster's asset graph and the newest report.

make images        (after `make run`; needs Chromium on the PATH, or its path in $CHROMIUM)
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PORT = 3456
IMAGES = Path(__file__).parent / "images"


def browser() -> str:
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    return found or sys.exit("Chromium was not found: install it, or put its path into $CHROMIUM")


def take(url: str, name: str, width: int, height: int) -> None:
    """A screenshot of a page, once its requests have settled."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
                f"--window-size={width},{height}", "--virtual-time-budget=30000", f"--screenshot={IMAGES / name}", url,
            ],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(IMAGES / name)


def wait_for(url: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    take((Path.cwd() / "report.html").as_uri(), "report.png", 1280, 1500)
    command = [sys.executable, "-m", "dagster_webserver", "-m", "assets.definitions", "-p", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{PORT}/server_info")
        opened = ",".join(f"global@global:{group}" for group in ("data", "students", "verdict"))
        take(f"http://127.0.0.1:{PORT}/asset-groups?expanded={opened}", "asset-graph.png", 2200, 1240)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
