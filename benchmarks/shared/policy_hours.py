"""Hours in the life of a balancing function, simulated: devices with speeds of their own, and the session's monitor.

The monitor, the view, the placement and the policy are the runtime's; simulated are the devices' seconds and the clock.
A token takes what the stages take at true speeds; four times a second the function is asked, as in a session; a change
takes effect after the seconds that it costs. A device that is lost is replaced at once by the best stages without it,
as the session does, whatever the function says.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import inf

from llrun.head.balance import Policy, counts
from llrun.head.balancer import Pace
from llrun.head.monitor import Monitor
from llrun.head.view import Event, EventKind, SequenceView, View, view_of
from llrun.programs.placement import LinkRate, Placement
from llrun.schema import (
    Envelope,
    EnvelopeBlock,
    EnvelopeDevice,
    GraphBlock,
    GraphRecord,
    LinkRecord,
    Shapes,
    StageRecord,
    Tensor,
)
from llrun.wire.messages import StepDone

LAYERS, CHUNK, CONTEXT = 22, 64, 2048  # TinyLlama's
WIDTH_BYTES = 8192
BLOCKS = 2 * LAYERS + 2
EVERY_S = 0.25
TO_COME = 256
BLOCK_S = {"head": 2.5e-3, "laptop": 1.5e-3, "pi": 2.5e-3, "phone": 2.0e-3}
MEMORY = {"head": 0.30, "laptop": 0.40, "pi": 0.45, "phone": 0.45}  # of the model
Stages = tuple[StageRecord, ...]
Speed = Callable[[str, float], float]  # a device's slowness now, without noise
Present = Callable[[str, float], bool]
Burden = Callable[[str, int], float]
Rebalance = Callable[[View], Sequence[StageRecord] | None]


@dataclass(frozen=True)
class Change:
    """`forced`: a device was lost, so that the function had no say."""

    at_s: float
    forced: bool
    stages: Stages


@dataclass(frozen=True)
class Hour:
    """What came of it. `times`: when each token came; `looks`: how often the best stages were looked for."""

    changes: tuple[Change, ...]
    times: Sequence[float]
    looks: int

    @property
    def moves(self) -> tuple[Change, ...]:
        """Those that the function wanted."""
        return tuple(change for change in self.changes if not change.forced)

    def tokens_until_move(self, at_s: float) -> float:
        """Tokens that came from then on until the next move, inf if there was none."""
        move = min((move.at_s for move in self.moves if move.at_s >= at_s), default=inf)
        return bisect(self.times, move) - bisect(self.times, at_s) if move < inf else inf

    def most_within(self, seconds: float) -> int:
        """The most moves in any such stretch of time."""
        times = [move.at_s for move in self.moves]
        return max((sum(t <= u < t + seconds for u in times) for t in times), default=0)


def graph() -> GraphRecord:
    """An embedding, an attention and an MLP block a layer, an output head: a chain."""
    count = BLOCKS - 1
    names = ["ids", "positions", "logits", *(f"x{i}" for i in range(count))]
    tensors = (
        Tensor(id=i, name=name, dtype="uint8", shape=(1, -1, WIDTH_BYTES)) for i, name in enumerate(names)
    )
    blocks = (
        GraphBlock(
            id=b, template="t", inputs=(2 + b,) if b else (0,), outputs=(3 + b,) if b < count else (2,)
        )
        for b in range(BLOCKS)
    )
    return GraphRecord(
        tensors=tuple(tensors),
        blocks=tuple(blocks),
        positions=None,
        input_ids=0,
        position_ids=1,
        logits=2,
    )


def envelope(names: Sequence[str], room: float) -> Envelope:
    """Every device holds every block; memory, `room` times MEMORY, makes three of them share the model."""
    weights, cache = 13_000_000, 1_000_000
    whole = BLOCKS * (weights + cache)
    devices = {
        name: EnvelopeDevice(
            memory_bytes=int(whole * MEMORY[name] * room),
            runtime_bytes=1_000_000,
            disk_bytes_per_s=2e8,
            standby=False,
            blocks=tuple(
                EnvelopeBlock(
                    id=b,
                    weights_bytes=weights,
                    cache_bytes=cache if b % 2 else 0,
                    activation_bytes=100_000,
                    decode_s=BLOCK_S[name],
                    chunk_s=20 * BLOCK_S[name],
                )
                for b in range(BLOCKS)
            ),
        )
        for name in names
    }
    links = (
        LinkRecord(source=a, destination=b, bytes_per_s=1.25e7, latency_s=1e-3)
        for a in sorted(names)
        for b in sorted(names)
        if a != b
    )
    return Envelope(devices=devices, links=tuple(links))


@dataclass(frozen=True)
class Counted(Placement):
    """Notes how often the best stages are looked for."""

    looks: list[float] = field(default_factory=list)

    def best(
        self,
        before: Stages = (),
        held: Sequence[int] = (),
        to_come: float = 0.0,
        lost: Set[str] = frozenset(),
    ) -> Stages | None:
        self.looks.append(to_come)
        return super().best(before, held, to_come, lost)


@dataclass
class Session:
    """A head that produces tokens without end, `seconds` long. `noise`: of each token's seconds, either way. `burden`:
    how many times slower a device is for the blocks that it has to run."""

    speed: Speed
    present: Present = lambda name, t: True
    noise: float = 0.0
    drift: float = 0.0
    burden: Burden = lambda name, blocks: 1.0
    seed: int = 1
    names: Sequence[str] = tuple(BLOCK_S)
    room: float = 1.0
    now: float = 0.0
    times: list[float] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        held = envelope(self.names, self.room)
        self._plan = Counted(graph(), held, "head", Shapes(CONTEXT, CHUNK), looks=self.looks)
        self._stages = some(self._plan.best())
        links = {(k.source, k.destination): LinkRate(k.latency_s, k.bytes_per_s) for k in held.links}
        self._planned = self._plan.seconds_of(self._stages)
        self._monitor = Monitor(self._stages, self._planned, links)
        self._alive = frozenset(self.names)
        self._wander = dict.fromkeys(self.names, 0.0)

    @property
    def stages(self) -> Stages:
        """Those that run now."""
        return self._stages

    def run(self, function: Rebalance | None, seconds: float) -> Hour:
        """`function` None: the default policy, with this session's clock."""
        function = function or Policy(lambda: self.now)
        pace, events, next_view = Pace(), list[Event](), 0.0
        coming: tuple[float, Stages] | None = None
        while self.now < seconds:
            came_or_gone = self._come_and_go()
            events += came_or_gone
            if any(event.kind is EventKind.LOST for event in came_or_gone):
                coming = None
            if coming and self.now >= coming[0]:
                self._take_up(coming[1], forced=False)
                coming = None
            self._token()
            if coming is None and (self.now >= next_view or events) and self._measured():
                if (changed := pace.changed(self._slowness())) is not None:
                    events.append(Event(EventKind.SLOW, changed))
                wanted = function(self._view(events.pop(0) if events else Event(EventKind.STEP)))
                next_view = self.now + EVERY_S
                if wanted is not None:
                    cost = self._known().cost(self._stages, wanted, (CONTEXT // 2,))
                    coming = self.now + cost.seconds, tuple(wanted)
        return Hour(tuple(self.changes), self.times, len(self.looks))

    def _come_and_go(self) -> list[Event]:
        alive = frozenset(name for name in self.names if self.present(name, self.now))
        gone, came = sorted(self._alive - alive), sorted(alive - self._alive)
        self._alive = alive
        for name in gone:
            self._monitor.forget(name)
            if any(stage.lead == name for stage in self._stages):
                best = self._known().best(self._stages, (CONTEXT // 2,), TO_COME, frozenset({name}))
                self._take_up(some(best), forced=True)
        return [Event(EventKind.LOST, name) for name in gone] + [
            Event(EventKind.JOINED, name) for name in came
        ]

    def _take_up(self, stages: Stages, forced: bool) -> None:
        self.changes.append(Change(self.now, forced, stages))
        self._stages = stages
        self._planned = self._plan.seconds_of(stages)
        self._monitor.plan(stages, self._planned)

    def _token(self) -> None:
        """One token at true speeds, and what the devices say of it."""
        seconds, load = 0.0, counts(self._stages)
        for name, planned in self._planned.items():
            uneven = 1 + self._draw.uniform(-self.noise, self.noise)
            took = planned * self.speed(name, self.now) * uneven * (1 + self._wander[name])
            took *= self.burden(name, load[name])
            self._monitor.steps(name, [StepDone(1, 0, took, 0.0, 0)])
            seconds += took
        seconds += 2e-3 * (len(self._stages) - 1)
        self.now += seconds
        self.times.append(self.now)
        for name in self.names if self.drift else ():
            # A walk that is drawn back to its middle within half a minute or so, cut off at its bounds.
            step = math.sqrt(2 * seconds / 30.0) * self.drift * self._draw.gauss(0, 1)
            moved = self._wander[name] * (1 - seconds / 30.0) + step
            self._wander[name] = min(max(moved, -self.drift), self.drift)

    def _measured(self) -> bool:
        return self._monitor.measured_all({stage.lead for stage in self._stages})

    def _known(self) -> Placement:
        return replace(self._plan, rates=self._monitor.rates(), alive=self._alive)

    def _slowness(self) -> Mapping[str, float]:
        running, known = {stage.lead for stage in self._stages}, self._monitor.slowness()
        return {name: known[name] for name in running & known.keys()}

    def _view(self, event: Event) -> View:
        sequences = (SequenceView(CONTEXT // 2, TO_COME),)
        return view_of(self._known(), self._stages, sequences, event, {})


def some(stages: Stages | None) -> Stages:
    """Raises ValueError where there are none."""
    if stages is None:
        raise ValueError("no stages hold the model")
    return stages


def steady(name: str, t: float) -> float:
    """As the plan has it."""
    return 1.0


def flapping(t: float, period_s: float = 10.0) -> bool:
    """On for `period_s`, off for as long."""
    return int(t / period_s) % 2 == 1
