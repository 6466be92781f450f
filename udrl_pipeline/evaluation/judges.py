"""Judges that are not the reward's scorer. The second: how much a text tells the teacher about the intent behind it.

    information = (log p(intent | text) - log p(intent)) / tokens of the intent        nats per intent token

under the teacher as a plain language model. It is 0 for a text that has nothing to do with its intent, and highest for one that
says the intent word for word, so read it beside `copied`. The short prompt below is fixed; without a text its slot says so, so
that only the text differs between the two sides.

The third: at which place the text's own intent stands among all intents, by likeness in the teacher's hidden states (reciprocal
rank: 1 if it is the most like, 1/2 if another one is more so). A text about anything and everything finds no intent.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PROMPT = "Description: {text}\nThe idea behind it, in a few words:"
WITHHELD = "(not shown)"
READ = "Text: {text}"


class TeacherJudge:
    """A causal language model that reads texts and guesses their intents.

    Args:
        model, tokenizer: As transformers loads them; the tokenizer needs a pad token.
        batch_rows: Texts per forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_rows: int = 32) -> None:
        self._model, self._tokenizer, self._batch_rows = model, tokenizer, batch_rows

    def information(self, intents: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
        """Nats per intent token, one per pair; shape [len(texts)]."""
        distinct = sorted(set(intents))
        answers = dict(zip(distinct, self._ids([f" {intent}" for intent in distinct]), strict=True))
        prompts = self._ids([PROMPT.format(text=WITHHELD), *(PROMPT.format(text=text) for text in texts)])
        without = self.log_likelihood([prompts[0]] * len(distinct), [answers[intent] for intent in distinct])
        prior = dict(zip(distinct, without, strict=True))
        given = self.log_likelihood(prompts[1:], [answers[intent] for intent in intents])
        lengths = np.array([len(answers[intent]) for intent in intents], dtype=np.float64)
        return (given - np.array([prior[intent] for intent in intents])) / lengths

    def reciprocal_ranks(self, intents: Sequence[str], texts: Sequence[str], candidates: Sequence[str]) -> NDArray[np.float64]:
        """1 / the place of each text's intent among `candidates`, which hold it; shape [len(texts)]."""
        distinct = sorted(set(candidates))
        likeness = self.hidden(texts) @ self.hidden(distinct).T
        own = likeness[np.arange(len(texts)), [distinct.index(intent) for intent in intents]]
        return np.asarray(1 / (1 + (likeness > own[:, None]).sum(axis=1)), dtype=np.float64)

    def hidden(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """What the teacher makes of each text: the mean over its tokens of the states two thirds up, centred, of length 1;
        shape [len(texts), width]. What all texts have in common would otherwise drown what sets them apart."""
        import torch

        rows = self._ids([READ.format(text=text) for text in texts])
        states = np.zeros((len(rows), self._model.config.hidden_size))
        layer = round(self._model.config.num_hidden_layers * 2 / 3)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_rows):
                batch = order[start : start + self._batch_rows]
                ids, mask, positions = self._padded([rows[i] for i in batch])
                found = self._model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True, logits_to_keep=1
                ).hidden_states[layer]
                mask = mask * (positions > 0)  # the first token of a causal model holds no meaning of its own
                states[batch] = ((found * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)).double().cpu().numpy()
        states -= states.mean(axis=0)
        return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-9)

    def _padded(self, rows: list[list[int]]) -> tuple[Any, Any, Any]:
        """Ids, mask and positions of rows padded on the left, each of shape [rows, longest]."""
        import torch

        longest, device = max(map(len, rows)), self._model.device
        ids = torch.tensor([[self._tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        return ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def log_likelihood(self, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> NDArray[np.float64]:
        """log p(answer | prompt) in nats, one per pair of token lists."""
        import torch

        result = np.zeros(len(prompts))
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
        told = time.monotonic()
        with torch.inference_mode():
            for start in range(0, len(order), self._batch_rows):
                batch = order[start : start + self._batch_rows]
                result[batch] = self._batch([prompts[i] for i in batch], [answers[i] for i in batch])
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    logger.info("second judge: %d of %d texts", start + len(batch), len(order))
        return result

    def _batch(self, prompts: list[list[int]], answers: list[list[int]]) -> NDArray[np.float64]:
        import torch

        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        kept, device = max(map(len, answers)), self._model.device
        # padded on the left, so that all answers stand in the last `kept` places and only there logits are needed
        ids, mask, positions = self._padded(rows)
        logits = self._model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept + 1).logits[:, :-1]
        targets = ids[:, -kept:]
        found = logits.float().log_softmax(dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2)
        lengths = torch.tensor([len(answer) for answer in answers], device=device).unsqueeze(1)
        counted = torch.arange(kept, device=device).unsqueeze(0) >= kept - lengths
        return np.asarray(torch.where(counted, found, 0.0).sum(dim=1).double().cpu())
