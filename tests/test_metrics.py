"""Metrics: what a real OTLP receiver gets, that nothing is sent unless asked for, and that no collector can fail a step."""

import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from conftest import FakeEngine
from udrl_pipeline import corpus, metrics
from udrl_pipeline.errors import TeacherError
from udrl_pipeline.intents import asset as intents
from udrl_pipeline.store.workspace import Quarantined, Workspace

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest


class Receiver:
    """A collector: takes OTLP over HTTP, and keeps what it was sent."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/metrics"
                receiver.requests.append(ExportMetricsServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def metrics(self) -> Iterator[Any]:
        for request in self.requests:
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    yield from scope.metrics

    def sums(self) -> dict[tuple[str, ...], float]:
        """What the counters add up to, by name and labels, as a collector adds deltas."""
        found: dict[tuple[str, ...], float] = {}
        for metric in self.metrics():
            for point in metric.sum.data_points:
                key = (metric.name, *sorted(f"{label.key}={label.value.string_value}" for label in point.attributes))
                found[key] = found.get(key, 0) + point.as_int + point.as_double
        return found

    def gauges(self) -> dict[tuple[str, ...], float]:
        return {
            (metric.name, *sorted(f"{label.key}={label.value.string_value}" for label in point.attributes)): point.as_double
            for metric in self.metrics()
            for point in metric.gauge.data_points
        }


@pytest.fixture(autouse=True)
def _another_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts as a process of its own does: nothing is open yet."""
    for name in (*metrics.SWITCHES, "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    close()
    yield
    close()


def close() -> None:
    if metrics._provider.cache_info().currsize and (provider := metrics._provider()):
        provider.shutdown()
    metrics._provider.cache_clear()
    metrics._made.cache_clear()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    yield found
    found.server.shutdown()


def test_a_collector_gets_the_rows_and_tokens_that_the_teacher_wrote(receiver: Receiver, workspace: Workspace, teacher: FakeEngine) -> None:
    intents.build(workspace)
    made = corpus.build(workspace)
    metrics.flush()
    rows = corpus.read_rows(workspace, made.version)
    expected: dict[tuple[str, ...], float] = {}
    for task, of_task in rows.groupby("task"):
        expected["udrl.teacher.rows", "asset=teacher_corpus", f"task={task}"] = len(of_task)
        expected["udrl.teacher.tokens", "asset=teacher_corpus", f"task={task}"] = int(of_task.tokens.sum())
    assert receiver.sums() == expected
    assert len(expected) == 6


def test_processes_that_have_ended_add_up_to_one_series(receiver: Receiver) -> None:
    for loss in (3.0, 2.5):
        metrics.TRAIN_STEPS.add(30, asset="student/udrl", recipe="udrl")
        metrics.TRAIN_LOSS.set(loss, asset="student/udrl", recipe="udrl")
        metrics.flush()
        close()
    assert receiver.sums() == {("udrl.train.steps", "asset=student/udrl", "recipe=udrl"): 60}
    assert receiver.gauges() == {("udrl.train.loss", "asset=student/udrl", "recipe=udrl"): 2.5}
    named = {
        label.key: label.value.string_value for request in receiver.requests for label in request.resource_metrics[0].resource.attributes
    }
    assert named == {"service.name": "udrl_pipeline", "service.version": metrics.__version__}


def test_the_standard_variables_name_the_service(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "distil")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    metrics.STEP_SECONDS.set(1.5, asset="intents")
    metrics.flush()
    attributes = {a.key: a.value.string_value for a in receiver.requests[0].resource_metrics[0].resource.attributes}
    assert attributes["service.name"] == "distil"
    assert attributes["deployment.environment"] == "test"


def test_nothing_is_imported_or_sent_unless_a_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_open_provider", lambda: pytest.fail("a provider was opened"))
    metrics.TEACHER_ROWS.add(3, asset="teacher_corpus", task="image")
    metrics.flush()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not metrics.enabled()


def test_rows_in_quarantine_count_once_however_many_expectations_they_broke(receiver: Receiver, workspace: Workspace) -> None:
    workspace.record(
        "labeled_dataset", version="0" * 16, fingerprint="1" * 16, code_version="c", rows=1, params={}, parents={}, facts={},
        write=lambda folder: None,
        quarantined=[Quarantined("a", "length", "", "x"), Quarantined("a", "finished", "", "x"), Quarantined("b", "length", "", "y")],
    )  # fmt: skip
    metrics.flush()
    assert receiver.sums() == {("udrl.quarantined.rows", "asset=labeled_dataset"): 2}


@pytest.mark.parametrize(
    ("error", "cause"), [(TeacherError("gone"), "input"), (ZeroDivisionError(), "program"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_step_that_fails_is_counted_by_whose_fault_it_is(receiver: Receiver, error: BaseException, cause: str) -> None:
    with pytest.raises(type(error)), metrics.failures_counted("student/udrl"):
        raise error
    assert receiver.sums() == {("udrl.failures", "asset=student/udrl", f"cause={cause}"): 1}


@pytest.mark.parametrize("broken", ["away", "refuses"])
def test_a_collector_that_fails_costs_one_warning_and_no_step(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Receiver(status=400)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1" if broken == "away" else collector.url)
    monkeypatch.setattr(metrics, "PUSH_WITHIN_S", 0.3)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with metrics.failures_counted("intents"):
                metrics.STEP_SECONDS.set(1.0, asset="intents")
    # pytest also hears loggers that pass nothing on; a step's log does not
    assert not logging.getLogger("opentelemetry.exporter").propagate
    told = [record.getMessage() for record in caplog.records if record.name == "udrl_pipeline.metrics"]
    assert len(told) == 1
    assert told[0].startswith("metrics cannot be pushed to http://127.0.0.1:")
    assert told[0].endswith("; the work goes on without them")
    collector.server.shutdown()


def test_a_wrong_variable_costs_a_warning_and_no_step(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "-5")
    with caplog.at_level(logging.WARNING):
        metrics.STEP_SECONDS.set(1.0, asset="intents")
        metrics.STEP_SECONDS.set(2.0, asset="intents")
    assert [record.getMessage()[:72] for record in caplog.records] == [
        "metrics are switched on, but what the environment says of them is wrong:"
    ]


def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with caplog.at_level(logging.WARNING):
        metrics.TEACHER_ROWS.add(1, asset="teacher_corpus", task="image")
    assert [record.getMessage() for record in caplog.records] == [
        "metrics are switched on, but opentelemetry.exporter.otlp.proto.http.metric_exporter is missing: "
        "pip install 'udrl_pipeline[metrics]'"
    ]


def test_every_instrument_says_what_it_counts_and_its_labels(receiver: Receiver) -> None:
    instruments = [value for value in vars(metrics).values() if isinstance(value, metrics.Counter | metrics.Gauge)]
    for instrument in instruments:
        send: Callable[..., None] = instrument.add if isinstance(instrument, metrics.Counter) else instrument.set
        send(1, asset="x")
    metrics.flush()
    sent = {metric.name: (metric.unit, metric.description) for metric in receiver.metrics()}
    assert sent == {i.name: (i.unit, i.description) for i in instruments}
    assert all("labels: asset" in description and unit for unit, description in sent.values())
    assert not any("version" in description.partition("labels:")[2] for _, description in sent.values())
