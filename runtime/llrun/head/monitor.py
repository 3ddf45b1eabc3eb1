"""What devices and links really take, as running medians of what every step and every asking says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from llrun.head.readings import DeviceReading, LinkReading, Readings, RunReading
from llrun.programs.groups import is_group
from llrun.programs.placement import LinkRate, Rates
from llrun.schema import StageRecord
from llrun.wire.messages import Measured, StepDone

RECENT, LONG = 8, 64  # steps
PASSES = (
    8  # of each device, kept to follow a token by: what others have told of meanwhile is not further behind
)
NEWEST, APART = (
    4,
    1.3,
)  # so many steps that all are so many times slower or faster than the median are a change


@dataclass
class Samples:
    """The newest figures of a kind. `recent` and `usual` are medians, None before there is one."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=LONG))

    @property
    def recent(self) -> float | None:
        """Of the last RECENT, or after a change of those since it."""
        values = list(self.values)[-RECENT:]
        older, newest = values[:-NEWEST], values[-NEWEST:]
        if older and (min(newest) > APART * median(older) or APART * max(newest) < median(older)):
            return median(newest)
        return median(values) if values else None

    @property
    def usual(self) -> float | None:
        return median(self.values) if self.values else None


@dataclass
class DeviceSamples:
    """Of one device: a token's compute, waiting and sending seconds, and the compute of each of its segments. `passes`:
    the newest as they were told."""

    compute: Samples = field(default_factory=Samples)
    wait: Samples = field(default_factory=Samples)
    send: Samples = field(default_factory=Samples)
    runs: list[Samples] = field(default_factory=list)
    passes: deque[tuple[StepDone, ...]] = field(default_factory=lambda: deque(maxlen=PASSES))
    free_memory_bytes: int = 0
    tokens: int = 0

    @property
    def enough(self) -> bool:
        """Whether so many tokens were computed that the medians say something."""
        return self.tokens >= RECENT


@dataclass
class LinkSamples:
    """Of one link: one way, seconds and bytes a second, as often as its traffic showed them."""

    latency: Samples = field(default_factory=Samples)
    rate: Samples = field(default_factory=Samples)


