"""Each device's program, written from the plan's own transmissions and checked before anybody gets it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llcompile.ir.errors import INTERNAL, CompileError
from llrun import schema
from llrun.errors import RunError
from llrun.programs.check_programs import Programs, check_programs
from llrun.programs.write import idle_program, write_programs

_BROKEN = "P223"


def device_programs(
    graph: schema.GraphRecord,
    stages: Sequence[schema.StageRecord],
    transmissions: Sequence[schema.TransmissionRecord],
    head: str,
    idle: Iterable[str] = (),
) -> dict[str, schema.DeviceProgram]:
    """The program of every device in use, and that of those that hold spares alone: `idle`.

    Raises CompileError P223 (exit 1): a fault of the compiler.
    """
    try:
        programs = write_programs(graph, stages, transmissions)
    except RunError as error:
        raise _broken(error.message) from error
    programs |= {device: idle_program(device) for device in idle}
    verify_programs(programs, graph, transmissions, head)
    return programs


def verify_programs(
    programs: Programs,
    graph: schema.GraphRecord,
    transmissions: Sequence[schema.TransmissionRecord],
    head: str,
) -> None:
    """Raises CompileError P223 (exit 1), naming every promise that the programs do not keep."""
    violations = check_programs(programs, graph, transmissions, head)
    if violations:
        raise _broken("; ".join(violations))


def _broken(reason: str) -> CompileError:
    return CompileError(
        _BROKEN, f"the devices' programs are not right: {reason}. Please report this", INTERNAL
    )
