"""How the next token is drawn: guidance, known words, repetition, length, temperature.

Guidance presses a condition (quality, length or the idea) harder than the student learned to obey it: with w = 1 the student is
asked, with more it insists (classifier-free guidance, arXiv 2207.12598 section 3.2). For each guided condition c the student also
reads the command without c, in the same batch, and

    log p = log p(full) + sum over c of (w_c - 1) * (log p(full) - log p(without c))     up to a constant

which for one condition is l_uncond + w * (l_cond - l_uncond).

The difference is also large where both sides find a token improbable, and so guidance likes broken words. Only tokens at least
`min_p` times as probable as the likeliest one, given the full command, are therefore weighed (the plausibility constraint of
contrastive decoding, arXiv 2210.15097 section 3.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from udrl_pipeline.commands import Command
from udrl_pipeline.errors import StudentError
from udrl_pipeline.student.lexicon import START, Lexicon

#: No run of so many tokens stands twice in a text: guidance would otherwise circle around the words that it likes best.
LOOP_TOKENS = 3
#: How tokenizers mark a token that begins a word: byte-level and sentencepiece ones.
WORD_MARKS = "Ġ▁"
#: Above this a guided text is noise.
MOST_GUIDANCE = 10.0


@dataclass(frozen=True, slots=True)
class Guidance:
    """Weights of quality, length and idea at decoding: 1 is the student as it was trained, 0 leaves the condition out."""

    quality: float = 1.0
    length: float = 1.0
    idea: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in (("quality command", self.quality), ("length command", self.length), ("idea", self.idea)):
            if not 0 <= weight <= MOST_GUIDANCE:
                raise StudentError(
                    f"{weight} is no weight for the {name}", where="guidance", remedy=f"give a number from 0 to {MOST_GUIDANCE:g}"
                )


@dataclass(frozen=True)
class Variant:
    """The same commands without one condition, and how much each row's difference to it counts (w - 1)."""

    commands: list[Command]
    weights: list[float]


def variants(commands: Sequence[Command], guidance: Sequence[Guidance]) -> list[Variant]:
    """What has to be read beside the full commands; nothing where no given condition is guided."""
    quality = [g.quality - 1 if c.quality is not None else 0.0 for c, g in zip(commands, guidance, strict=True)]
    length = [g.length - 1 if c.words is not None else 0.0 for c, g in zip(commands, guidance, strict=True)]
    idea = [g.idea - 1 if c.intent else 0.0 for c, g in zip(commands, guidance, strict=True)]
    found = [
        Variant([replace(command, quality=None) for command in commands], quality),
        Variant([replace(command, words=None) for command in commands], length),
        Variant([replace(command, intent="") for command in commands], idea),
    ]
    return [variant for variant in found if any(variant.weights)]


class Beginnings:
    """Which tokens begin a word, and which would begin the last word again.

    Args:
        tokens: The vocabulary as the tokenizer has it, marks included; None where a number stands for no token.
    """

    def __init__(self, tokens: Sequence[str | None]) -> None:
        self.marked = [bool(token) and token[0] in WORD_MARKS for token in tokens]  # type: ignore[index]
        self._pieces = [(token or "").lstrip(WORD_MARKS).casefold() for token in tokens]
        self._beginning: dict[str, list[int]] = {}
        for token in (n for n, marked in enumerate(self.marked) if marked):
            self._beginning.setdefault(self._pieces[token], []).append(token)

    def stutters(self, written: Sequence[int]) -> list[int]:
        """The tokens with which a text would begin its last word once more, whatever the case: guidance likes to stutter."""
        word = ""
        for token in reversed(written):
            word = self._pieces[token] + word
            if self.marked[token]:
                return [again for end in range(1, len(word) + 1) for again in self._beginning.get(word[:end], ())]
        return []


