"""manifest.json: what a whole bundle holds."""

from __future__ import annotations

from llrun.schema.base import FileEntry, Strict
from llrun.schema.envelope import Envelope
from llrun.schema.instructions import DeviceProgram
from llrun.schema.plan import PlanRecord
from llrun.schema.slice import ModelInfo


class Manifest(Strict, frozen=True):
    """manifest.json. `files`: every other file of the bundle, relative to it, slices included."""

    schema: int
    digest: str
    bundle: str
    model: ModelInfo
    head: str
    plan: PlanRecord
    envelope: Envelope
    programs: dict[str, DeviceProgram]
    files: dict[str, FileEntry]
