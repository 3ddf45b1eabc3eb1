"""What an instruction does: said here once, for all who check, split, bind or send by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from llrun.schema import Instruction, Load, Receive, Release, Rows, Run, Send


@dataclass(frozen=True)
class Effects:
    """What holds before and after an instruction.

    `uses`: tensors that it reads, which must be there. `makes`: those that are there after it. `releases`: those that
    are there before it and not after. `hears`, `tells`: devices whose message it waits for, and that it sends one to.
    `loads`, `runs`: the block it brings into memory, the block it computes. `calls`: the template whose functions it
    needs. `newest_row`: whether it is done for the newest row alone, so not at all on a prompt's earlier chunks.
    """

    uses: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    releases: tuple[int, ...] = ()
    hears: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    loads: int | None = None
    runs: int | None = None
    calls: str | None = None
    newest_row: bool = False

    @property
    def tensors(self) -> tuple[int, ...]:
        """Every tensor that the instruction names; one may be there twice."""
        return (*self.uses, *self.makes, *self.releases)


def effects(instruction: Instruction) -> Effects:
    """The effects of `instruction`. A new kind of instruction fails here, in mypy and at run time."""
    match instruction:
        case Load():
            return Effects(loads=instruction.block)
        case Receive():
            return Effects(makes=(instruction.tensor,), hears=(instruction.source,))
        case Run():
            return Effects(
                uses=instruction.inputs,
                makes=instruction.outputs,
                runs=instruction.block,
                calls=instruction.template,
                newest_row=instruction.rows == Rows.LAST,
            )
        case Send():
            return Effects(
                uses=(instruction.tensor,),
                tells=(instruction.destination,),
                newest_row=instruction.rows == Rows.LAST,
            )
        case Release():
            return Effects(releases=(instruction.tensor,))
        case _:
            assert_never(instruction)


def all_effects(instructions: Iterable[Instruction]) -> tuple[Effects, ...]:
    """The effects of each of `instructions`, in order."""
    return tuple(map(effects, instructions))


def loaded_blocks(instructions: Iterable[Instruction]) -> tuple[int, ...]:
    """The blocks that `instructions` load, in their order."""
    return tuple(each.loads for each in all_effects(instructions) if each.loads is not None)
