"""What devices, links and the queue are like, in the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from llrun.faces.server.driver import Condition, Reading

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DEVICE, LINK = ["device"], ["source", "destination"]


def text(condition: Condition, reading: Reading | None) -> bytes:
    """All figures there are: without a session whether it is there, alone."""
    registry = CollectorRegistry()
    registry.register(_Figures(condition, reading))
    return generate_latest(registry)


class _Figures:
    def __init__(self, condition: Condition, reading: Reading | None) -> None:
        self._condition = condition
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "llrun_ready", "1 when requests are answered, 0 while the model loads or is lost."
        )
        ready.add_metric([], float(self._condition is Condition.READY))
        yield ready
        if self._reading:
            yield from _queue(self._reading)
            yield from _totals(self._reading)
            yield from _medians(self._reading)
            yield from _links(self._reading)


def _queue(reading: Reading) -> Iterator[Metric]:
    for name, words, value in (
        ("llrun_requests_running", "Requests whose tokens are computed.", reading.running),
        ("llrun_requests_waiting", "Requests that wait for a slot.", reading.waiting),
        ("llrun_slots", "Requests that can run at once.", reading.slots),
    ):
        yield GaugeMetricFamily(name, words, value=value)
    yield CounterMetricFamily("llrun_moves", "Changes of stages between devices.", value=reading.moves)


def _totals(reading: Reading) -> Iterator[Metric]:
    """Of each device, since it was started."""
    figures = reading.figures
    for name, words, values in (
        ("llrun_device_compute_seconds", "Computing.", {k: v.compute_s for k, v in figures.items()}),
        ("llrun_device_wait_seconds", "Idle before a step.", {k: v.wait_s for k, v in figures.items()}),
        ("llrun_device_sent_bytes", "Sent to other devices.", {k: v.sent_bytes for k, v in figures.items()}),
    ):
        family = CounterMetricFamily(name, f"{words} Since the device was started.", labels=DEVICE)
        for device, value in sorted(values.items()):
            family.add_metric([device], value)
        yield family
    peak = GaugeMetricFamily(
        "llrun_device_peak_memory_bytes", "The most memory that the device had.", labels=DEVICE
    )
    for device, figure in sorted(figures.items()):
        peak.add_metric([device], figure.peak_memory_bytes)
    yield peak


def _medians(reading: Reading) -> Iterator[Metric]:
    """Of each device's newest tokens; what was not measured yet is left out."""
    devices = reading.readings.devices
    for name, words, values in (
        ("compute_seconds", "Computing of one token.", {k: v.compute_s for k, v in devices.items()}),
        ("wait_seconds", "Idle before one token.", {k: v.wait_s for k, v in devices.items()}),
        ("send_seconds", "Handing on of one token.", {k: v.send_s for k, v in devices.items()}),
    ):
        family = GaugeMetricFamily(
            f"llrun_device_token_{name}", f"{words} Median of the newest.", labels=DEVICE
        )
        for device, value in sorted(values.items()):
            if value is not None:
                family.add_metric([device], value)
        yield family
    free = GaugeMetricFamily(
        "llrun_device_free_memory_bytes", "Memory that the device's system leaves.", labels=DEVICE
    )
    for device, each in sorted(devices.items()):
        if each.free_memory_bytes is not None:
            free.add_metric([device], each.free_memory_bytes)
    yield free


def _links(reading: Reading) -> Iterator[Metric]:
    latency = GaugeMetricFamily(
        "llrun_link_latency_seconds", "Half the shortest round trip lately.", labels=LINK
    )
    rate = GaugeMetricFamily("llrun_link_bytes_per_second", "What the link carried lately.", labels=LINK)
    for link in reading.readings.links:
        names = [link.source, link.destination]
        if link.latency_s is not None:
            latency.add_metric(names, link.latency_s)
        if link.bytes_per_s is not None:
            rate.add_metric(names, link.bytes_per_s)
    yield from (latency, rate)
