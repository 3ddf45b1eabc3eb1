"""The bundle on disk: written, verified, explained.

check_destination   may a bundle be written there? asked before minutes of work
write_bundle        plan, programs, libraries and weights to DESIGN's layout, byte for byte the same
every time runtime_library     TVM's runtime library for a processor verify              every violation
of a bundle read_manifest       a bundle's manifest, checked plan_record         the plan as the bundle's
schema has it; plan_json: as plain values print_plan          the plan in words and tables, for a
terminal
"""

from llcompile.bundle.destination import check_destination
from llcompile.bundle.measured import read_measured
from llcompile.bundle.records import plan_json, plan_record
from llcompile.bundle.runtime_library import runtime_library
from llcompile.bundle.sizes import human_bytes, human_seconds
from llcompile.bundle.tables import plan_text, print_plan
from llcompile.bundle.verifier import read_manifest, verify
from llcompile.bundle.writer import PackBlock, Progress, write_bundle

__all__ = [
    "PackBlock",
    "Progress",
    "check_destination",
    "human_bytes",
    "human_seconds",
    "plan_json",
    "plan_record",
    "plan_text",
    "print_plan",
    "read_manifest",
    "read_measured",
    "runtime_library",
    "verify",
    "write_bundle",
]
