"""transformers `generate`, in this process: the engine that works wherever the package is installed."""

import importlib.metadata
from pathlib import Path

from udrl_pipeline import precision
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.settings import TeacherSettings
from udrl_pipeline.teacher import Refusal, Reply, Request, refused_if_forged


class TransformersEngine:
    name = "transformers"

    def __init__(self, folder: Path, teacher: TeacherSettings) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.version = importlib.metadata.version("transformers")
        self._batch_rows = teacher.batch_rows
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
            if not self.tokenizer.chat_template:
                raise TeacherError("has no chat template", where=str(folder), remedy="use an instruct model as the teacher")
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision.dtype(), use_safetensors=True, trust_remote_code=False)
            self.model = model.to(self.device).eval()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise TeacherError(
                f"cannot be loaded: {error}", where=str(folder), remedy="check the model reference in params.yaml"
            ) from error
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        torch.manual_seed(teacher.seed)

    def generate(self, requests: list[Request]) -> list[Reply | Refusal]:
        replies: dict[int, Reply | Refusal] = {
            i: refusal for i, request in enumerate(requests) if (refusal := refused_if_forged(self.tokenizer, request.messages))
        }
        # rows of one sampling share a forward pass
        order = sorted(set(range(len(requests))) - replies.keys(), key=lambda i: (requests[i].max_tokens, _sampling(requests[i])))
        while order:
            first = requests[order[0]]
            batch = [i for i in order[: self._batch_rows] if _sampling(requests[i]) == _sampling(first)]
            order = [i for i in order if i not in set(batch)]
            for index, reply in zip(batch, self._batch([requests[i] for i in batch]), strict=True):
                replies[index] = reply
        return [replies[i] for i in range(len(requests))]

    def _batch(self, requests: list[Request]) -> list[Reply]:
        import torch

        prompts = [self.tokenizer.apply_chat_template(r.messages, tokenize=False, add_generation_prompt=True) for r in requests]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)
        first = requests[0]
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=max(r.max_tokens for r in requests),
                **_drawn(first),
                repetition_penalty=first.repetition_penalty,
                stop_strings=["\n"],
                tokenizer=self.tokenizer,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [self._reply(ids, r) for ids, r in zip(output[:, inputs.input_ids.shape[1] :].tolist(), requests, strict=True)]

    def _reply(self, ids: list[int], request: Request) -> Reply:
        ids = ids[: request.max_tokens]
        ends = [n for n, token in enumerate(ids) if token == self.tokenizer.eos_token_id]
        text = self.tokenizer.decode(ids[: ends[0]] if ends else ids, skip_special_tokens=True)
        finished = bool(ends) or "\n" in text
        line = text.split("\n")[0]
        tokens = len(self.tokenizer(line, add_special_tokens=False)["input_ids"]) + 1 if finished else len(ids)
        return Reply(line.strip(), tokens, "stop" if finished else "length")

    def close(self) -> None:
        del self.model


def _drawn(request: Request) -> dict[str, float]:
    if request.temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}


def _sampling(request: Request) -> tuple[float, float, float]:
    return request.temperature, request.top_p, request.repetition_penalty
