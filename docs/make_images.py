"""The README's picture of the newest report. Those of the Dagster UI are taken by `make browser`.

make images        (after `make run`; needs Chromium on the PATH, or its path in $CHROMIUM)
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    take((Path.cwd() / "report.html").as_uri(), "report.png", 1280, 1500)


if __name__ == "__main__":
    main()
