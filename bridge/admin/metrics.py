"""Metrics for Prometheus. Labels come from fixed sets only: nothing from outside can make a new one.

What is counted is counted elsewhere (`meter.py` in the receivers, `observer.py` beside the publisher, the keeper's
report); here it is brought into form when somebody asks.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from itertools import accumulate

import orjson
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from bridge import __version__, meter, observer
from bridge.admin.status import Sources
from bridge.journal.sqlite import sqlite_version

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "whatsapp2mqtt_"

#: Gauges that the keeper's report has, by its keys.
_REPORTED = {
    "backlog": ("backlog", "Updates that wait for the broker."),
    "oldest_age": ("oldest_age_seconds", "Age of the oldest update that waits for the broker."),
    "dead_letters": ("dead_letters", "What could not be understood or delivered."),
    "retained_topics": ("retained_topics", "Retained topics that stand on the broker."),
    "journal_bytes": ("journal_bytes", "Size of the journal's file."),
    "wal_bytes": ("wal_bytes", "Size of the journal's write-ahead log."),
    "clock_trusted": ("clock_trusted", "Whether the wall clock is believed."),
    "uptime": ("uptime_seconds", "Time since the bridge was started."),
}


class Metrics:
    """All metrics, as text.

    Args:
        sources: Where they come from.
    """

    def __init__(self, sources: Sources) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Bridge(sources))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Bridge(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering asks nobody."""
        return []

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(f"{PREFIX}build_info", "Versions.", labels=("version", "python", "sqlite"))
        info.add_metric((__version__, platform.python_version(), sqlite_version()), 1)
        yield info
        yield from self._receivers()
        yield from self._publisher()
        yield from self._keeper()

    def _receivers(self) -> Iterator[Metric]:
        counted = self._sources.meters.read()
        answers = CounterMetricFamily(
            f"{PREFIX}webhook_answers", "Requests to the webhook by the status code of the answer.", labels=("code",)
        )
        for code, count in counted.answers.items():
            answers.add_metric((str(code) if code else "other",), count)
        yield answers
        limited = CounterMetricFamily(
            f"{PREFIX}webhook_limited",
            "Requests that were too many from one address, by whose they were.",
            labels=("who",),
        )
        for who, count in counted.limited.items():
            limited.add_metric((who,), count)
        yield limited
        entries = CounterMetricFamily(
            f"{PREFIX}entries", "Entries of callbacks by kind and outcome.", labels=("kind", "outcome")
        )
        for what, count in counted.entries.items():
            entries.add_metric(what, count)
        yield entries
        took = HistogramMetricFamily(f"{PREFIX}webhook_answer_seconds", "From POST to the answer 200.")
        took.add_metric((), _buckets(meter.SECONDS, counted.buckets), counted.seconds)
        yield took
        yield GaugeMetricFamily(
            f"{PREFIX}last_callback_time_seconds", "When a callback was last answered 200; 0: never.", counted.last
        )

    def _publisher(self) -> Iterator[Metric]:
        notes = self._sources.publisher.observer
        publications = CounterMetricFamily(
            f"{PREFIX}publications", "What the broker acknowledged or refused.", labels=("purpose", "outcome")
        )
        for outcome, counts in (("acknowledged", notes.acknowledged), ("refused", notes.refused)):
            for purpose, count in counts.items():
                publications.add_metric((purpose, outcome), count)
        yield publications
        took = HistogramMetricFamily(
            f"{PREFIX}delivery_seconds", "From storing an update to its last PUBACK.", labels=("kind",)
        )
        for kind, buckets in notes.buckets.items():
            took.add_metric((kind,), _buckets(observer.SECONDS, buckets), notes.seconds[kind])
        yield took
        yield CounterMetricFamily(f"{PREFIX}late_clicks", "Clicks that were too old to fire.", notes.late)
        yield CounterMetricFamily(
            f"{PREFIX}broker_connections", "Connections on which updates flowed.", notes.connections
        )
        connected = float(self._sources.publisher.connected)
        yield GaugeMetricFamily(f"{PREFIX}broker_connected", "Whether updates can flow to the broker.", connected)

    def _keeper(self) -> Iterator[Metric]:
        report = self._sources.keeper.report
        health = orjson.loads(report) if report else {}
        for key, (name, about) in _REPORTED.items():
            if key in health:
                yield GaugeMetricFamily(PREFIX + name, about, float(health[key]))
        yield GaugeMetricFamily(
            f"{PREFIX}alarms", "What the health report complains about.", len(health.get("alarms", ()))
        )


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """As Prometheus wants them: each with all below it."""
    names = [*map(str, bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(counts)), strict=True))
