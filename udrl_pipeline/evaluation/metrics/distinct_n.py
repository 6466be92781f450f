"""distinct-n: how many of all word n-grams of a set of texts are different ones (Li et al. 2016, arXiv 1510.03055)."""

import datasets
import evaluate

_CITATION = """\
@inproceedings{li2016diversity, title={A Diversity-Promoting Objective Function for Neural Conversation Models},
  author={Li, Jiwei and Galley, Michel and Brockett, Chris and Gao, Jianfeng and Dolan, Bill}, booktitle={NAACL}, year={2016}}
"""
_INPUTS = """\
predictions: texts, split at spaces and lower-cased.
orders: the n of the n-grams, (1, 2, 3) unless told.
Returns distinct_1, distinct_2, ...: different n-grams over all n-grams, in [0, 1]; 0 where there is no n-gram.
It falls with the number of texts, so compare sets of the same size only.
"""


class DistinctN(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], orders: tuple[int, ...] = (1, 2, 3)) -> dict[str, float]:
        return {f"distinct_{n}": distinct(predictions, n) for n in orders}


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: list[str], n: int) -> float:
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else 0.0
