"""The bundle on disk: written, verified, read back.

- check_destination: may a bundle be written there? asked before minutes of work
- write_bundle: plan, programs, libraries and weights in the layout of docs/design.md, the same bytes every time
- runtime_library: TVM's runtime library for a processor
- verify: every violation of a bundle; read_manifest: its manifest, checked
- plan_record: the plan as the bundle's schema has it; plan_json: as plain values
"""

from llcompile.bundle.destination import check_destination
from llcompile.bundle.graph_record import graph_record
from llcompile.bundle.records import plan_json, plan_record
from llcompile.bundle.runtime_library import runtime_library
from llcompile.bundle.verifier import read_manifest, verify
from llcompile.bundle.writer import MakePages, PackBlock, Progress, write_bundle

__all__ = [
    "MakePages",
    "PackBlock",
    "Progress",
    "check_destination",
    "graph_record",
    "plan_json",
    "plan_record",
    "read_manifest",
    "runtime_library",
    "verify",
    "write_bundle",
]
