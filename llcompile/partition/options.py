"""What the user asks of a plan, and the reading of --pin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from llcompile.ir.cluster import Cluster
from llcompile.ir.errors import CompileError
from llrun.schema import Precision, Shapes

OBJECTIVES = ("latency", "throughput")
_PIN = re.compile(r"([0-9]{1,9}):([0-9]{1,9})=(.+)")
_SYNTAX, _DEVICE, _RANGE, _CONFLICT = "P210", "P211", "P212", "P213"
_REQUEST, _TIME, _GROUP = "P214", "P215", "P217"

# What a plan is for where nobody says: a page asked, a paragraph answered.
PROMPT_TOKENS, NEW_TOKENS, SEQUENCES, TIME_LIMIT_S = 512, 128, 8, 10.0
LONGEST_S = 86400.0
NO_GROUPS = 1


@dataclass(frozen=True)
class Pin:
    """Blocks start..stop-1 must be on `device`. `keep`: of --keep, so many layers, and for as long as the plan's bundle
    is used; 0: of --pin."""

    start: int
    stop: int
    device: str
    keep: int = 0

    def __str__(self) -> str:
        return f"--keep {self.keep}" if self.keep else f"--pin {self.start}:{self.stop}={self.device}"


@dataclass(frozen=True)
class PlanOptions:
    """What is wished of a plan, and what its costs are for: `precision`, `shapes`, and `portion`, the rows of a
    chunk that prompts go in; None: as many as it holds.

    `objective`: latency (seconds of a request of `prompt_tokens` and `new_tokens`) or throughput (seconds between
    tokens with `sequences` in flight). `tensor_parallel`: devices of the one group that has all blocks but the head's;
    NO_GROUPS: every stage is on one device; None: whatever is best. `time_limit_s`: seconds that planning may take, all
    told. `gap`: relative difference to the proven bound at which it may stop sooner.
    """

    objective: str
    precision: Precision
    shapes: Shapes
    portion: int | None = None
    use_all: bool = False
    pins: tuple[Pin, ...] = ()
    tensor_parallel: int | None = None
    prompt_tokens: int = PROMPT_TOKENS
    new_tokens: int = NEW_TOKENS
    sequences: int = SEQUENCES
    time_limit_s: float = TIME_LIMIT_S
    gap: float = 1e-4
    seed: int = 1

    @property
    def chunks(self) -> float:
        """Chunks in a prompt; a prompt that fits in one counts as a whole one."""
        return max(1.0, self.prompt_tokens / (self.portion or self.shapes.chunk))


def request_of(prompt_tokens: int | None, new_tokens: int | None, context: int) -> tuple[int, int]:
    """Prompt and new tokens of the request that a plan is for.

    What nobody gave is PROMPT_TOKENS and NEW_TOKENS, less where a sequence of `context` tokens would not hold them.
    Raises CompileError P214 (exit 2) when what was given does not fit.
    """
    asked = (prompt_tokens or 1) + (new_tokens or 1)
    if (prompt_tokens or new_tokens) and asked > context:
        given = [("--prompt-tokens", prompt_tokens), ("--new-tokens", new_tokens)]
        words = " and ".join(f"{name} {count}" for name, count in given if count)
        raise CompileError(
            _REQUEST,
            f"{words}: a request of {asked} tokens, a sequence holds {context}. "
            "Ask for fewer, or give a larger --context",
        )
    new = new_tokens or max(1, min(NEW_TOKENS, context // 5, context - (prompt_tokens or 1)))
    return prompt_tokens or max(1, min(PROMPT_TOKENS, context - new)), new


def check_time_limit(seconds: float) -> None:
    """Raises CompileError P215 (exit 2) when `seconds` is no time to plan in."""
    if not 0 < seconds <= LONGEST_S:
        raise CompileError(
            _TIME,
            f"--time-limit {seconds:g}: not a time to plan in. Give seconds above 0 and up to {LONGEST_S:.0f}",
        )


def parse_tensor_parallel(text: str) -> int | None:
    """`auto` -> None, `off` -> NO_GROUPS, `4` -> 4. Raises CompileError P217 (exit 2) for anything else."""
    if text == "auto":
        return None
    if text == "off":
        return NO_GROUPS
    if text.isascii() and text.isdigit() and len(text) < 4 and int(text) > 1:
        return int(text)
    raise CompileError(
        _GROUP, f"--tensor-parallel {text}: give auto, off, or a number of devices from 2 on, such as 4"
    )


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
        if cluster.device(pin.device).standby:
            fault = f"{pin.device} stands by in devices.json, and runs no block at first"
            raise CompileError(_CONFLICT, f"{pin}: {fault}. Pin to another device, or leave out its standby")
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
        raise CompileError(_CONFLICT, f"{first} and {second}: {fault}. Leave out one")


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
