"""What the user asks of a plan, and the reading of --pin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from llcompile.ir.cluster import Cluster
from llcompile.ir.errors import CompileError

OBJECTIVES = ("latency", "throughput")
_PIN = re.compile(r"([0-9]{1,9}):([0-9]{1,9})=(.+)")
_SYNTAX, _DEVICE, _RANGE, _CONFLICT = "P210", "P211", "P212", "P213"


@dataclass(frozen=True)
class Pin:
    """Blocks start..stop-1 must be on `device`."""

    start: int
    stop: int
    device: str

    def __str__(self) -> str:
        return f"--pin {self.start}:{self.stop}={self.device}"


@dataclass(frozen=True)
class PlanOptions:
    """`objective`: latency (seconds of a request of `prompt_tokens` and `new_tokens`) or throughput (seconds
    between tokens with `sequences` in flight). `gap`: relative difference to the proven bound at which the solver
    may stop. `quant`, `context` and `chunk` (prompt tokens processed at once) are what the costs were computed for.
    """

    objective: str
    quant: str
    context: int
    chunk: int
    use_all: bool = False
    pins: tuple[Pin, ...] = ()
    prompt_tokens: int = 512
    new_tokens: int = 128
    sequences: int = 8
    time_limit_s: float = 60.0
    gap: float = 1e-4
    seed: int = 1

    @property
    def chunks(self) -> float:
        """Chunks in a prompt; a prompt that fits in one counts as a whole one."""
        return max(1.0, self.prompt_tokens / self.chunk)


def parse_pin(text: str) -> Pin:
    """`3:7=pi` -> blocks 3 to 6 on pi. Raises CompileError P210 on bad syntax, P212 on an empty range."""
    match = _PIN.fullmatch(text)
    if not match:
        raise CompileError(_SYNTAX, f"--pin {text}: not a pin. Write START:STOP=DEVICE, such as --pin 3:7=pi")
    start, stop = int(match[1]), int(match[2])
    if start >= stop:
        blocks = f"blocks {start} to {stop - 1}" if stop else "no blocks"
        raise CompileError(_RANGE, f"--pin {text}: {blocks} is an empty range. START must be below STOP")
    return Pin(start, stop, match[3])


def parse_pins(texts: Iterable[str], cluster: Cluster, blocks: int) -> tuple[Pin, ...]:
    """`parse_pin` of each text, held against the devices of `cluster` and the number of blocks.

    Raises CompileError (exit 2), as `parse_pin` and `check_pins` do.
    """
    pins = tuple(parse_pin(text) for text in texts)
    check_pins(pins, cluster, blocks)
    return pins


def check_pins(pins: Sequence[Pin], cluster: Cluster, blocks: int) -> None:
    """Raises CompileError (exit 2) when pins name what does not exist (P211, P212) or contradict each other (P213)."""
    names = tuple(device.name for device in cluster.devices)
    for pin in pins:
        if pin.device not in names:
            near = get_close_matches(pin.device, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise CompileError(_DEVICE, f"{pin}: unknown device{hint}. Devices: {', '.join(names)}")
        if pin.stop > blocks:
            raise CompileError(_RANGE, f"{pin}: the model has {blocks} blocks, 0 to {blocks - 1}. Lower STOP")
        ends = [block for block in (0, blocks - 1) if pin.start <= block < pin.stop]
        if ends and pin.device != cluster.head:
            fault = f"block {ends[0]} must be on the head, {cluster.head}: text never leaves it"
            raise CompileError(_CONFLICT, f"{pin}: {fault}. Pin blocks 1 to {blocks - 2} at most")
    for i, first in enumerate(pins):
        for second in pins[i + 1 :]:
            _check_pair(first, second)
    _check_order(pins, cluster.head)


def _check_pair(first: Pin, second: Pin) -> None:
    overlap = max(first.start, second.start), min(first.stop, second.stop)
    if overlap[0] < overlap[1] and first.device != second.device:
        fault = f"both claim block {overlap[0]}, for {first.device} and {second.device}"
        raise CompileError(_CONFLICT, f"{first} and {second}: {fault}. Keep one")


def _check_order(pins: Sequence[Pin], head: str) -> None:
    """A device's pins must be able to lie in one consecutive stage (the head's: in its first or its last)."""
    ordered = sorted(pins, key=lambda pin: (pin.start, pin.stop, pin.device))
    # The head's first stage begins before every pin and its last ends after: between workers it cannot be.
    for i, first in enumerate(ordered):
        for k in range(i + 1, len(ordered)):
            middle, later = ordered[k], ordered[k + 1 :]
            last = next((pin for pin in later if pin.device == first.device), None)
            if middle.device != first.device and last is not None and first.device != head:
                fault = f"{middle} splits the stage of {first.device}, which must be consecutive"
                raise CompileError(_CONFLICT, f"{first}, {last}: {fault}. Change one of them")
            if first.device != head and middle.device == head:
                beyond = next((pin for pin in later if pin.device != head), None)
                if beyond is not None:
                    fault = f"{head} has the first and the last stage and none between {first} and {beyond}"
                    raise CompileError(_CONFLICT, f"{middle}: {fault}. Change one of them")
