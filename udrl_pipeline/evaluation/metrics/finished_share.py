"""Finished share: how many texts ended by themselves, and not at the limit of tokens."""

import datasets
import evaluate

_INPUTS = """\
predictions: for each text whether it ended by itself.
Returns finished_share, in [0, 1]; 0 for no text.
"""


class FinishedShare(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("bool")}),
        )

    def _compute(self, predictions: list[bool]) -> dict[str, float]:
        return {"finished_share": sum(predictions) / max(len(predictions), 1)}
