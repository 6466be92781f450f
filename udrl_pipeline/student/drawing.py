"""`decoding.Decoding` without torch, for the fast engine: the same tokens drawn from the same scores.

Only the tokens that min_p leaves are weighed, which are few: guidance, penalty, temperature and top_p then cost next to nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from udrl_pipeline.student.decoding import LOOP_TOKENS, Beginnings
from udrl_pipeline.student.generation import Batch, Sampling
from udrl_pipeline.student.lexicon import START


class Drawing:
    """Draws the next token of each text of a batch; `keep` goes on with some of them.

    Args:
        beginnings: Those of the vocabulary.
        end: The token that ends a text.
        silent: Tokens that are never drawn.
    """

    def __init__(self, batch: Batch, sampling: Sampling, beginnings: Beginnings, end: int, silent: Sequence[int]) -> None:
        texts = len(batch.lengths)
        self._sampling, self._stutters, self._begins, self._end = sampling, beginnings.stutters, np.array(beginnings.marked), end
        self._beginners = np.flatnonzero(self._begins)
        self._silent, self._levels = np.array(silent, dtype=np.int64), batch.levels
        self._weights = [np.array(of_variant, dtype=np.float32)[:, None] for of_variant in batch.weights]
        lengths = [None if batch.slack is None else length for length in batch.lengths]
        self._least = np.array([0 if length is None else length - (batch.slack or 0) for length in lengths])
        self._most = np.array([np.iinfo(np.int64).max if length is None else length + (batch.slack or 0) for length in lengths])
        self._words = np.zeros(texts, dtype=np.int64)
        self._seen = np.zeros((texts, len(self._begins)), dtype=bool)
        self._written: list[list[int]] = [[] for _ in range(texts)]
        self._followers: list[dict[tuple[int, ...], list[int]]] = [{} for _ in range(texts)]
        self._lexicons, self._places = batch.lexicons, [START] * texts
        self._step = 0

    def keep(self, texts: list[int]) -> None:
        """Go on with these texts alone."""
        self._weights = [of_variant[texts] for of_variant in self._weights]
        self._levels, self._least, self._most = self._levels[texts], self._least[texts], self._most[texts]
        self._words, self._seen = self._words[texts], self._seen[texts]
        self._written, self._followers = [self._written[i] for i in texts], [self._followers[i] for i in texts]
        if self._lexicons:
            self._lexicons, self._places = [self._lexicons[i] for i in texts], [self._places[i] for i in texts]

    def __call__(self, scores: Any) -> Any:
        """The next token of each text.

        Args:
            scores: float32 [texts x (1 + variants), vocabulary]: given the full commands, then each variant; is written to.
        """
        full, *others = np.split(scores, 1 + len(self._weights))
        self._forbid(full)
        rows, columns, inside = self._plausible(full)
        of_full = full[rows, columns]
        guided = of_full + sum(weight * (of_full - other[rows, columns]) for weight, other in zip(self._weights, others, strict=True))
        penalty = np.float32(self._sampling.repetition_penalty)
        penalised = np.where(guided < 0, guided * penalty, guided / penalty)
        guided = np.where(self._seen[rows, columns], penalised, guided)
        guided = np.where(inside, guided, -np.inf)
        chosen = guided.argmax(axis=1) if self._sampling.temperature == 0 else self._draw(guided)
        tokens = columns[np.arange(len(columns)), chosen]
        self._remember(tokens)
        return tokens

    def _forbid(self, full: Any) -> None:
        """No silent token, no run of LOOP_TOKENS twice, no stutter, no unknown word, nothing against the commanded length."""
        full[:, self._silent] = -np.inf
        for row, written in enumerate(self._written):
            if self._lexicons:
                full[row, ~self._lexicons[row].may_follow(self._places[row])] = -np.inf
                if self._lexicons[row].bound(self._places[row]):  # what has begun as a word ends as one
                    continue
            if banned := self._followers[row].get(tuple(written[1 - LOOP_TOKENS :])):
                full[row, banned] = -np.inf
            full[row, self._stutters(written)] = -np.inf
        full[self._words < self._least, self._end] = -np.inf
        for row in np.flatnonzero(self._words >= self._most):
            full[row, self._beginners] = -np.inf

    def _plausible(self, full: Any) -> tuple[Any, Any, Any]:
        """The tokens at least `min_p` times as probable as the likeliest one, in the order of the vocabulary: rows [texts, 1],
        columns [texts, most], and which of these count, the shorter ones being filled up with the likeliest."""
        min_p = self._sampling.min_p
        found = np.nonzero(full >= full.max(axis=1, keepdims=True) + np.float32(math.log(min_p)) if min_p else full > -np.inf)
        counts = np.bincount(found[0], minlength=len(full))
        inside = np.arange(counts.max()) < counts[:, None]
        columns = np.repeat(full.argmax(axis=1)[:, None], inside.shape[1], axis=1)
        columns[inside] = found[1]
        return np.arange(len(full))[:, None], columns, inside

    def _draw(self, scores: Any) -> Any:
        """The first token at which the running sum of the probabilities exceeds the row's level, of those that top_p leaves."""
        scores = scores / np.float32(self._sampling.temperature)
        if self._sampling.top_p < 1:
            order = np.argsort(scores, axis=1, kind="stable")
            below = np.cumsum(_softmax(np.take_along_axis(scores, order, axis=1)), axis=1) <= 1 - self._sampling.top_p
            below[:, -1] = False
            improbable = np.zeros_like(below)
            np.put_along_axis(improbable, order, below, axis=1)
            scores = np.where(improbable, -np.inf, scores)
        summed = np.cumsum(_softmax(scores), axis=1, dtype=np.float64)
        level = self._levels[:, self._step, None] * summed[:, -1:]
        return np.minimum((summed <= level).sum(axis=1), scores.shape[1] - 1)

    def _remember(self, tokens: Any) -> None:
        self._seen[np.arange(len(tokens)), tokens] = True
        self._words += self._begins[tokens]
        for text, lexicon in enumerate(self._lexicons):
            self._places[text] = lexicon.after(self._places[text], int(tokens[text]))
        for written, followers, token in zip(self._written, self._followers, tokens.tolist(), strict=True):
            if len(written) >= LOOP_TOKENS - 1:
                followers.setdefault(tuple(written[1 - LOOP_TOKENS :]), []).append(token)
            written.append(token)
        self._step += 1


def _softmax(scores: Any) -> Any:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
