"""Training in several processes that share each batch (DDP): started here by torchrun, or placed on a cluster by Ray Train.

What they need lies in `scratch`, which all of them see: the start, the sequences, the settings. The first of them tells of each line of the
curve in a file that is read here, takes the checkpoints, and leaves the trained weights. When one of them dies, all start again from the
last checkpoint; it is the one of any number of processes, so a run may also go on with another number.
"""

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_pipeline.cluster import connected
from udrl_pipeline.errors import StudentError, UdrlError
from udrl_pipeline.settings import Settings, StudentSettings
from udrl_pipeline.store.database import typed_errors
from udrl_pipeline.student import trainer
from udrl_pipeline.student.initialise import Start
from udrl_pipeline.student.sequences import TrainingSequence
from udrl_pipeline.student.trainer import Listener

logger = logging.getLogger(__name__)

#: How often all processes are started again after one has died.
RESTARTS = 3
#: The folder of what passes between this process and those that train, and what lies in it.
RANKS, TOLD, FAILED, TRAINED, HISTORY = "ranks", "told.jsonl", "failed", "trained", "history.json"


def train(
    start: Start, sequences: list[TrainingSequence], held_out: list[TrainingSequence], settings: Settings, scratch: Path, tell: Listener
) -> list[dict[str, float]]:
    """`trainer.train` in as many processes as `student.processes` says; leaves the trained weights in the start's model.

    Raises:
        StudentError: The processes died again and again.
        ClusterError: There is no such cluster.
    """
    from safetensors.torch import load_model

    folder = scratch / RANKS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start.model.save_pretrained(folder / "start")
    _table(sequences).to_parquet(folder / "sequences.parquet")
    _table(held_out).to_parquet(folder / "held_out.parquet")
    options = {"student": settings.student.model_dump(mode="json"), "pad": start.tokenizer.pad_token_id}
    (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")
    with _heard(folder / TOLD, tell):
        why = _by_ray_train(folder, settings) if settings.student.cluster == "ray" else _by_torchrun(folder, settings.student.processes)
    if not (folder / HISTORY).exists():
        if (folder / FAILED).exists():
            raise pickle.loads((folder / FAILED).read_bytes())
        raise StudentError(
            f"the processes that train ended {1 + RESTARTS} times before they were done ({why})", where="student.processes",
            remedy="see their own message above; run again, which goes on from the last checkpoint",
        )  # fmt: skip
    load_model(start.model, folder / TRAINED / "model.safetensors")
    history: list[dict[str, float]] = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    return history


def _table(sequences: list[TrainingSequence]) -> pd.DataFrame:
    columns = {name: [getattr(s, name) for s in sequences] for name in ("prompt", "answer", "row_key")}
    return pd.DataFrame(columns)


def _sequences(file: Path) -> list[TrainingSequence]:
    frame = pd.read_parquet(file)
    return [TrainingSequence(list(map(int, r.prompt)), list(map(int, r.answer)), r.row_key) for r in frame.itertuples()]


@contextmanager
def _heard(file: Path, tell: Listener) -> Iterator[None]:
    """Hand on what the first process writes into a file while the block runs."""
    file.touch()
    ended = threading.Event()

    def listen() -> None:
        with file.open(encoding="utf-8") as lines:
            unfinished, last = "", False
            while not last:
                last = ended.wait(0.2)  # and once more after the end
                *whole, unfinished = (unfinished + lines.read()).split("\n")
                for line in whole:
                    tell(*json.loads(line))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _by_torchrun(folder: Path, processes: int) -> str:
    """Run them on this machine. Returns how they ended."""
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    child = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,  # that it closes tells them that this process has ended
        env=environment,
        start_new_session=True,
    )
    try:
        return f"exit code {child.wait()}"
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
        child.wait()


def _by_ray_train(folder: Path, settings: Settings) -> str:
    """Run them on the cluster. Returns how they ended."""
    with connected(settings.ray):
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        options = settings.ray
        share = {"CPU": options.cpus} | ({"GPU": options.gpus} if options.gpus else {})
        try:
            TorchTrainer(
                _on_ray,
                train_loop_config={"folder": str(folder)},
                torch_config=TorchConfig(backend=None if options.gpus else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=settings.student.processes, use_gpu=bool(options.gpus), resources_per_worker=share
                ),
                run_config=RunConfig(name="udrl", storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=RESTARTS)),
            ).fit()
        except TrainingFailedError as error:
            return str(error).splitlines()[0]
        return "all of them well"


def _on_ray(config: dict[str, Any]) -> None:
    one_of_them(Path(config["folder"]))


def one_of_them(folder: Path) -> None:
    """What each process does. An error that a user can cause is left for the process that waits."""
    try:
        with typed_errors(folder):
            _train(folder)
    except UdrlError as error:
        (folder / FAILED).write_bytes(pickle.dumps(error))
        raise


def _train(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    first = os.environ.get("RANK", "0") == "0"
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32, use_safetensors=True)

    def tell(*line: Any) -> None:
        with (folder / TOLD).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    history = trainer.train(
        model, options["pad"], _sequences(folder / "sequences.parquet"), _sequences(folder / "held_out.parquet"),
        StudentSettings.model_validate(options["student"]), folder.parent, tell,
    )  # fmt: skip
    if first:
        model.save_pretrained(folder / TRAINED)
        staged = folder / f".{HISTORY}"
        staged.write_text(json.dumps(history), encoding="utf-8")
        staged.replace(folder / HISTORY)


def _end_with_the_asset() -> None:
    """End as soon as the process that waits has ended, however it did: nobody would read what is trained on."""

    def wait() -> None:
        while os.read(0, 1024):  # not by sys.stdin, whose lock a thread must not hold when the interpreter ends
            pass
        os.kill(os.getppid(), signal.SIGKILL)  # torchrun, which would start them again
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_the_asset()
    logging.basicConfig(level=logging.INFO)
    one_of_them(Path(sys.argv[1]))
