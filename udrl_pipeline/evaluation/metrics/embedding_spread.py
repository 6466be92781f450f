"""Embedding spread: the mean cosine distance between two texts of a set. Higher is more diverse."""

import datasets
import evaluate
import numpy as np

_INPUTS = """\
predictions: one embedding per text, each a list of numbers; scaled to unit length here.
Returns embedding_spread: the mean of 1 - cosine over all pairs of different texts, in [0, 2]; 0 for fewer than two texts.
"""


class EmbeddingSpread(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
        )

    def _compute(self, predictions: list[list[float]]) -> dict[str, float]:
        if len(predictions) < 2:
            return {"embedding_spread": 0.0}
        vectors = np.asarray(predictions, dtype=np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        pairs = len(vectors) * (len(vectors) - 1)
        # the cosines of all ordered pairs are the squared length of the sum, less each text with itself
        return {"embedding_spread": float(1 - (np.square(vectors.sum(axis=0)).sum() - len(vectors)) / pairs)}
