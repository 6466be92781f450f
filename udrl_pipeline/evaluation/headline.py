"""The figures that sum a report up, flat: what the ledger, Dagster and `dvc metrics` show first."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from udrl_pipeline.evaluation.figures import MEAN


def headline(metrics: Mapping[str, Any], main: str) -> dict[str, Any]:
    """The figures that sum a report up, flat: what the ledger, Dagster and `dvc metrics` show first."""
    figures = {key: system["figures"] for key, system in metrics["systems"].items() if "figures" in system}
    against = metrics["against"].get(main, {}).get("teacher", {}).get(MEAN, {})
    found: dict[str, Any] = {"student": main}
    found |= {f"relevance_{key}": of_system[MEAN]["relevance"]["value"] for key, of_system in figures.items()}
    for name in ("relevance", "spread", "distinct_2"):
        if name in against:
            found |= {
                f"{name}_ratio": against[name]["value"],
                f"{name}_ratio_low": against[name]["low"],
                f"{name}_ratio_high": against[name]["high"],
            }
    if quality := metrics["quality"].get(main):
        found["tasks"] = len(quality)
        found["tasks_where_reward_rises_with_quality"] = sum(of_task["rises"] for of_task in quality.values())
        found |= {f"quality_spearman_{task}": of_task["spearman"] for task, of_task in quality.items() if of_task["spearman"] is not None}
    errors = {task: of_task["mean_absolute_error"] for task, of_task in metrics["length"].get(main, {}).items()}
    found |= {f"length_error_{task}": error for task, error in errors.items() if error is not None}
    if counted := [error for error in errors.values() if error is not None]:
        found["length_error"] = round(float(np.mean(counted)), 4)
    teacher_errors = [of_task["mean_absolute_error"] for of_task in metrics["teacher_length"].values()]
    found["length_error_teacher"] = round(float(np.mean(teacher_errors)), 4)
    found["parameters"] = metrics["sizes"][main]["parameters"]
    latency = metrics["latency"]
    found |= {"latency_p50_s": latency[main]["p50_s"], "tokens_per_s": latency[main]["tokens_per_s"]}
    if "teacher" in latency:
        found["times_smaller"] = round(metrics["sizes"]["teacher"]["parameters"] / metrics["sizes"][main]["parameters"], 2)
        found["times_faster"] = round(latency["teacher"]["p50_s"] / latency[main]["p50_s"], 2)
        found |= {"teacher_latency_p50_s": latency["teacher"]["p50_s"], "teacher_tokens_per_s": latency["teacher"]["tokens_per_s"]}
    verdicts = [claim["verdict"] for claim in metrics["claims"].values()]
    return found | {f"claims_{verdict.replace(' ', '_')}": verdicts.count(verdict) for verdict in ("met", "not met", "not measured")}
