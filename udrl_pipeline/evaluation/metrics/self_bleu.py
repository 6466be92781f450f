"""self-BLEU: how much each text of a set resembles the others (Zhu et al. 2018, arXiv 1802.01886). Lower is more diverse."""

import math
from collections import Counter

import datasets
import evaluate

Gram = tuple[str, ...]
Grams = Counter[Gram]

_CITATION = """\
@inproceedings{zhu2018texygen, title={Texygen: A Benchmarking Platform for Text Generation Models},
  author={Zhu, Yaoming and Lu, Sidi and Zheng, Lei and Guo, Jiaxian and Zhang, Weinan and Wang, Jun and Yu, Yong},
  booktitle={SIGIR}, year={2018}}
"""
_INPUTS = """\
predictions: texts, split at spaces and lower-cased.
max_order: the longest n-gram, 4 unless told.
Returns self_bleu: the mean over texts of the BLEU of a text with all others as its references, in [0, 1]; precisions of orders
above 1 are smoothed by adding one to both counts (Lin and Och 2004). 0 for fewer than two texts.
It rises with the number of texts, so compare sets of the same size only.
"""


class SelfBleu(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], max_order: int = 4) -> dict[str, float]:
        return {"self_bleu": self_bleu([text.lower().split() for text in predictions], max_order)}


def self_bleu(texts: list[list[str]], max_order: int) -> float:
    if len(texts) < 2:
        return 0.0
    grams = [[Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in texts] for n in range(1, max_order + 1)]
    limits = [_two_largest(of_order) for of_order in grams]
    lengths = sorted(len(words) for words in texts)
    return sum(_bleu(index, texts, grams, limits, lengths) for index in range(len(texts))) / len(texts)


def _two_largest(counters: list[Grams]) -> dict[Gram, tuple[int, int, int]]:
    """For each n-gram its largest count in one text, which text that is, and the largest count in any other."""
    largest: dict[Gram, tuple[int, int, int]] = {}
    for index, counter in enumerate(counters):
        for gram, count in counter.items():
            first, holder, second = largest.get(gram, (0, -1, 0))
            if count > first:
                largest[gram] = (count, index, first)
            elif count > second:
                largest[gram] = (first, holder, count)
    return largest


def _bleu(
    index: int,
    texts: list[list[str]],
    grams: list[list[Grams]],
    limits: list[dict[Gram, tuple[int, int, int]]],
    lengths: list[int],
) -> float:
    length = len(texts[index])
    logs = []
    for order, (of_order, limit) in enumerate(zip(grams, limits, strict=True), 1):
        own = of_order[index]
        matched = 0
        for gram, count in own.items():
            first, holder, second = limit[gram]
            matched += min(count, second if holder == index else first)
        total = sum(own.values())
        if order > 1:
            matched, total = matched + 1, total + 1
        if matched == 0:
            return 0.0
        logs.append(math.log(matched / total))
    others = list(lengths)
    others.remove(length)
    nearest = min(others, key=lambda other: (abs(other - length), other))
    brevity = 1.0 if length >= nearest else math.exp(1 - nearest / length)
    return brevity * math.exp(sum(logs) / len(logs))
