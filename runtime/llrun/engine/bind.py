"""Binds a program: its segments with functions, weights and caches in place, made once when it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from llrun.device.blocks import Block
from llrun.device.library import Library
from llrun.device.window import Window
from llrun.engine.stores import SequenceStore
from llrun.programs.effects import Effects, all_effects
from llrun.programs.installed import Installed
from llrun.programs.segments import Segment, Work
from llrun.schema import Release, Rows, Run, Send

KINDS = ("decode", "prefill", "batch")  # a template's functions, in the order of Call.functions


@dataclass(frozen=True)
class Call:
    """A Run with everything but its inputs and slots bound. `functions`: one for each of KINDS. `rounded`: the outputs
    that travel in another format than they are computed in. `window`: what has the block's params for the time of a
    call, where it streams."""

    template: str
    block: int | None
    functions: tuple[Callable[..., Any], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rounded: tuple[int, ...]
    params: tuple[Any, ...]
    caches: tuple[Any, ...]
    last: bool
    logits: bool
    window: Window | None = None


Action = Call | Send | Release


@dataclass(frozen=True)
class BoundSegment:
    """A segment ready to run.

    `waits_early`, `early`: what it waits for and does on a chunk that is not a prompt's last. `reads`: tensors made
    before it. `number`: its place in the program; `last_use`: [tensor] that of the last segment which takes it from one
    before. `positions`, `stateful`: whether it uses position ids and caches. `one_row`: whether all it does is done for
    the newest row alone.
    """

    waits: frozenset[int]
    only_last: frozenset[int]
    waits_early: frozenset[int]
    actions: tuple[Action, ...]
    early: tuple[Action, ...]
    reads: tuple[int, ...]
    number: int
    last_use: Mapping[int, int]
    positions: bool
    stateful: bool
    one_row: bool

    def left(self, values: Mapping[int, Any]) -> dict[int, Any]:
        """What segments after it use of `values`."""
        return {
            tensor: value for tensor, value in values.items() if self.last_use.get(tensor, -1) > self.number
        }


@dataclass(frozen=True)
class Parts:
    """What a program is bound to: the device's blocks, by id, its functions and its sequences' caches."""

    blocks: Mapping[int, Block]
    library: Library
    sequences: SequenceStore


def bind(installed: Installed, parts: Parts) -> tuple[BoundSegment, ...]:
    """The program's segments, ready to run."""
    done = [all_effects(segment.instructions) for segment in installed.segments]
    used = [_used(each) for each in done]
    last_use = {tensor: index for index, each in enumerate(used) for tensor in each}
    return tuple(
        _bound(segment, does, used[index], (index, last_use), installed, parts)
        for index, (segment, does) in enumerate(zip(installed.segments, done, strict=True))
    )


def _used(segment: Sequence[Effects]) -> frozenset[int]:
    """Tensors that a segment's instructions take and don't make before."""
    used: set[int] = set()
    made: set[int] = set()
    for each in segment:
        used |= set(each.uses) - made
        made |= set(each.makes)
    return frozenset(used)


def _bound(
    segment: Segment,
    does: Sequence[Effects],
    used: frozenset[int],
    place: tuple[int, Mapping[int, int]],
    installed: Installed,
    parts: Parts,
) -> BoundSegment:
    actions = tuple(_action(each, installed, parts) for each in segment.instructions)
    fed = used & {installed.input_ids}  # with every step, where tokens are this device's own
    early = tuple(action for action, each in zip(actions, does, strict=True) if not each.newest_row)
    return BoundSegment(
        waits=segment.waits | fed,
        only_last=segment.waits_last,
        waits_early=segment.waits - segment.waits_last | fed,
        actions=actions,
        early=early,
        reads=tuple(sorted(used - {installed.position_ids})),
        number=place[0],
        last_use=place[1],
        positions=installed.position_ids in used,
        stateful=any(isinstance(action, Call) and action.caches for action in actions),
        one_row=all(each.newest_row or each.releases for each in does),
    )


def _action(instruction: Work, installed: Installed, parts: Parts) -> Action:
    match instruction:
        case Run():
            return _call_of(instruction, installed, parts)
        case Send() | Release():
            return instruction
        case _:
            assert_never(instruction)


def _call_of(run: Run, installed: Installed, parts: Parts) -> Call:
    block = None if run.block is None else parts.blocks[run.block]
    caches = parts.sequences.caches(run.block) if run.block is not None else ()
    return Call(
        template=run.template,
        block=run.block,
        functions=tuple(parts.library.functions[f"{run.template}_{kind}"] for kind in KINDS),
        inputs=run.inputs,
        outputs=run.outputs,
        rounded=tuple(tensor for tensor in run.outputs if installed.layouts[tensor].coded),
        params=block.params if block else (),
        caches=caches,
        last=run.rows == Rows.LAST,
        logits=installed.logits in run.outputs,
        window=block.window if block else None,
    )
