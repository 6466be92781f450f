"""Real servers on loopback, each a process of its own: an object store that speaks S3, and Postgres."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """An object store without a bucket; yields its address. What it logs lies in `folder`."""
    pytest.importorskip("moto", reason="needs moto[server]")
    pytest.importorskip("flask", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs s3fs (the extra `s3`)")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                starting = process.poll() is None and time.monotonic() < deadline
                assert starting, (folder / "s3.log").read_text()
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


@contextmanager
def postgres_server(folder: Path) -> Iterator[int]:
    """A Postgres server with the user `udrl`, who may do everything without a password; yields its port.

    Args:
        folder: An empty one, for its data and its log.
    """
    if not shutil.which("initdb") or not shutil.which("pg_ctl"):
        pytest.skip("there is no Postgres here")
    as_user: list[str] = []
    if os.geteuid() == 0:  # which Postgres refuses to run as
        if "postgres" not in {user.pw_name for user in pwd.getpwall()}:
            pytest.skip("root cannot start Postgres, and there is no user postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
        for parent in (folder, *folder.parents):
            if parent.owner() == "root" and parent != Path("/") and "pytest" in str(parent):
                parent.chmod(0o755)
        shutil.chown(folder, "postgres")
    data, port = folder / "data", free_port()
    subprocess.run([*as_user, "initdb", "-D", str(data), "-U", "udrl", "-A", "trust"], check=True, capture_output=True)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [*as_user, "pg_ctl", "-D", str(data), "-l", str(folder / "log"), "-w"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True)
    try:
        subprocess.run([*as_user, "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "udrl", "udrl"], check=True)
        yield port
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)
