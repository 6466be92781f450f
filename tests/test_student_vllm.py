"""A student's folder is an ordinary model: vLLM loads it and writes the tokens that transformers writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import small_params
from test_student_fast import SPACE, save_student
from test_vllm_engine import needs_vllm
from udrl_pipeline.commands import Command
from udrl_pipeline.settings import load
from udrl_pipeline.student.generation import Student
from udrl_pipeline.student.sequences import encode_prompts
from udrl_pipeline.teacher.vllm_engine import CPU_ENVIRONMENT

#: Heads of 32, the narrowest that vLLM has.
SHAPE = {"layers": 2, "width": 64, "heads": 2, "vocabulary": 400}
TOKENS = 12
COMMANDS = [Command("image", "red fox", words=9, quality=4), Command("search", "tea house"), Command("search", "old boat", quality=1)]
SCRIPT = """
import json, sys

def main(folder, prompts, tokens):
    from vllm import LLM, SamplingParams

    student = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=128, disable_log_stats=True)
    greedy = SamplingParams(temperature=0, max_tokens=int(tokens), ignore_eos=True)
    answers = student.generate([{"prompt_token_ids": ids} for ids in json.loads(prompts)], greedy, use_tqdm=False)
    print("answers", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@needs_vllm
@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_writes_the_tokens_that_transformers_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = {f"student.scratch.{name}": value for name, value in SHAPE.items()} | {"student.init_from": "scratch"}
    folder = save_student("gpt2", load(small_params(tmp_path), preset="", overrides=scratch), tmp_path / "student")
    student = Student.load(folder, precise=True)
    prompts = encode_prompts(student.tokenizer, SPACE, COMMANDS)
    expected = []
    for ids in prompts:
        given = torch.tensor([ids])
        written = student.model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=student.tokenizer.eos_token_id,
        )  # fmt: skip
        expected.append(written[0, len(ids) :].tolist())
    for name, value in {**CPU_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT, encoding="utf-8")
    answered = subprocess.run(
        [sys.executable, str(script), str(folder), json.dumps(prompts), str(TOKENS)], capture_output=True, text=True, timeout=240
    )
    told = [line.removeprefix("answers ") for line in answered.stdout.splitlines() if line.startswith("answers ")]
    assert told, answered.stderr[-2000:]
    assert json.loads(told[0]) == expected
