"""Time and size of a model, with transformers alone on this machine: the same ideas, greedy, exactly the same number of new tokens.

A model gets the prompt that it gets in this pipeline: the student its commands, the teacher its chat with example pairs (and, in a
row of its own, the chat without them), since that is what each needs for its answer.
"""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: A model whose requests take longer than this together gets fewer of them (seconds); at least MIN_REQUESTS.
BUDGET_S = 60.0
MIN_REQUESTS = 2


@dataclass(frozen=True)
class Latency:
    """Seconds of single requests, and the throughput of one batch."""

    seconds: tuple[float, ...]
    new_tokens: int
    prompt_tokens: float
    batch_rows: int
    batch_seconds: float

    def as_dict(self) -> dict[str, float]:
        seconds = np.array(self.seconds)
        return {
            "p50_s": round(float(np.percentile(seconds, 50)), 4),
            "p95_s": round(float(np.percentile(seconds, 95)), 4),
            "tokens_per_s": round(float(self.new_tokens / np.median(seconds)), 2),
            "batch_tokens_per_s": round(self.batch_rows * self.new_tokens / self.batch_seconds, 2),
            "batch_rows": self.batch_rows,
            "requests": len(self.seconds),
            "new_tokens": self.new_tokens,
            "prompt_tokens": round(self.prompt_tokens, 1),
        }


def time_requests(model: Any, tokenizer: Any, requests: Sequence[Sequence[str]], *, new_tokens: int, batch_rows: int) -> Latency:
    """Make each request alone, after one that is not counted, and then `batch_rows` of them at once.

    Args:
        requests: The prompts of each: one, or with guidance also those that are read beside it in the same batch.
    """
    encoded = [tokenizer(list(prompts), add_special_tokens=False)["input_ids"] for prompts in requests]
    _seconds(model, tokenizer, encoded[0], new_tokens)
    seconds: list[float] = []
    for rows in encoded:
        if len(seconds) >= MIN_REQUESTS and sum(seconds) + seconds[-1] > BUDGET_S:
            break
        seconds.append(_seconds(model, tokenizer, rows, new_tokens))
    batch = [row for i in range(batch_rows) for row in encoded[i % len(encoded)]]
    batch_seconds = _seconds(model, tokenizer, batch, new_tokens)
    return Latency(tuple(seconds), new_tokens, float(np.mean([len(rows[0]) for rows in encoded])), batch_rows, batch_seconds)


def _seconds(model: Any, tokenizer: Any, rows: list[list[int]], new_tokens: int) -> float:
    import torch

    longest, pad = max(map(len, rows)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=pad
        )
    produced = output[:, longest:].cpu().shape[1]  # reading it back waits for an accelerator
    assert produced == new_tokens, f"asked for {new_tokens} tokens, got {produced}"
    return time.perf_counter() - started


def size(folder: Path, parameters: int) -> dict[str, float]:
    """Parameters, and the megabytes of the weights' files."""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"parameters": parameters, "weights_mb": round(weights / 1e6, 1)}


def machine() -> str:
    """What the figures were measured on, for people."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_processor()}, {cores} core{'s' * (cores > 1)}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
