"""vLLM, in a process group of its own: when this process ends, however it ends, the whole group ends with it.

Ending the parent of an in-process vLLM engine leaves its workers alive at full load, so the engine runs in a child that
starts a new session, reads batches from its standard input, and kills its group when that input closes.
"""

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udrl_pipeline import allocator
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.settings import TeacherSettings
from udrl_pipeline.teacher import Refusal, Reply, Request, vllm_sampling

#: For CPU machines, ignored on a GPU: without the first vLLM leaves one core idle.
CPU_ENVIRONMENT = {
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": "4", vllm_sampling.WANTED: "1", **allocator.ENVIRONMENT,
}  # fmt: skip


class VllmEngine:
    name = "vllm"

    def __init__(self, folder: Path, teacher: TeacherSettings) -> None:
        package = "vllm" if _installed("vllm") else "vllm-cpu"
        self.version = importlib.metadata.version(package)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        environment = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), **CPU_ENVIRONMENT, **os.environ}
        environment |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_LOGGING_LEVEL": "WARNING"}
        options: dict[str, Any] = {"model": str(folder), "seed": teacher.seed, "max_model_len": teacher.max_model_len}
        if teacher.tensor_parallel > 1:
            options["tensor_parallel_size"] = teacher.tensor_parallel
        self._child = subprocess.Popen(
            [sys.executable, "-m", "udrl_pipeline.teacher.vllm_worker", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._answer()  # the worker says that it is ready

    def generate(self, requests: list[Request]) -> list[Reply | Refusal]:
        assert self._child.stdin is not None
        if self._child.stdin.closed:
            raise self._ended()
        try:
            self._child.stdin.write(json.dumps([asdict(request) for request in requests]) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # the worker has ended; the missing answer below says so
        return [Refusal(r["reason"]) if "reason" in r else Reply(**r) for r in self._answer()]

    def close(self) -> None:
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # what was left to write has no reader any more

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self.close()
            raise self._ended()
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            self.close()
            raise TeacherError(answer["error"], where="teacher.engine: vllm", remedy="see the engine's log above")
        return answer

    def _ended(self) -> TeacherError:
        return TeacherError(
            f"the vLLM engine ended (exit code {self._child.returncode}); its own message stands above",
            where="teacher.engine: vllm",
            remedy="run again (finished rows are kept); if it ends again, try `engine: transformers`",
        )


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
