"""All that was measured of speed on one page: puts the pages of the speed benchmarks together as docs/results/speed.md.

.venv/bin/python benchmarks/speed.py
"""

import re
from pathlib import Path

RESULTS = Path("docs/results")
#: Page -> the command that makes it.
PAGES = {
    "latency": "make bench-latency",
    "training": "benchmarks/training.py",
    "teacher": "benchmarks/teacher_throughput.py",
    "serving": "make load",
}


def main() -> None:
    parts = ["# Speed\n\nEach part is the page of a benchmark, put together by `benchmarks/speed.py`.\n"]
    for name, command in PAGES.items():
        page = RESULTS / f"{name}.md"
        if page.exists():
            parts.append(re.sub(r"^#", "##", page.read_text(encoding="utf-8"), flags=re.MULTILINE).strip() + "\n")
        else:
            parts.append(f"## {name.capitalize()}\n\nNot measured yet: `{command}`.\n")
    (RESULTS / "speed.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
