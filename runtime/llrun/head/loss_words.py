"""What a loss is called: who takes over, or what would make it so."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llrun.errors import INTERNAL, RunError
from llrun.programs.rated import Stages, blocks_on, owners_of, spans
from llrun.wire.messages import StepDone


def taken_over(device: str, reason: RunError, before: Stages, after: Stages) -> str:
    """That a device is lost, and where its blocks go."""
    mine = blocks_on(before, device)
    takers: dict[str, set[int]] = {}
    for block, owner in owners_of(after).items():
        if block in mine:
            takers.setdefault(owner, set()).add(block)
    to = ", ".join(f"{spans(blocks)} to {name}" for name, blocks in sorted(takers.items()))
    return f"{reason.message}. Its blocks go: {to}; the answer goes on"


def irreplaceable(device: str, reason: RunError, stages: Stages, wait_s: float) -> RunError:
    """The error of a loss that nothing can make good."""
    blocks = blocks_on(stages, device)
    which = f"blocks {spans(blocks)}" if len(blocks) > 1 else f"block {spans(blocks)}"
    return RunError(
        reason.code,
        f"{reason.message}. No other device can run its {which}. Start it again within --wait (now {wait_s:g} s) and"
        " the answer goes on, or build with more memory_bytes or disk_bytes on another device, so that it can hold"
        " them (--spare auto)",
        INTERNAL,
        device,
    )


def standstill(
    newest: tuple[int, int] | None,
    done: Mapping[str, Collection[StepDone]],
    alive: Collection[str],
    timeout_s: float,
) -> RunError:
    """Nothing moves though every device lives: name those that have not done the newest step, a sequence's position.
    `done`: what each did last."""
    steps = {device: {(step.sequence, step.position) for step in each} for device, each in done.items()}
    behind = [name for name in sorted(alive) if newest and newest not in steps.get(name, ())]
    return RunError(
        "R305",
        f"nothing came from any device for {timeout_s:g} s (--timeout); the newest step is not done"
        f" on {', '.join(behind) or 'none'}",
        INTERNAL,
    )
