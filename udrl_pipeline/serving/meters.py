"""What a server tells Prometheus. It lives long enough to be scraped, unlike the steps of a run (udrl_pipeline/metrics.py)."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Meters:
    """The meters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time and open files
        PlatformCollector(registry=registry)
        self.requests = Counter("udrl_serve_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "udrl_serve_request_seconds", "From the first byte to the last", ["route"], buckets=SECONDS, registry=registry
        )
        self.waited = Histogram("udrl_serve_queue_seconds", "What a request waited for its batch", buckets=SECONDS, registry=registry)
        self.batches = Histogram(
            "udrl_serve_batch_texts", "Texts written together", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self.writing = Histogram("udrl_serve_batch_seconds", "What a batch took", buckets=SECONDS, registry=registry)
        self.texts = Counter("udrl_serve_texts", "Texts written", registry=registry)
        self.tokens = Counter("udrl_serve_tokens", "Tokens written", registry=registry)
        self.refused = Counter("udrl_serve_refused", "Requests refused because too much was waiting", registry=registry)
        self.timeouts = Counter("udrl_serve_timeouts", "Requests that took too long", registry=registry)
        self.left = Counter("udrl_serve_clients_left", "Requests whose client left before the answer", registry=registry)
        self.reloads = Counter("udrl_serve_reloads", "Students taken into use (ok) or not (failed)", ["result"], registry=registry)
        self.student = Info("udrl_serve_student", "The student in use", registry=registry)
        self._queue = Gauge("udrl_serve_queue_texts", "Texts that wait for their batch", registry=registry)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        self._queue.set_function(waiting)

    def batch(self, texts: int, seconds: float) -> None:
        self.batches.observe(texts)
        self.writing.observe(seconds)
        self.texts.inc(texts)