class Decoding:
    """A logits processor that draws the token itself: it leaves one token possible per row, the same for a row and its variants.

    Rows come variant by variant: the full commands, then each variant of them. Drawing here rather than in `generate` keeps the
    variants of a row together, and makes a text independent of those beside it: each row brings its own random numbers.

    Args:
        levels: For each row and step a number drawn evenly from [0, 1); float64, shape [rows, most steps].
        beginnings: Those of the vocabulary, so that no word stands twice in a row; None: it may.
        lexicons: For each row the words that it may hold; empty: any.
    """

    def __init__(
        self,
        *,
        prompt_tokens: int,
        weights: Sequence[Sequence[float]],
        temperature: float,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        silent: Sequence[int],
        governor: "Governor | None",
        levels: Any,
        beginnings: Beginnings | None = None,
        lexicons: Sequence[Lexicon] = (),
    ) -> None:
        import torch
        from transformers import (
            LogitsProcessorList,
            NoRepeatNGramLogitsProcessor,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopPLogitsWarper,
        )

        self._prompt, self._silent, self._governor, self._levels = prompt_tokens, list(silent), governor, levels
        self._beginnings, self._lexicons = beginnings, lexicons
        self._weights = [torch.tensor(of_variant, device=levels.device)[:, None] for of_variant in weights]
        self._random, self._min_p = temperature > 0, min_p
        # only what was generated counts as repeated: the words of the intent stay welcome
        self._before = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(repetition_penalty, prompt_ignore_length=prompt_tokens)])
        self._no_loops = NoRepeatNGramLogitsProcessor(LOOP_TOKENS)
        self._after = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)] if temperature > 0 else [])

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        parts = scores.float().chunk(1 + len(self._weights))
        ids, full = input_ids[: len(parts[0])], parts[0]
        guided = full + sum(weight * (full - part) for weight, part in zip(self._weights, parts[1:], strict=True))
        drawn = self._before(ids, guided).masked_fill(~self._possible(ids, full), -torch.inf)
        drawn = self._after(ids, drawn)
        if self._random:
            drawn = self._draw(drawn, self._levels[:, ids.shape[1] - self._prompt, None])
        return drawn.repeat(len(parts), 1)

    @staticmethod
    def _draw(scores: Any, levels: Any) -> Any:
        """Leave one token per row possible: the first at which the running sum of the probabilities exceeds the row's level."""
        import torch

        summed = scores.softmax(dim=1).cumsum(dim=1, dtype=torch.float64)
        token = torch.searchsorted(summed, levels * summed[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    def _possible(self, ids: Any, full: Any) -> Any:
        """Which tokens may follow: neither silent, nor a loop or a stutter, nor no word, nor against the length, nor implausible. Shape
        of `full`."""
        import torch

        spoken = full.clone()
        spoken[:, self._silent] = -torch.inf
        written = ids[:, self._prompt :]
        allowed = self._no_loops(written, spoken)
        for row, ids_of_row in enumerate(written.tolist()):
            if self._beginnings:
                allowed[row, self._beginnings.stutters(ids_of_row)] = -torch.inf
            if self._lexicons:
                lexicon, place = self._lexicons[row], reduce(self._lexicons[row].after, ids_of_row, START)
                if lexicon.bound(place):  # what has begun as a word ends as one, even where it stood before
                    allowed[row] = spoken[row]
                allowed[row, ~torch.from_numpy(lexicon.may_follow(place)).to(full.device)] = -torch.inf
        if self._governor:
            allowed = self._governor(written, allowed)
        floor = allowed.amax(dim=1, keepdim=True) + (math.log(self._min_p) if self._min_p else -torch.inf)
        return allowed.isfinite() & (allowed >= floor)


class Governor:
    """Keeps each text's end within `slack` words of its commanded length: before that it cannot end, after that it must.

    Args:
        begins_word: For each token, whether it begins a word; shape [vocabulary].
        lengths: The commanded words of each row, or None.
    """

    def __init__(self, begins_word: Any, end: int, lengths: Sequence[int | None], slack: int) -> None:
        import torch

        self._begins, self._end = begins_word, end
        least = [0 if length is None else length - slack for length in lengths]
        most = [torch.iinfo(torch.long).max if length is None else length + slack for length in lengths]
        self._least, self._most = (torch.tensor(values, device=begins_word.device) for values in (least, most))

    def __call__(self, written: Any, scores: Any) -> Any:
        import torch

        so_far = self._begins[written].sum(dim=1)
        scores[so_far < self._least, self._end] = -torch.inf
        # the last word may still be in the making: only a new word is refused, so that the text ends with it
        return scores.masked_fill((so_far >= self._most)[:, None] & self._begins, -torch.inf)
