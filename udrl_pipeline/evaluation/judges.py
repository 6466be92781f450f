"""The second judge, which is not the reward's scorer: how much a text tells the teacher about the intent behind it.

    information = (log p(intent | text) - log p(intent)) / tokens of the intent        nats per intent token

under the teacher as a plain language model. It is 0 for a text that has nothing to do with its intent, and highest for one that
says the intent word for word, so read it beside `copied`. The short prompt below is fixed; without a text its slot says so, so
that only the text differs between the two sides.
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
        longest, kept = max(map(len, rows)), max(map(len, answers))
        device = self._model.device
        # padded on the left, so that all answers stand in the last `kept` places and only there logits are needed
        ids = torch.tensor([[self._tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self._model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept + 1).logits[:, :-1]
        targets = ids[:, -kept:]
        found = logits.float().log_softmax(dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2)
        lengths = torch.tensor([len(answer) for answer in answers], device=device).unsqueeze(1)
        counted = torch.arange(kept, device=device).unsqueeze(0) >= kept - lengths
        return np.asarray(torch.where(counted, found, 0.0).sum(dim=1).double().cpu())
