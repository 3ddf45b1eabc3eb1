"""Which device computes what: the MIP, its brute-force oracle, the transmission map, and each device's program."""

from llcompile.partition.envelope import envelope
from llcompile.partition.keeping import kept_pins
from llcompile.partition.options import (
    Pin,
    PlanOptions,
    check_time_limit,
    parse_pin,
    parse_pins,
    parse_tensor_parallel,
    request_of,
)
from llcompile.partition.planner import plan
from llcompile.partition.portions import plan_portions
from llcompile.partition.programs import device_programs
from llcompile.partition.solver import resolve
from llcompile.partition.spares import Spare, with_divisions, with_spares
from llcompile.partition.windows import parse_window, plan_with_windows
from llcompile.partition.wires import plan_wire, settled, widened

__all__ = [
    "Pin",
    "PlanOptions",
    "Spare",
    "check_time_limit",
    "device_programs",
    "envelope",
    "kept_pins",
    "parse_pin",
    "parse_pins",
    "parse_tensor_parallel",
    "parse_window",
    "plan",
    "plan_portions",
    "plan_wire",
    "plan_with_windows",
    "request_of",
    "resolve",
    "settled",
    "widened",
    "with_divisions",
    "with_spares",
]
