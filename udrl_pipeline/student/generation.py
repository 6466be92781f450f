"""Ask a trained student: commands in, texts out. Works from the folder alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import StudentError
from udrl_pipeline.rewards import words
from udrl_pipeline.student.decoding import Decoding, Governor, Guidance, variants
from udrl_pipeline.student.sequences import encode_prompts
from udrl_pipeline.versioning import content_hash

#: How far from a commanded length a text may end (words). The student aims; this keeps it from missing by more.
LENGTH_SLACK = 2
#: How byte-level and sentencepiece tokenizers write the space before a word.
WORD_MARKS = ("Ġ", "▁")
#: Room for a text whose length is not commanded (tokens).
OPEN_LENGTH_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Generated:
    """A text, the command that was really given (after clamping), how hard its quality was pressed, and whether the student
    ended the text itself."""

    command: Command
    guidance: float
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
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **local)
            # on a CPU the plain attention is the faster one for texts this short, as in training
            attention = "eager" if device == "cpu" else "sdpa"
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, attn_implementation=attention, use_safetensors=True, **local
            )
            model = model.to(device).eval()
            recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["name"]
        except (OSError, ValueError, KeyError) as error:
            raise StudentError(f"cannot be loaded: {error}", where=str(folder), remedy="move the folder away and run `udrl run`") from error
        return cls(model, tokenizer, space, recipe)

    @property
    def commanded(self) -> bool:
        """Whether it was trained to obey length and quality."""
        return bool(self.space.best)

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
        min_p: float = 0.0,
        guidance: float | None = None,
        length_guidance: float = 1.0,
        max_new_tokens: int | None = None,
        batch_rows: int = 64,
        length_slack: int | None = LENGTH_SLACK,
    ) -> list[Generated]:
        """One text per command, in order. The same seed, commands and machine give the same texts.

        What is drawn for a text depends on the seed, its task and intent, and how often the same command stood before it: not on
        the texts beside it, and not on length, quality or guidance, so that these can be compared on the same draws.

        Args:
            guidance: How hard the quality command is pressed, 0 to 10; by default as the student's sweep found best, per task.
            length_guidance: The same for the length.
            temperature: 0 is greedy.
            min_p: Tokens less probable than this share of the likeliest one, given the full command, are not drawn; 0 to 1.
            repetition_penalty: Counts only what was generated, so that the intent's words stay welcome.
            max_new_tokens: Upper limit; by default three tokens a commanded word and some room.
            length_slack: How far from a commanded length a text may end (words): before that it cannot end, after that it must.
                None leaves the length to the student alone.

        Raises:
            StudentError: A task is not one of the student's.
        """
        import torch

        clamped = [self._clamp(command) for command in commands]
        room = [max_new_tokens or _room(command) for command, _ in clamped]
        order = sorted(range(len(commands)), key=lambda i: (room[i], len(commands[i].intent)))
        streams = _streams([command for command, _ in clamped], seed)
        outputs: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_rows):
            batch = order[start : start + batch_rows]
            asked = [clamped[i][0] for i in batch]
            weights = [Guidance(self._weight(command, guidance), length_guidance) for command in asked]
            guided = variants(asked, weights)
            prompts = self._encode([*asked, *(command for variant in guided for command in variant.commands)])
            decoding = Decoding(
                prompt_tokens=prompts.input_ids.shape[1],
                weights=[variant.weights for variant in guided],
                temperature=temperature,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                silent=self._silent,
                governor=self._governor([command.words for command in asked], length_slack),
                levels=torch.stack([streams[i](max(room[i] for i in batch)) for i in batch]).to(self.model.device),
            )
            written = self._write(prompts, decoding, max(room[i] for i in batch))[: len(batch)]
            outputs |= {i: ids[: room[i]] for i, ids in zip(batch, written, strict=True)}
        return [self._finish(*clamped[i], self._weight(clamped[i][0], guidance), outputs[i]) for i in range(len(commands))]

    def _clamp(self, command: Command) -> tuple[Command, list[str]]:
        command, warnings = self.space.clamp(command)
        if not self.commanded and (command.words is not None or command.quality is not None):
            command = replace(command, words=None, quality=None)
            warnings = [f"a student of recipe {self.recipe} was trained without length and quality: both are left out"]
        return command, warnings

    def _weight(self, command: Command, guidance: float | None) -> float:
        if command.quality is None:
            return 1.0
        return self.space.guidance[command.task] if guidance is None else guidance

    def _encode(self, commands: Sequence[Command]) -> Any:
        ids = encode_prompts(self.tokenizer, self.space, commands)
        return self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)

    def _governor(self, lengths: list[int | None], slack: int | None) -> Governor | None:
        if slack is None or not any(lengths):
            return None
        return Governor(self._begins_word, self.tokenizer.eos_token_id, lengths, slack)

    def _write(self, prompts: Any, decoding: Decoding, room: int) -> list[list[int]]:
        import torch
        from transformers import LogitsProcessorList

        with torch.inference_mode():
            output = self.model.generate(
                **prompts,
                max_new_tokens=room,
                do_sample=False,  # `decoding` draws
                logits_processor=LogitsProcessorList([decoding]),
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [list(ids) for ids in output[:, prompts.input_ids.shape[1] :].tolist()]

    def _finish(self, command: Command, warnings: list[str], guidance: float, ids: list[int]) -> Generated:
        end = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else None
        text = " ".join(self.tokenizer.decode(ids[:end], skip_special_tokens=True).split())
        tokens = len(ids) if end is None else end + 1
        return Generated(command, guidance, text, words(text), tokens, end is not None, tuple(warnings))


def _streams(commands: Sequence[Command], seed: int) -> list[Callable[[int], Any]]:
    """For each command its random numbers: a function of how many are wanted, to a float64 tensor."""
    before: Counter[Command] = Counter()
    keys = []
    for command in commands:
        keys.append(int(content_hash([seed, command.task, command.intent, before[command]]), 16))
        before[command] += 1
    return [partial(_numbers, key) for key in keys]


def _numbers(key: int, count: int) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))


def _room(command: Command) -> int:
    return OPEN_LENGTH_TOKENS if command.words is None else 3 * command.words + 16
