"""Ask a trained student: commands in, texts out. Works from the folder alone."""

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from udrl_pipeline import precision
from udrl_pipeline.commands import Command, CommandSpace
from udrl_pipeline.errors import StudentError
from udrl_pipeline.rewards import words
from udrl_pipeline.student import lexicon
from udrl_pipeline.student.decoding import Beginnings, Decoding, Governor, Guidance, variants
from udrl_pipeline.student.lexicon import Lexicon
from udrl_pipeline.student.sequences import encode_prompts, words_only
from udrl_pipeline.versioning import content_hash

#: How far from a commanded length a text may end (words). The student aims; this keeps it from missing by more.
LENGTH_SLACK = 2
#: How a tokenizer shows a character of which some bytes are still to come.
HALF = "\ufffd"
#: Room for a text whose length is not commanded (tokens).
OPEN_LENGTH_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Generated:
    """A text, the command that was really given (after clamping), how hard its parts were pressed, and whether the student
    ended the text itself."""

    command: Command
    guidance: Guidance
    text: str
    words: int
    tokens: int
    finished: bool
    warnings: tuple[str, ...]
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from what the model says."""

    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class Batch:
    """Texts that are written together.

    Attributes:
        prompts: Token ids; those of the full commands, then those of each variant of them.
        weights: What each row's difference to each variant counts.
        lengths: The commanded words of each row.
        slack: How far from them a text may end (words); None where no length is governed.
        levels: For each row and step the random number that draws it; [rows, room].
        room: Most tokens of a text.
        lexicons: The words that each row may hold; empty: any.
    """

    prompts: list[list[int]]
    weights: list[list[float]]
    lengths: list[int | None]
    slack: int | None
    levels: Any
    room: int
    lexicons: Sequence[Lexicon] = ()


class Student:
    """A student's model, tokenizer and command space. This one writes with transformers; `fast.FastStudent` is its drop-in.

    Args:
        words: Those that it may write beside the idea's own (lexicon.py); empty: any.
    """

    def __init__(self, model: Any, tokenizer: Any, space: CommandSpace, recipe: str, words: Sequence[str] = ()) -> None:
        self.model, self.tokenizer, self.space, self.recipe, self.words = model, tokenizer, space, recipe, words
        self._silent = sorted(tokenizer.convert_tokens_to_ids(token) for token in space.control_tokens())

    @classmethod
    def load(cls, folder: Path, *, precise: bool = False) -> "Student":
        """Load a student from a version's folder.

        Args:
            precise: Compute in fp32 whatever the machine is fast in.

        Raises:
            StudentError: The folder is no student, or its files are damaged.
        """
        import json

        import torch
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        space = CommandSpace.load(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            # AutoTokenizer would split some architectures' texts by rules of its own (Qwen2's), not as in training
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left", **local)
            # on a CPU the plain attention is the faster one for texts this short, as in training
            attention = "eager" if device == "cpu" else "sdpa"
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32 if precise else precision.dtype(),
                attn_implementation=attention,
                use_safetensors=True,
                **local,
            )
            model = model.to(device).eval()
            recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["name"]
            known = lexicon.load(folder)
        except (OSError, ValueError, KeyError) as error:
            raise StudentError(f"cannot be loaded: {error}", where=str(folder), remedy="move the folder away and run `udrl run`") from error
        return cls(model, tokenizer, space, recipe, known)

    @property
    def commanded(self) -> bool:
        """Whether it was trained to obey length and quality."""
        return bool(self.space.best)

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
        seed: int | Sequence[int],
        min_p: float = 0.0,
        guidance: float | None = None,
        length_guidance: float = 1.0,
        idea_guidance: float | None = None,
        max_new_tokens: int | None = None,
        batch_rows: int = 64,
        length_slack: int | None = LENGTH_SLACK,
    ) -> list[Generated]:
        """One text per command, in order. The same seed, commands and machine give the same texts.

        What is drawn for a text depends on the seed, its task and intent, and how often the same command stood before it: not on
        the texts beside it, and not on length, quality or guidance, so that these can be compared on the same draws.

        Args:
            seed: One for all, or one for each command.
            guidance: How hard the quality command is pressed, 0 to 10; by default as the student's sweep found best, per task.
            length_guidance: The same for the length.
            idea_guidance: The same for the idea; by default as the student keeps it.
            temperature: 0 is greedy.
            min_p: Tokens less probable than this share of the likeliest one, given the full command, are not drawn; 0 to 1.
            repetition_penalty: Counts only what was generated, so that the intent's words stay welcome.
            max_new_tokens: Upper limit; by default three tokens a commanded word and some room.
            length_slack: How far from a commanded length a text may end (words): before that it cannot end, after that it must.
                None leaves the length to the student alone.

        Raises:
            StudentError: A task is not one of the student's.
        """
        sampling = Sampling(temperature, top_p, min_p, repetition_penalty)
        clamped = [self._clamp(command) for command in commands]
        room = [max_new_tokens or _room(command) for command, _ in clamped]
        order = sorted(range(len(commands)), key=lambda i: (room[i], len(commands[i].intent)))
        keys = _keys([command for command, _ in clamped], seed)
        outputs: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_rows):
            chosen = order[start : start + batch_rows]
            most = max(room[i] for i in chosen)
            asked, own = [clamped[i][0] for i in chosen], [keys[i] for i in chosen]
            batch = self.batch(asked, own, guidance, length_guidance, idea_guidance, length_slack, most)
            outputs |= {i: ids[: room[i]] for i, ids in zip(chosen, self._write(batch, sampling), strict=True)}
        pressed = [self._pressed(command, guidance, length_guidance, idea_guidance) for command, _ in clamped]
        return [self._finish(*clamped[i], pressed[i], outputs[i]) for i in range(len(commands))]

    def stream(
        self,
        command: Command,
        *,
        temperature: float,
        top_p: float,
        repetition_penalty: float,
        seed: int,
        min_p: float = 0.0,
        guidance: float | None = None,
        length_guidance: float = 1.0,
        idea_guidance: float | None = None,
        max_new_tokens: int | None = None,
        length_slack: int | None = LENGTH_SLACK,
    ) -> Iterator[str | Generated]:
        """The text that `generate` writes for this one command, piece by piece as it comes, and at last the whole.

        Whoever closes the iterator before its end stops the writing.

        Raises:
            StudentError: The task is not one of the student's.
        """
        sampling = Sampling(temperature, top_p, min_p, repetition_penalty)
        command, warnings = self._clamp(command)
        room = max_new_tokens or _room(command)
        batch = self.batch([command], _keys([command], seed), guidance, length_guidance, idea_guidance, length_slack, room)
        ids: list[int] = []
        shown = ""
        for token in self._tokens(batch, sampling):
            ids.append(token)
            text = self._finish(command, [], Guidance(), ids).text
            if not text.endswith(HALF) and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        made = self._finish(command, warnings, self._pressed(command, guidance, length_guidance, idea_guidance), ids)
        if len(made.text) > len(shown):
            yield made.text[len(shown) :]
        yield made

    def _clamp(self, command: Command) -> tuple[Command, list[str]]:
        command, warnings = self.space.clamp(command)
        if not self.commanded and (command.words is not None or command.quality is not None):
            command = replace(command, words=None, quality=None)
            warnings = [f"a student of recipe {self.recipe} was trained without length and quality: both are left out"]
        return command, warnings

    def _pressed(self, command: Command, quality: float | None, length: float, idea: float | None) -> Guidance:
        """The weights that count for a command: what it leaves open cannot be pressed, and the student has its own for the others."""
        if quality is None:
            quality = 1.0 if command.quality is None else self.space.guidance[command.task]
        given = Guidance(quality, length, self.space.idea_guidance if idea is None else idea)
        return replace(
            given,
            quality=1.0 if command.quality is None else given.quality,
            length=1.0 if command.words is None else given.length,
        )

    def batch(
        self,
        asked: list[Command],
        keys: list[int],
        guidance: float | None,
        length_guidance: float,
        idea_guidance: float | None,
        slack: int | None,
        room: int,
    ) -> Batch:
        """What is needed to write to these commands together; `keys` are those of their random numbers."""
        import numpy as np

        guided = variants(asked, [self._pressed(command, guidance, length_guidance, idea_guidance) for command in asked])
        lengths = [command.words for command in asked]
        return Batch(
            prompts=encode_prompts(self.tokenizer, self.space, [*asked, *(command for variant in guided for command in variant.commands)]),
            weights=[variant.weights for variant in guided],
            lengths=lengths,
            slack=slack if any(lengths) else None,
            levels=np.stack([np.random.Generator(np.random.Philox(key=key)).random(room) for key in keys]),
            room=room,
            lexicons=[self._lexicon.also(self._spelled(lexicon.forms(self._splitter, command.intent))) for command in asked]
            if self._lexicon
            else [],
        )

    @property
    def _splitter(self) -> Any:
        """What splits texts into pieces; of `tokenizers`."""
        return self.tokenizer.backend_tokenizer

    @cached_property
    def _lexicon(self) -> Lexicon | None:
        return Lexicon(self._spelled(self.words), self._vocabulary, self.tokenizer.eos_token_id) if self.words else None

    def _spelled(self, words: Sequence[str]) -> list[tuple[str, list[int]]]:
        return list(zip(words, words_only(self.tokenizer, words), strict=True))

    @cached_property
    def _beginnings(self) -> Beginnings:
        return Beginnings(self.tokenizer.convert_ids_to_tokens(list(range(self._vocabulary))))

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    def _write(self, batch: Batch, sampling: Sampling, streamer: Any = None) -> list[list[int]]:
        """The token ids of each row's text, and whatever follows its end."""
        import torch
        from transformers import LogitsProcessorList

        prompts = self.tokenizer.pad({"input_ids": batch.prompts}, return_tensors="pt").to(self.model.device)
        width = prompts.input_ids.shape[1]
        with torch.inference_mode():
            output = self.model.generate(
                **prompts,
                max_new_tokens=batch.room,
                do_sample=False,  # `decoding` draws
                logits_processor=LogitsProcessorList([self.decoding(batch, sampling, width)]),
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
            )
        return [list(ids) for ids in output[: len(batch.lengths), width:].tolist()]

    def decoding(self, batch: Batch, sampling: Sampling, prompt_tokens: int) -> Decoding:
        """What draws the tokens of a batch whose prompts are padded to `prompt_tokens`."""
        import torch

        end, slack = self.tokenizer.eos_token_id, batch.slack
        begins_word = torch.tensor(self._beginnings.marked, device=self.model.device)
        return Decoding(
            prompt_tokens=prompt_tokens,
            weights=batch.weights,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            silent=self._silent,
            governor=None if slack is None else Governor(begins_word, end, batch.lengths, slack),
            levels=torch.from_numpy(batch.levels).to(self.model.device),
            beginnings=self._beginnings,
            lexicons=batch.lexicons,
        )

    def _tokens(self, batch: Batch, sampling: Sampling) -> Iterator[int]:
        """The token ids of a batch of one text, each as it comes."""
        streamer = _Streamer()

        def write() -> None:
            try:
                self._write(batch, sampling, streamer)
            except _Abandoned:
                pass  # nobody waits for the rest
            except BaseException as error:
                streamer.tokens.put(error)
            finally:
                streamer.tokens.put(None)

        threading.Thread(target=write, daemon=True).start()
        try:
            while (token := streamer.tokens.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                yield token
        finally:
            streamer.abandoned = True

    def _finish(self, command: Command, warnings: list[str], guidance: Guidance, ids: list[int]) -> Generated:
        end = ids.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in ids else None
        text = " ".join(self.tokenizer.decode(ids[:end], skip_special_tokens=True).split())
        tokens = len(ids) if end is None else end + 1
        return Generated(command, guidance, text, words(text), tokens, end is not None, tuple(warnings), tuple(ids[:tokens]))


class _Abandoned(Exception):
    """The reader of a stream has gone."""


class _Streamer:
    """What `generate` of transformers tells of its tokens: the prompts first, then those of each step."""

    def __init__(self) -> None:
        self.tokens: queue.Queue[int | BaseException | None] = queue.Queue()
        self.abandoned = self._begun = False

    def put(self, ids: Any) -> None:
        if self.abandoned:
            raise _Abandoned
        if self._begun:
            self.tokens.put(int(ids[0]))
        self._begun = True

    def end(self) -> None:
        """All was put."""


def _keys(commands: Sequence[Command], seed: int | Sequence[int]) -> list[int]:
    """For each command the key of its random numbers."""
    seeds = [seed] * len(commands) if isinstance(seed, int) else seed
    before: Counter[tuple[int, Command]] = Counter()
    keys = []
    for own, command in zip(seeds, commands, strict=True):
        keys.append(int(content_hash([own, command.task, command.intent, before[own, command]]), 16))
        before[own, command] += 1
    return keys


def _room(command: Command) -> int:
    return OPEN_LENGTH_TOKENS if command.words is None else 3 * command.words + 16
