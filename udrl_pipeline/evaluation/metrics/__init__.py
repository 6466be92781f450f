"""Metrics as `evaluate` modules, one file each, loaded from this folder: no network, no download.

    from udrl_pipeline.evaluation.metrics import load_metric
    load_metric("distinct_n").compute(predictions=["a red fox", "a red barn"])

`evaluate` copies a module into its cache and reads its imports line by line, so each file stands alone: no import of this
package, and each third-party import on a line of its own. `evaluate.load("<path>/distinct_n.py")` loads the same.
"""

import uuid
from functools import cache
from pathlib import Path
from typing import Any

#: Every metric here, by the name of its file.
METRICS = ("copying", "distinct_n", "embedding_spread", "finished_share", "length_error", "self_bleu")


def metric_file(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.py")


@cache
def load_metric(name: str) -> Any:
    """An `evaluate.Metric` of this folder. It keeps its inputs in memory, so that parallel runs share no file."""
    import evaluate

    return evaluate.load(str(metric_file(name)), keep_in_memory=True, experiment_id=uuid.uuid4().hex)
