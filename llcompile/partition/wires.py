"""How activations travel: --wire, and what `auto` makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llcompile.ir.errors import INFEASIBLE, CompileError
from llcompile.ir.plan import Flow, Plan
from llcompile.partition.clock import Clock
from llrun.schema import WireFormat

AUTO = "auto"
Make = Callable[[WireFormat, float], Plan]  # a plan for what travels so, in so many seconds

# Of TTFT or TPOT, what float16 must save beside float32, which changes no bit, and narrower formats beside the wider.
LEAST_F16, LEAST_NARROW = 0.01, 0.05


def plan_wire(wish: str, devices: int, limit_s: float, make: Make) -> Plan:
    """The plan that `make` makes for the format asked for, or for the one that `auto` takes.

    That is f32, which changes no bit, unless f16 shortens TTFT or TPOT by LEAST_F16; and q8 only where that shortens
    either by LEAST_NARROW beside the wider one. Never q4: what that costs in quality is for the user to want. Raises
    what `make` raises for the format asked for; one that `auto` cannot have is left out.
    """
    if wish != AUTO or devices == 1:
        return make(WireFormat.F32 if wish == AUTO else WireFormat(wish), limit_s)
    clock = Clock(limit_s)
    exact = make(WireFormat.F32, limit_s / 2)
    narrow = _tried(make, WireFormat.Q8, clock.left_s / 2)
    if narrow is None or not shorter(narrow, exact, LEAST_F16):
        return exact
    half = _tried(make, WireFormat.F16, clock.left_s)
    best = half if half and shorter(half, exact, LEAST_F16) else exact
    return narrow if shorter(narrow, best, LEAST_NARROW) else best


def shorter(plan: Plan, other: Plan, share: float) -> bool:
    """Whether `plan` has a TTFT or TPOT that is shorter by more than `share`, and is not worse as a whole."""
    less = plan.ttft_s < other.ttft_s * (1 - share) or plan.tpot_s < other.tpot_s * (1 - share)
    return less and plan.objective <= other.objective


def _tried(make: Make, wire: WireFormat, limit_s: float) -> Plan | None:
    try:
        return make(wire, limit_s)
    except CompileError as error:
        if error.exit_code != INFEASIBLE:
            raise
        return None  # its buffers do not fit


def settled(
    flows: Sequence[Flow], exact: Sequence[Flow], wires: Mapping[str, WireFormat]
) -> tuple[Flow, ...]:
    """`flows` where a plan has been made: a tensor has its format for as long as there is the bundle, wherever its
    blocks run; what the plan does not send is as in `exact`, in float32."""
    return tuple(flow if flow.tensor in wires else other for flow, other in zip(flows, exact, strict=True))
