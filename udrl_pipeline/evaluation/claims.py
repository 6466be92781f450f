"""The claims of arXiv 2502.09854 and of a summary of it, each `met`, `not met` or `not measured`, with its figure and interval.

A claim is met only if its whole 95% interval says so. What the abstracts call diversity is not public beyond that word: here it is
the embedding spread and distinct-2, both. The models that the abstracts name count as measured only where the teacher or a
comparator is one of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from udrl_pipeline.evaluation.statistics import Interval, percent

Verdict = Literal["met", "not met", "not measured"]

V1 = "arXiv 2502.09854v1, abstract"
V2 = "arXiv 2502.09854v2, abstract"
BOTH = "arXiv 2502.09854v1 and v2, abstracts"
SUMMARY = "a third-party summary only; not in the paper's abstracts"
#: The models that the abstracts compare with: name for people -> words of a model's name or reference that identify it.
FAMILIES_V1 = {"Llama-3": ("llama-3", "llama3"), "Qwen2": ("qwen2", "qwen-2"), "Mistral": ("mistral",)}
FAMILIES_V2 = {"Llama-3 8B": ("llama-3-8b", "llama3-8b"), "Qwen3 8B": ("qwen3-8b",), "Ministral 8B": ("ministral-8b",)}

RELEVANCE_V1 = 0.95
BOTH_V2 = 0.94
TIMES_SMALLER = 80.0
LATENCY_CUT = 0.9
TOKENS_PER_S = 338.0
TOKENS_PER_S_ON = "A10G"


@dataclass(frozen=True)
class Base:
    """A model that the student is compared with.

    Attributes:
        key: Its key in metrics.json.
        names: Its name and model reference, by which a family is known.
        ratios: Student over this model, by figure (relevance, spread, distinct_2); empty if it has no texts.
        reason: Why it has no texts.
        parameters: None if not known.
        faster: This model's median latency over the student's; None if not timed.
        not_timed: Why it was not timed.
    """

    key: str
    label: str
    names: str
    ratios: Mapping[str, Interval]
    reason: str = ""
    parameters: int | None = None
    faster: Interval | None = None
    not_timed: str = ""

    def is_one_of(self, words: Sequence[str]) -> bool:
        """Whether any of these words stands in the model's names: `mistral` is in Mistral-7B, not in mistralai."""
        names = f"-{re.sub(r'[^a-z0-9.]+', '-', self.names.lower())}-"
        return any(f"-{word}-" in names for word in words)


@dataclass(frozen=True)
class Claim:
    """One line of the claims table. `value`, `low` and `high` are in the unit of `threshold`."""

    key: str
    claim: str
    against: str
    source: str
    verdict: Verdict
    figure: str
    threshold: float
    value: float | None = None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "key" and value is not None}


def judge_claims(bases: Sequence[Base], student_parameters: int, tokens_per_s: Interval, machine: str) -> list[Claim]:
    """The claims table.

    Args:
        bases: The teacher first, then every comparator of params.yaml, also those that could not be loaded.
        student_parameters: Of the student that `bases` are compared with.
        tokens_per_s: The student's, one request at a time.
        machine: What the times were measured on.
    """
    table: list[Claim] = []
    judged: list[tuple[Callable[[Base], Claim], Mapping[str, Sequence[str]]]] = [
        (_relevance, FAMILIES_V1),
        (_relevance_and_diversity, FAMILIES_V2),
        (lambda base: _smaller(base, student_parameters), FAMILIES_V1 | FAMILIES_V2),
        (_faster, FAMILIES_V1 | FAMILIES_V2),
    ]
    for judge, named in judged:
        table += [judge(base) for base in bases]
        missing = [family for family, parts in named.items() if not any(base.is_one_of(parts) for base in bases)]
        if missing:
            table.append(_unnamed(table[-1], ", ".join(missing)))
    return [*table, _throughput(tokens_per_s, machine)]


def _verdict(interval: Interval, threshold: float) -> Verdict:
    return "met" if interval.low >= threshold else "not met"


