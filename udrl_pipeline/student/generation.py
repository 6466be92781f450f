"""Ask a trained student: commands in, texts out. Works from the folder alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from udrl_pipeline.commands import Command, CommandSpace, render_prompt
from udrl_pipeline.errors import StudentError
from udrl_pipeline.rewards import words

#: How far from a commanded length a text may end (words). The student aims; this keeps it from missing by more.
LENGTH_SLACK = 2
#: How byte-level and sentencepiece tokenizers write the space before a word.
WORD_MARKS = ("Ġ", "▁")
#: Room for a text whose length is not commanded (tokens).
OPEN_LENGTH_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Generated:
    """A text, the command that was really given (after clamping), and whether the student ended the text itself."""

    command: Command
    text: str
    words: int
    tokens: int
    finished: bool
    warnings: tuple[str, ...]


class Student:
    """A student's model, tokenizer and command space."""

    def __init__(self, model: Any, tokenizer: Any, space: CommandSpace, recipe: str) -> None:
        self.model, self.tokenizer, self.space, self.recipe = model, tokenizer, space, recipe
        self._silent = sorted(tokenizer.convert_tokens_to_ids(token) for token in space.control_tokens())

    @classmethod
    def load(cls, folder: Path) -> "Student":
        """Load a student from a version's folder.

        Raises:
            StudentError: The folder is no student, or its files are damaged.
        """
        import json

        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        space = CommandSpace.load(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).to(device).eval()
            recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["name"]
        except (OSError, ValueError, KeyError) as error:
            raise StudentError(f"cannot be loaded: {error}", where=str(folder), remedy="move the folder away and run `udrl run`") from error
        return cls(model, tokenizer, space, recipe)

    @cached_property
    def _begins_word(self) -> Any:
        """For each token, whether it begins a word; shape [vocabulary]. Tokenizers mark it in front."""
        import torch

        tokens = self.tokenizer.convert_ids_to_tokens(list(range(self.model.config.vocab_size)))
        marks = [bool(token) and token[0] in WORD_MARKS for token in tokens]
        return torch.tensor(marks, device=self.model.device)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def generate(
        self,
        commands: Sequence[Command],
        *,
        temperature: float,
        top_p: float,
        repetition_penalty: float,
        seed: int,
        max_new_tokens: int | None = None,
        batch_rows: int = 64,
        length_slack: int | None = LENGTH_SLACK,
    ) -> list[Generated]:
        """One text per command, in order. The same seed, commands and machine give the same texts.

        Args:
            temperature: 0 is greedy.
            repetition_penalty: Counts only what was generated, so that the intent's words stay welcome.
            max_new_tokens: Upper limit; by default three tokens a commanded word and some room.
            length_slack: How far from a commanded length a text may end (words): before that it cannot end, after that it must.
                None leaves the length to the student alone.

        Raises:
            StudentError: A task is not one of the student's.
        """
        import torch

        clamped = [self.space.clamp(command) for command in commands]
        room = [max_new_tokens or _room(command) for command, _ in clamped]
        prompts = self.tokenizer([render_prompt(command) for command, _ in clamped], add_special_tokens=False)["input_ids"]
        order = sorted(range(len(commands)), key=lambda i: (room[i], len(prompts[i])))
        outputs: dict[int, list[int]] = {}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(order), batch_rows):
                batch = order[start : start + batch_rows]
                lengths = [clamped[i][0].words for i in batch] if length_slack is not None else []
                governor = self._governor(lengths, length_slack or 0) if any(lengths) else None
                generated = self._batch(
                    [prompts[i] for i in batch], max(room[i] for i in batch), temperature, top_p, repetition_penalty, governor
                )
                outputs |= {i: ids[: room[i]] for i, ids in zip(batch, generated, strict=True)}
        return [self._finish(*clamped[i], outputs[i]) for i in range(len(commands))]

    def _governor(self, lengths: list[int | None], slack: int) -> Any:
        """A logits processor that keeps each text's end within `slack` words of its commanded length."""
        import torch

        begins = self._begins_word
        end = self.tokenizer.eos_token_id

        def govern(ids: Any, scores: Any, prompt: int) -> Any:
            words_so_far = begins[ids[:, prompt:]].sum(dim=1)
            for row, length in enumerate(lengths):
                if length is None:
                    continue
                if words_so_far[row] < length - slack:
                    scores[row, end] = -torch.inf
                elif words_so_far[row] >= length + slack:
                    # the last word may still be in the making: only a new word is refused, so that the text ends with it
                    scores[row, begins] = -torch.inf
            return scores

        return govern

    def _batch(
        self, prompts: list[list[int]], room: int, temperature: float, top_p: float, repetition_penalty: float, governor: Any
    ) -> list[list[int]]:
        from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.model.device)
        length = inputs.input_ids.shape[1]
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(repetition_penalty, prompt_ignore_length=length)])
        if governor:
            processors.append(lambda ids, scores: governor(ids, scores, length))
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {"do_sample": False}
        output = self.model.generate(
            **inputs,
            max_new_tokens=room,
            logits_processor=processors,
            suppress_tokens=self._silent,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            **sampling,
        )
        return [list(ids) for ids in output[:, length:].tolist()]

    def _finish(self, command: Command, warnings: list[str], ids: list[int]) -> Generated:
        end = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else None
        text = " ".join(self.tokenizer.decode(ids[:end], skip_special_tokens=True).split())
        tokens = len(ids) if end is None else end + 1
        return Generated(command, text, words(text), tokens, end is not None, tuple(warnings))


def _room(command: Command) -> int:
    return OPEN_LENGTH_TOKENS if command.words is None else 3 * command.words + 16
