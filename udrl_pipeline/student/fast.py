"""A student that writes with ONNX Runtime, from the folder of its export: no torch, no transformers, and a second to start.

The drop-in for `generation.Student`: the same commands, random numbers and rules for the next token (drawing.py), with the model's
own step (graph.py). A text that has ended makes room: the others go on without it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.errors import StudentError
from udrl_pipeline.student import lexicon
from udrl_pipeline.student.drawing import Drawing
from udrl_pipeline.student.engines import DESCRIPTION
from udrl_pipeline.student.generation import Batch, Sampling, Student
from udrl_pipeline.usage import cores

MODEL = "model.onnx"
#: The batch is laid anew when so many of its texts have ended: copying the others' keys and values costs about a step.
ENDED_SHARE = 0.25
#: A variant that differs in more than so many tokens at its end is read whole.
MOST_REST = 4


class Tokenizer:
    """A tokenizer.json, as far as students need it, with the names that transformers gives these things."""

    def __init__(self, file: Path, eos_token_id: int) -> None:
        from tokenizers import Tokenizer as Read

        self._with_controls, self._words_only = (Read.from_file(str(file)) for _ in range(2))
        self._words_only.encode_special_tokens = True
        self.eos_token_id = eos_token_id

    @property
    def backend_tokenizer(self) -> Any:
        return self._words_only

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool = False) -> dict[str, Any]:
        tokenizer = self._words_only if split_special_tokens else self._with_controls
        return {"input_ids": [found.ids for found in tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)]}

    def convert_tokens_to_ids(self, token: str) -> int:
        found = self._with_controls.token_to_id(token)
        if found is None:
            raise ValueError(f"its tokenizer has no token {token}")
        return int(found)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        return [self._with_controls.id_to_token(token) for token in ids]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self._with_controls.decode(list(ids), skip_special_tokens=skip_special_tokens))


class FastStudent(Student):
    """A student's export: session, tokenizer and command space.

    Args:
        description: What `export.json` tells of the model.
    """

    def __init__(
        self, model: Any, tokenizer: Any, space: CommandSpace, recipe: str, words: Sequence[str], description: dict[str, Any]
    ) -> None:
        super().__init__(model, tokenizer, space, recipe, words)
        self.description = description

    @classmethod
    def load(cls, folder: Path, *, precise: bool = False) -> "FastStudent":
        """Load an export from its folder.

        Args:
            precise: Only one with weights in fp32 will do.

        Raises:
            StudentError: The folder is no export, its files are damaged, or ONNX Runtime is not installed.
        """
        try:
            import onnxruntime

            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if precise and description["weights"] != "fp32":
                raise StudentError("is an export in int8", where=str(folder), remedy="set export.weights: fp32 in params.yaml")
            recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["name"]
            tokenizer = Tokenizer(folder / "tokenizer.json", description["end"])
            session = open_session(onnxruntime, folder / MODEL)
            return cls(session, tokenizer, CommandSpace.load(folder), recipe, lexicon.load(folder), description)
        except StudentError:
            raise
        except Exception as error:  # ONNX Runtime and tokenizers raise kinds of their own for a damaged file
            what = " ".join(str(error).split())
            remedy = "move the folder away and run `udrl run` again, or ask with --engine transformers"
            raise StudentError(f"cannot be loaded: {what}", where=str(folder), remedy=remedy) from error

    @property
    def parameters(self) -> int:
        return int(self.description["parameters"])

    @property
    def _vocabulary(self) -> int:
        return int(self.description["vocabulary"])

    def _write(self, batch: Batch, sampling: Sampling, streamer: Any = None) -> list[list[int]]:
        written: list[list[int]] = [[] for _ in batch.lengths]
        for texts, tokens in self._steps(batch, sampling):
            for text, token in zip(texts, tokens, strict=True):
                written[text].append(token)
        return written

    def _tokens(self, batch: Batch, sampling: Sampling) -> Iterator[int]:
        for _, [token] in self._steps(batch, sampling):
            yield token

    def _steps(self, batch: Batch, sampling: Sampling) -> Iterator[tuple[list[int], list[int]]]:
        """After each step the texts that go on or have just ended, and the token of each."""
        drawing = Drawing(batch, sampling, self._beginnings, self.tokenizer.eos_token_id, self._silent)
        texts = list(range(len(batch.lengths)))
        cache = _Cache(self.model, batch.prompts, len(texts), batch.room, self.description)
        ended: set[int] = set()
        scores = cache.prompts()
        for step in range(batch.room):
            tokens = drawing(scores)
            going_on = [(text, token) for text, token in zip(texts, tokens.tolist(), strict=True) if text not in ended]
            yield [text for text, _ in going_on], [token for _, token in going_on]
            ended |= {text for text, token in going_on if token == self.tokenizer.eos_token_id}
            left = [place for place, text in enumerate(texts) if text not in ended]
            if not left or step + 1 == batch.room:
                return
            if len(left) <= (1 - ENDED_SHARE) * len(texts):
                drawing.keep(left)
                cache.keep([variant * len(texts) + place for variant in range(1 + len(batch.weights)) for place in left])
                texts, tokens = [texts[place] for place in left], tokens[left]
            scores = cache.step(np.tile(tokens, 1 + len(batch.weights)))


class _Cache:
    """The keys and values of a batch, which the model reads and writes in place, and the step that does it.

    Args:
        texts: How many of the prompts are those of the full commands; the variants of them follow.
    """

    def __init__(self, session: Any, prompts: Sequence[Sequence[int]], texts: int, room: int, description: dict[str, Any]) -> None:
        self._session, self._description, self._prompts, self._texts = session, description, prompts, texts
        self._lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(self._lengths.max())
        if longest + room > description["positions"]:
            raise StudentError(
                f"an idea of {longest} tokens leaves no room for {room} more",
                where="udrl generate",
                remedy=f"say it shorter: both together may take {description['positions']} tokens",
            )
        shape = (len(prompts), description["heads"], longest + room, description["width"])
        self._memory = {
            f"{layer}.{part}": np.zeros(shape, np.float32) for layer in range(description["layers"]) for part in ("key", "value")
        }
        self._scores = np.empty((len(prompts), description["vocabulary"]), np.float32)
        self._binding = self._bound(slice(len(prompts)))

    def prompts(self) -> Any:
        """Read the prompts. Returns the scores of the first tokens.

        A variant is its full command up to a token or two before the end: it takes over what was read of that, and reads the rest.
        """
        for first in range(0, len(self._prompts), self._texts):
            rows = slice(first, first + self._texts)
            binding, prompts = self._bound(rows), self._prompts[rows]
            rest = max(len(own) - _common(own, full) for own, full in zip(prompts, self._prompts, strict=False)) if first else 0
            if not first or rest > MOST_REST:
                ids = np.zeros((len(prompts), max(map(len, prompts))), np.int64)  # what stands behind a prompt is overwritten later
                for row, prompt in enumerate(prompts):
                    ids[row, : len(prompt)] = prompt
                places = np.arange(ids.shape[1])[None].repeat(len(ids), axis=0)
                self._run(binding, ids, self._lengths[rows], self._lengths[rows] - 1, places)
                continue
            for memory in self._memory.values():
                memory[rows] = memory[: self._texts]
            for left in range(max(rest, 1), 0, -1):
                lengths = self._lengths[rows] - left + 1
                self._run(binding, np.array([[prompt[-left]] for prompt in prompts]), lengths, np.zeros_like(lengths), lengths[:, None] - 1)
        return self._scores

    def step(self, tokens: Any) -> Any:
        """Read one more token of each row. Returns the scores of the next."""
        self._lengths = self._lengths + 1
        self._run(self._binding, tokens[:, None], self._lengths, np.zeros_like(self._lengths), self._lengths[:, None] - 1)
        return self._scores

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        self._memory = {name: memory[rows] for name, memory in self._memory.items()}
        self._lengths, self._scores = self._lengths[rows], self._scores[: len(rows)]
        self._binding = self._bound(slice(len(rows)))

    def _bound(self, rows: slice) -> Any:
        """The model's inputs and outputs bound to the memory of some rows."""
        binding = self._session.io_binding()
        scores = self._scores[rows]
        binding.bind_output("logits", "cpu", 0, np.float32, scores.shape, scores.ctypes.data)
        for name, memory in self._memory.items():
            of_rows = memory[rows]
            binding.bind_input(f"past.{name}", "cpu", 0, np.float32, of_rows.shape, of_rows.ctypes.data)
            binding.bind_output(f"present.{name}", "cpu", 0, np.float32, of_rows.shape, of_rows.ctypes.data)
        return binding

    def _run(self, binding: Any, ids: Any, lengths: Any, last: Any, places: Any) -> None:
        """Read tokens; `lengths` are those of the rows with them, `last` says which of them is followed by the wanted one."""
        given = {
            "input_ids": np.ascontiguousarray(ids),
            "last": last,
            "past_keys": (lengths - 1).astype(np.int32),
            "total": np.array(lengths.max(), np.int32),
            **({"positions": np.ascontiguousarray(places)} if self._description["numbered"] else {}),
        }
        for name, value in given.items():
            binding.bind_cpu_input(name, value)
        self._session.run_with_iobinding(binding)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with together."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def open_session(onnxruntime: Any, file: Path) -> Any:
    """A session of ONNX Runtime on the cores that this process may use, or on OMP_NUM_THREADS of them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "") or cores())
    options.log_severity_level = 3  # its warnings are about graphs, and tell a user nothing
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