class Monitor:
    """Running medians of single tokens' steps since the program was taken up, and of links."""

    def __init__(
        self,
        stages: Sequence[StageRecord],
        predicted: Mapping[str, float],
        planned: Mapping[tuple[str, str], LinkRate],
    ) -> None:
        """`predicted`: seconds a token that the plan has each device compute of `stages`. `planned`: the links' rates
        there."""
        self._planned = dict(planned)
        self._devices: dict[str, DeviceSamples] = {}
        self._links: dict[tuple[str, str], LinkSamples] = {}
        self._slowness: dict[str, float] = {}  # as it was when the device ran something last
        self._stages, self._predicted = tuple(stages), dict(predicted)

    @property
    def devices(self) -> Mapping[str, DeviceSamples]:
        return self._devices

    def plan(self, stages: Sequence[StageRecord], predicted: Mapping[str, float]) -> None:
        """Other stages run from now on: what was measured stays as how slow each device is."""
        self._slowness = dict(self.slowness())
        self._stages, self._predicted = tuple(stages), dict(predicted)
        for samples in self._devices.values():
            samples.compute, samples.wait, samples.send = Samples(), Samples(), Samples()
            samples.runs, samples.tokens = [], 0
            samples.passes.clear()

    def steps(self, device: str, steps: Sequence[StepDone]) -> None:
        """A pass was done: single tokens, of one or of several sequences, or a chunk, which `chunk` says."""
        samples = self._devices.get(device)
        if samples is None:
            samples = self._devices[device] = DeviceSamples()
        samples.tokens += 1
        samples.passes.append(tuple(steps))
        if len(steps) == 1:
            step = steps[0]
            samples.compute.values.append(step.compute_s)
            samples.wait.values.append(step.wait_s)
            samples.send.values.append(step.send_s)
            runs: Iterable[float] = step.runs
        else:
            samples.compute.values.append(sum(step.compute_s for step in steps))
            samples.wait.values.append(sum(step.wait_s for step in steps))
            samples.send.values.append(sum(step.send_s for step in steps))
            runs = map(sum, zip(*(step.runs for step in steps), strict=False))
        for index, seconds in enumerate(runs):
            if index == len(samples.runs):
                samples.runs.append(Samples())
            samples.runs[index].values.append(seconds)

    def measured(self, device: str, said: Measured) -> None:
        """A device's links and memory."""
        self._devices.setdefault(device, DeviceSamples()).free_memory_bytes = said.free_memory_bytes
        for link in said.links:
            samples = self._links.setdefault((device, link.device), LinkSamples())
            if link.latency_s:
                samples.latency.values.append(link.latency_s)
            if link.bytes_per_s:
                samples.rate.values.append(link.bytes_per_s)

    def forget(self, device: str) -> None:
        """The device is gone: what it was says nothing of what it will be."""
        self._devices.pop(device, None)
        self._slowness.pop(device, None)
        self._links = {pair: rate for pair, rate in self._links.items() if device not in pair}

    def slowness(self) -> Mapping[str, float]:
        """Measured seconds over predicted ones, of each device that has computed enough, now or earlier."""
        found = dict(self._slowness)
        for device, samples in self._devices.items():
            recent, predicted = samples.compute.recent, self._predicted.get(device, 0.0)
            if recent is not None and predicted > 0 and samples.enough:
                found[device] = recent / predicted
        return found

    def rates(self) -> Rates:
        """What the balancer reckons with. A device that has computed nothing is as far from its prediction as the
        others are, in the median."""
        slowness = dict(self.slowness())
        usual = median(slowness.values()) if slowness else 1.0
        names = {name for pair in self._planned for name in pair}
        return Rates({**dict.fromkeys(names, usual), **slowness}, self._link_rates())

    def readings(self) -> Readings:
        """What was measured of every device and link that there is, for people and their scripts."""
        slowness = self.slowness()
        devices = {
            name: DeviceReading(
                tokens=samples.tokens,
                compute_s=samples.compute.usual,
                wait_s=samples.wait.usual,
                send_s=samples.send.usual,
                runs=self._runs(name, samples),
                slowness=slowness.get(name),
                free_memory_bytes=samples.free_memory_bytes or None,
            )
            for name, samples in sorted(self._devices.items())
        }
        links = [
            LinkReading(*way, samples.latency.recent, samples.rate.recent)
            for way, samples in sorted(self._links.items())
        ]
        return Readings(devices, tuple(links))

    def measured_all(self, devices: Iterable[str]) -> bool:
        """Whether each of these has computed enough tokens since the program was taken up."""
        return all(name in self._devices and self._devices[name].enough for name in devices)

    def _runs(self, device: str, samples: DeviceSamples) -> tuple[RunReading, ...]:
        """The compute of each of a device's stages; none where its program is not cut as its stages are."""
        mine = [stage.blocks for stage in self._stages if device in stage.devices]
        if any(is_group(stage) for stage in self._stages if device in stage.devices):
            return ()
        if len(mine) != len(samples.runs):
            return ()
        return tuple(
            RunReading(blocks, run.usual or 0.0) for blocks, run in zip(mine, samples.runs, strict=True)
        )

    def _link_rates(self) -> Mapping[tuple[str, str], LinkRate]:
        """What the traffic does not show is as it was planned; of a link that nobody planned, all must be shown."""
        rates = {}
        for way, samples in self._links.items():
            planned = self._planned.get(way)
            latency_s = samples.latency.recent or (planned.latency_s if planned else 0.0)
            bytes_per_s = samples.rate.recent or (planned.bytes_per_s if planned else 0.0)
            if latency_s and bytes_per_s:
                rates[way] = LinkRate(latency_s, bytes_per_s)
        return rates
