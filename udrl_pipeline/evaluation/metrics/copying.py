"""Copying: how much of its intent a text repeats word for word."""

import datasets
import evaluate

_INPUTS = """\
predictions: texts, split at what is no letter or digit, lower-cased.
references: the intent of each text.
Returns, as means and as a list with one value per text:
copied: share of the intent's word pairs (of its words, if it has one or two) that stand in the text, in [0, 1];
copied_run: words in the longest run of words that intent and text share, over the words of the text, in [0, 1]. A text that only
repeats its intent has 1.
"""


class Copying(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | list[float]]:
        pairs = [(words(text), words(intent)) for text, intent in zip(predictions, references, strict=True)]
        copied = [copied_share(text, intent) for text, intent in pairs]
        runs = [longest_run(text, intent) / len(text) if text else 0.0 for text, intent in pairs]
        count = max(len(pairs), 1)
        return {"copied": sum(copied) / count, "copied_run": sum(runs) / count, "copied_each": copied, "copied_run_each": runs}


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def copied_share(text: list[str], intent: list[str]) -> float:
    n = 1 if len(intent) < 3 else 2
    wanted = {tuple(intent[i : i + n]) for i in range(len(intent) - n + 1)}
    found = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    return len(wanted & found) / len(wanted) if wanted else 0.0


def longest_run(text: list[str], intent: list[str]) -> int:
    longest = 0
    runs = [0] * (len(intent) + 1)
    for word in text:
        # runs[i]: length of the common run that ends at intent[i - 1] and at this word
        runs = [0] + [runs[i] + 1 if intent[i] == word else 0 for i in range(len(intent))]
        longest = max(longest, max(runs))
    return longest
