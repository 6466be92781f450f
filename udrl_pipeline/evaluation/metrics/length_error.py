"""Length error: how far texts are from the length that was commanded, in words."""

import datasets
import evaluate

_INPUTS = """\
predictions: texts; a word is what stands between spaces.
references: the commanded length of each text (words).
Returns mean_absolute_error, mean_error (positive: too long) and mean_words, all in words; 0 for no text.
"""


class LengthError(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("int32")}),
        )

    def _compute(self, predictions: list[str], references: list[int]) -> dict[str, float]:
        lengths = [len(text.split()) for text in predictions]
        errors = [length - commanded for length, commanded in zip(lengths, references, strict=True)]
        count = max(len(errors), 1)
        return {
            "mean_absolute_error": sum(abs(error) for error in errors) / count,
            "mean_error": sum(errors) / count,
            "mean_words": sum(lengths) / count,
        }
