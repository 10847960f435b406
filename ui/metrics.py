"""What Prometheus is told at /metrics."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ui.service import Service


class ServiceCollector:
    """Reads a service whenever it is asked; nothing is counted twice."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        service = self.service
        jobs = GaugeMetricFamily("oboro_jobs", "Jobs of the store by their state.", labels=["state"])
        for state, count in service.store.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        refused = CounterMetricFamily("oboro_rejections", "Submissions that were turned away.", labels=["why"])
        for why, count in service.rejections.copy().items():
            refused.add_metric([why], count)
        yield refused
        yield CounterMetricFamily("oboro_pictures", "Pictures that were made here.", service.made)
        yield CounterMetricFamily("oboro_picture_seconds", "That were spent on them.", service.seconds)
        pace = service.pace.time(service.unit)
        yield GaugeMetricFamily("oboro_pace_seconds", "For a picture of the model's own size and steps.", pace)
        yield GaugeMetricFamily("oboro_working", "Whether pictures are being made, or would be.", service.working)


def registry(service: Service) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    if Path("/proc").is_dir():
        ProcessCollector(registry=registry)  # its memory, processor time and open files
    return registry
