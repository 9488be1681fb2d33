"""Prometheus text from the run's samples and from the requests this process served.

One registry per app, none shared, so two coordinators may live in one process. Labels are route templates,
methods and status classes: never a name, an id or a path a peer chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from bithaul.coordinator.queries.metrics import Sample

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})


class HttpMetrics:
    """Counts requests; renders them together with the samples of a scrape."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter(
            "bithaul_http_requests_total", "Requests served.", labels, registry=self._registry
        )
        self._seconds = Histogram(
            "bithaul_http_request_seconds",
            "Time to the end of a response.",
            ["route"],
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, f"{status // 100}xx").inc()
        self._seconds.labels(route).observe(seconds)

    def render(self, samples: Sequence[Sample]) -> bytes:
        """Prometheus text. Samples about one worker are left out: this page shows no names (SEC-49)."""
        samples = [sample for sample in samples if "worker" not in sample.labels]
        scrape = CollectorRegistry()
        scrape.register(_Samples(samples))
        return generate_latest(self._registry) + generate_latest(scrape)


class _Samples(Collector):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for sample in self._samples:
            name = f"bithaul_{sample.name}"
            if name not in families:
                families[name] = _family(sample, name)
            suffix = "_total" if sample.kind == "counter" else ""
            families[name].add_sample(name.removesuffix("_total") + suffix, dict(sample.labels), sample.value)
        return iter(families.values())

    def describe(self) -> Iterator[Metric]:
        return iter(())


def _family(sample: Sample, name: str) -> Metric:
    kind = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
    return kind(name, sample.help)