def _relevance(base: Base) -> Claim:
    claim = ("relevance_within_5_percent", "Relevance within 5% of the compared model's", V1, RELEVANCE_V1)
    return _ratio_claim(claim, base, {"relevance": "relevance"})


def _relevance_and_diversity(base: Base) -> Claim:
    claim = ("relevance_and_diversity_within_6_percent", "Relevance and diversity within 6% of the compared model's", V2, BOTH_V2)
    return _ratio_claim(claim, base, {"relevance": "relevance", "spread": "embedding spread", "distinct_2": "distinct-2"})


def _ratio_claim(claim: tuple[str, str, str, float], base: Base, wanted: Mapping[str, str]) -> Claim:
    key, text, source, threshold = claim
    head = (f"{key}/{base.key}", text, base.label, source)
    if not all(name in base.ratios for name in wanted):
        return Claim(*head, "not measured", base.reason or "no texts on the same intents", threshold)
    found = {label: base.ratios[name] for name, label in wanted.items()}
    worst = min(found.values(), key=lambda interval: interval.low)
    figure = "; ".join(f"{label} {_percent(interval)}" for label, interval in found.items())
    return Claim(*head, _verdict(worst, threshold), figure, threshold, *_rounded(worst))


def _smaller(base: Base, student_parameters: int) -> Claim:
    head = (f"80_times_smaller/{base.key}", "Up to 80x smaller than the compared model", base.label, BOTH)
    if base.parameters is None:
        return Claim(*head, "not measured", base.reason or "its size is not known", TIMES_SMALLER)
    times = base.parameters / student_parameters
    figure = f"{times:.1f}x ({base.parameters / 1e6:.1f}M against {student_parameters / 1e6:.1f}M parameters; counted, so no interval)"
    return Claim(
        *head, "met" if times >= TIMES_SMALLER else "not met", figure, TIMES_SMALLER, round(times, 2), round(times, 2), round(times, 2)
    )


def _faster(base: Base) -> Claim:
    head = (f"90_percent_lower_latency/{base.key}", "About 90% lower latency than the compared model", base.label, SUMMARY)
    if base.faster is None:
        return Claim(*head, "not measured", base.not_timed or base.reason or "it was not timed", LATENCY_CUT)
    cut = Interval(1 - 1 / base.faster.value, 1 - 1 / base.faster.low, 1 - 1 / base.faster.high, base.faster.n)
    figure = f"{cut.value:.0%} lower median [{cut.low:.0%}, {cut.high:.0%}], one request at a time"
    return Claim(*head, _verdict(cut, LATENCY_CUT), figure, LATENCY_CUT, *_rounded(cut))


def _throughput(tokens_per_s: Interval, machine: str) -> Claim:
    here = f"{tokens_per_s.value:.0f} tokens/s [{tokens_per_s.low:.0f}, {tokens_per_s.high:.0f}], one request at a time"
    head = ("338_tokens_per_s", f"{TOKENS_PER_S:.0f} tokens/s on one {TOKENS_PER_S_ON}", "(the student alone)", SUMMARY)
    if TOKENS_PER_S_ON not in machine:
        return Claim(*head, "not measured", f"this machine has no {TOKENS_PER_S_ON}; here ({machine}): {here}", TOKENS_PER_S)
    return Claim(*head, _verdict(tokens_per_s, TOKENS_PER_S), here, TOKENS_PER_S, *_rounded(tokens_per_s))


def _unnamed(like: Claim, families: str) -> Claim:
    """The line of the named models that nothing here stands for."""
    return Claim(
        f"{like.key.split('/')[0]}/named_in_the_paper",
        like.claim,
        families,
        like.source,
        "not measured",
        "no comparator of such a name in params.yaml",
        like.threshold,
    )


def _percent(interval: Interval) -> str:
    return f"{percent(interval.value, 1)} [{percent(interval.low, 1)}, {percent(interval.high, 1)}]"


def _rounded(interval: Interval) -> tuple[float, float, float]:
    return round(interval.value, 4), round(interval.low, 4), round(interval.high, 4)
