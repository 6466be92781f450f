"""A vLLM plugin for CPU machines: the same sampling without sorting the whole vocabulary and counting all of it for each token.

vLLM loads it in each of its processes (entry point `vllm.general_plugins` in pyproject.toml); it does nothing unless `VllmEngine` started
them. It replaces two functions that took most of a decoding step on a CPU (benchmarks/teacher_throughput.py); what they return is the
same, and whatever they are not made for goes to vLLM's own.
"""

import os
from typing import Any

#: The environment variable by which `VllmEngine` asks for it.
WANTED = "UDRL_VLLM_SAMPLING"
#: So many of the likeliest tokens are looked at; where they do not hold the share that top_p asks for, the row is sorted as a whole.
LIKELIEST = 256


def register() -> None:
    """Take the place of vLLM's functions, where it runs on a CPU."""
    if WANTED not in os.environ:
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.sample.ops import penalties, topk_topp_sampler

    sort_all, count_all = topk_topp_sampler.apply_top_k_top_p_pytorch, penalties.apply_penalties

    def top_p(logits: Any, k: Any, p: Any, allow_cpu_sync: bool = False) -> Any:
        if p is None or k is not None:
            return sort_all(logits, k, p, allow_cpu_sync)
        return keep_top_p(logits, p)

    def penalise(logits: Any, prompt: Any, output: Any, presence: Any, frequency: Any, repetition: Any) -> Any:
        if presence.any() or frequency.any():
            return count_all(logits, prompt, output, presence, frequency, repetition)
        return press_repeated(logits, prompt, output, repetition)

    topk_topp_sampler.apply_top_k_top_p_pytorch, penalties.apply_penalties = top_p, penalise


def keep_top_p(logits: Any, p: Any) -> Any:
    """Logits with -inf but for the fewest likeliest tokens whose probabilities add up to `p`.

    Args:
        logits: [rows, vocabulary], float32.
        p: [rows].
    """
    import torch

    likeliest, tokens = logits.topk(min(LIKELIEST, logits.shape[1]), dim=-1)
    shares = (likeliest - logits.logsumexp(dim=-1, keepdim=True)).exp()
    summed = shares.cumsum(dim=-1)
    dropped = summed - shares >= p.unsqueeze(1)
    dropped[:, 0] = False
    kept = torch.full_like(logits, -torch.inf).scatter_(-1, tokens, likeliest.masked_fill(dropped, -torch.inf))
    beyond = summed[:, -1] < p
    if bool(beyond.any()):
        kept[beyond] = _sort_all(logits[beyond], p[beyond])
    return kept


def _sort_all(logits: Any, p: Any) -> Any:
    import torch

    ordered, tokens = logits.sort(dim=-1, descending=True)
    shares = ordered.softmax(dim=-1)
    dropped = shares.cumsum(dim=-1) - shares >= p.unsqueeze(1)
    dropped[:, 0] = False
    return torch.empty_like(logits).scatter_(-1, tokens, ordered.masked_fill(dropped, -torch.inf))


def press_repeated(logits: Any, prompt: Any, output: Any, repetition: Any) -> Any:
    """Divide (where positive, else multiply) the logits of the tokens that have stood in prompt or output by the row's penalty, in place.

    Args:
        logits: [rows, vocabulary].
        prompt, output: [rows, longest], padded with the size of the vocabulary.
        repetition: [rows].
    """
    import torch

    tokens = torch.cat([prompt, output], dim=1)
    padding = tokens >= logits.shape[1]
    found = logits.gather(1, tokens.masked_fill(padding, 0))
    by = repetition.unsqueeze(1)
    pressed = torch.where(found > 0, found / by, found * by)
    # a pad has to write something somewhere: what the row's first token gets anyhow
    first = tokens[:, :1]
    tokens = torch.where(padding, first, tokens)
    return logits.scatter_(1, tokens, torch.where(padding, pressed[:, :1], pressed))
