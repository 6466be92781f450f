"""The child process of `VllmEngine`: one JSON line in (a batch of requests), one JSON line out (their replies)."""

import json
import os
import queue
import signal
import sys
import threading
from typing import Any

from udrl_pipeline import precision
from udrl_pipeline.teacher import refused_if_forged


def main() -> None:
    _guard()
    # vLLM and its children print to standard output: keep the pipe for answers, send everything else to standard error
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    batches: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_until_the_parent_ends, args=(batches,), daemon=True).start()

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    options = json.loads(sys.argv[1])
    # prompts of a task begin alike, and what they share is read once, in whole blocks: vLLM's on a CPU are 128 tokens, and 32 the least
    blocks = {"block_size": 32} if current_platform.is_cpu() else {}
    try:
        engine = LLM(dtype=precision.name(), enforce_eager=True, disable_log_stats=True, **blocks, **options)
    except (ValueError, RuntimeError, OSError) as error:
        answer({"error": f"vLLM does not start with {options['model']}: {error}"})
        return
    answer("ready")
    tokenizer = engine.get_tokenizer()
    while True:
        requests = json.loads(batches.get())
        prompts = [tokenizer.apply_chat_template(r["messages"], tokenize=False, add_generation_prompt=True) for r in requests]
        tokens = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        refused = [_refused(tokenizer, r, len(t), options["max_model_len"]) for r, t in zip(requests, tokens, strict=True)]
        outputs = iter(
            engine.generate(
                [{"prompt_token_ids": t} for t, reason in zip(tokens, refused, strict=True) if not reason],
                # no per-request seed: it crashes the CPU worker (see docs/decisions.md)
                [_sampling(SamplingParams, r) for r, reason in zip(requests, refused, strict=True) if not reason],
                use_tqdm=False,
            )
        )
        answer([{"reason": reason} if reason else _reply(next(outputs)) for reason in refused])


def _refused(tokenizer: Any, request: dict[str, Any], prompt_tokens: int, room: int) -> str | None:
    """Why a request cannot be answered, or None."""
    if refusal := refused_if_forged(tokenizer, request["messages"]):
        return refusal.reason
    return "prompt longer than teacher.max_model_len" if prompt_tokens + request["max_tokens"] > room else None


def _sampling(params: Any, request: dict[str, Any]) -> Any:
    names = ("temperature", "top_p", "repetition_penalty", "max_tokens")
    return params(stop=["\n"], **{name: request[name] for name in names})


def _reply(output: Any) -> dict[str, Any]:
    best = output.outputs[0]
    return {"text": best.text.strip(), "tokens": len(best.token_ids), "finish_reason": best.finish_reason}


def _guard() -> None:
    """Fork a process that ends the group when this one does, however that is: Ray kills the children of its workers, not theirs."""
    until, held = os.pipe()
    if os.fork():
        os.close(until)  # and hold the other end, which no program that is started here inherits
        return
    os.close(held)
    os.read(until, 1)
    os.killpg(0, signal.SIGKILL)


def _read_until_the_parent_ends(batches: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        batches.put(line)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
