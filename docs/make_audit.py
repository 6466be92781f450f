"""Play docs/audit.md: run its commands in order, in docs/example, and write what each of them prints below it.

    make example

The history that they make stays in docs/example/artifacts, to be looked through.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PAGE, EXAMPLE = DOCS / "audit.md", DOCS / "example"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
#: A command of the page; what stands below it, up to the next one, is what it printed.
COMMAND = re.compile(r"^\$ (.*(?:\\\n.*)*)$", re.MULTILINE)


def main() -> None:
    for left in ("artifacts", "old", ".dagster", "logs"):
        shutil.rmtree(EXAMPLE / left, ignore_errors=True)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda block: f"```console\n{play(block[1])}```", page), encoding="utf-8")


def play(block: str) -> str:
    """A block with the output of its commands anew."""
    return "".join(f"$ {command}\n{run(command)}" for command in COMMAND.findall(block))


def run(command: str) -> str:
    print(f"$ {command}", file=sys.stderr, flush=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "UDRL_MODELS": os.environ.get("UDRL_MODELS", str(DOCS.parent / ".models")),
        "COLUMNS": "80",
    }
    environment.pop("DAGSTER_HOME", None)  # the example keeps a history of its own
    done = subprocess.run(["bash", "-c", command], cwd=EXAMPLE, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{command}\n{done.stdout}{done.stderr}")
    printed = done.stdout.replace(f"{EXAMPLE}{os.sep}", "")
    return "\n".join(line.rstrip() for line in printed.strip("\n").splitlines()) + "\n" if printed.strip() else ""


if __name__ == "__main__":
    main()
