"""What a step does, as OpenTelemetry metrics: pushed to a collector while it works and when it ends. Off by default.

The environment switches them on, with the variables that every OpenTelemetry program obeys: OTEL_EXPORTER_OTLP_ENDPOINT (or
OTEL_EXPORTER_OTLP_METRICS_ENDPOINT), such as http://localhost:4318. Each step is a short process, so nothing waits to be scraped, and
a counter tells what was added since the last push (delta): sums of processes that have ended add up in the collector
(deploy/otel-collector.yaml). A collector that cannot be reached costs a warning and fails no step.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from udrl_pipeline import __version__
from udrl_pipeline.errors import UdrlError

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider

logger = logging.getLogger(__name__)

SWITCHES = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Milliseconds between two pushes, and seconds that one may take: a step does not wait long for a collector that is away. Both hold
#: where the environment says nothing else (OTEL_METRIC_EXPORT_INTERVAL, OTEL_EXPORTER_OTLP_TIMEOUT).
PUSH_EVERY_MS, PUSH_WITHIN_S = 10_000.0, 3.0


@dataclass(frozen=True)
class _Instrument:
    name: str
    unit: str
    description: str


class Counter(_Instrument):
    """Something that only adds up."""

    def add(self, amount: float, **labels: str) -> None:
        if amount and (provider := _provider()):
            _made(provider, self, "create_counter").add(amount, labels)


class Gauge(_Instrument):
    """Something whose last value counts."""

    def set(self, value: float, **labels: str) -> None:
        if provider := _provider():
            _made(provider, self, "create_gauge").set(value, labels)


TEACHER_ROWS = Counter("udrl.teacher.rows", "{row}", "Rows that the teacher wrote; labels: asset, task")
TEACHER_TOKENS = Counter("udrl.teacher.tokens", "{token}", "Tokens that the teacher wrote; labels: asset, task")
QUARANTINED_ROWS = Counter("udrl.quarantined.rows", "{row}", "Rows and lines that a new version does without; labels: asset")
TRAIN_STEPS = Counter("udrl.train.steps", "{step}", "Optimiser steps; labels: asset, recipe")
TRAIN_TOKENS = Counter("udrl.train.tokens", "{token}", "Tokens that a student was trained on; labels: asset, recipe")
TRAIN_LOSS = Gauge("udrl.train.loss", "1", "Training loss (nats per token), as last told; labels: asset, recipe")
STEP_SECONDS = Gauge("udrl.step.duration", "s", "What the last step of an asset took; labels: asset")
STEP_MEMORY = Gauge("udrl.step.peak_memory", "By", "The most memory of that step, child processes included; labels: asset")
FAILURES = Counter("udrl.failures", "{failure}", "Steps that failed; labels: asset, cause (check, input, interrupted or program)")


def enabled() -> bool:
    """Whether the environment names a collector."""
    return any(os.environ.get(name) for name in SWITCHES) and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


@contextmanager
def failures_counted(asset: str) -> Iterator[None]:
    """Count an error that ends a step, by whose fault it is, and push what was counted when the step ends."""
    try:
        yield
    except GeneratorExit:  # nobody wants to know more: no failure
        raise
    except BaseException as error:
        cause = "input" if isinstance(error, UdrlError) else "program" if isinstance(error, Exception) else "interrupted"
        FAILURES.add(1, asset=asset, cause=cause)
        raise
    finally:
        flush()


def flush() -> None:
    """Push what has not been pushed yet."""
    if provider := _provider():
        try:
            provider.force_flush(timeout_millis=5000)
        except Exception as error:  # the SDK raises a bare one when a reader is late; a step must not fail by it
            logger.warning("metrics were not pushed: %s", error)


@cache
def _provider() -> "MeterProvider | None":
    if not enabled():
        return None
    try:
        return _open_provider()
    except ImportError as error:
        logger.warning("metrics are switched on, but %s is missing: pip install 'udrl_pipeline[metrics]'", error.name)
    except Exception as error:  # whatever the environment tells the SDK: no step fails by it
        logger.warning("metrics are switched on, but what the environment says of them is wrong: %s", error)
    return None


def _open_provider() -> "MeterProvider":
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk import metrics
    from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExportResult, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    reasons = _Reasons()

    class Exporter(OTLPMetricExporter):
        """Tells once that it cannot push, and then again only after it could."""

        told = False

        def export(self, *arguments: Any, **options: Any) -> MetricExportResult:
            result = super().export(*arguments, **options)
            if result is MetricExportResult.FAILURE and not self.told:
                logger.warning("metrics cannot be pushed to %s: %s; the work goes on without them", self._endpoint, reasons.last)
            self.told = result is MetricExportResult.FAILURE
            return result

    def unless_set(value: Any, *names: str) -> Any:
        return None if any(os.environ.get(name) for name in names) else value

    exporter = Exporter(
        timeout=unless_set(PUSH_WITHIN_S, "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
        preferred_temporality=unless_set(
            {metrics.Counter: AggregationTemporality.DELTA}, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
        ),
    )
    reader = PeriodicExportingMetricReader(exporter, unless_set(PUSH_EVERY_MS, "OTEL_METRIC_EXPORT_INTERVAL"))
    # no id of this process among the labels: the processes of an asset shall add up to one series. Its lock lets one work at a time
    named = Resource({"service.name": "udrl_pipeline", "service.version": __version__})
    return metrics.MeterProvider([reader], resource=named.merge(OTELResourceDetector().detect()))


class _Reasons(logging.Handler):
    """Takes what the exporter logs about every single push, so that it can be told once."""

    def __init__(self) -> None:
        super().__init__()
        self.last = "no reason was given"
        exporter = logging.getLogger("opentelemetry.exporter")
        exporter.addHandler(self)
        exporter.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


@cache
def _made(provider: "MeterProvider", instrument: _Instrument, create: str) -> Any:
    meter = provider.get_meter("udrl_pipeline", __version__)
    return getattr(meter, create)(instrument.name, unit=instrument.unit, description=instrument.description)
