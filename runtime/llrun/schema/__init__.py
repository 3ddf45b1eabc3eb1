"""The bundle's files as types: manifest.json, and slice.json in each device's folder.

llcompile writes, llrun reads. Strict: unknown fields are refused. Both files carry `digest`, the sha256 of their own
canonical text with an empty digest, so that a flipped byte is found before anything in the file is believed.
"""

from llrun.schema.base import MAX_BATCH, SCHEMA, FileEntry, Positive, Size, Strict
from llrun.schema.envelope import Envelope, EnvelopeBlock, EnvelopeDevice, LinkRecord
from llrun.schema.graph import GraphBlock, GraphGroup, GraphPositions, GraphRecord, GroupBlock
from llrun.schema.instructions import (
    DeviceProgram,
    Instruction,
    Load,
    Receive,
    Release,
    Run,
    Send,
    Tensor,
)
from llrun.schema.manifest import Manifest
from llrun.schema.plan import BlockRecord, LoadRecord, MoveRecord, PlanRecord, StageRecord, TransmissionRecord
from llrun.schema.slice import BlockEntry, CacheArray, DeviceInfo, ModelInfo, Param, Slice
from llrun.schema.text import SchemaError, Sealed, decode, encode
from llrun.schema.values import (
    AllReduceKind,
    CacheFormat,
    Isa,
    MoveEvent,
    PlanStatus,
    Precision,
    Rows,
    Shapes,
    TransmissionKind,
    WeightFormat,
    WireFormat,
)

__all__ = [
    "MAX_BATCH",
    "SCHEMA",
    "AllReduceKind",
    "BlockEntry",
    "BlockRecord",
    "CacheArray",
    "CacheFormat",
    "DeviceInfo",
    "DeviceProgram",
    "Envelope",
    "EnvelopeBlock",
    "EnvelopeDevice",
    "FileEntry",
    "GraphBlock",
    "GraphGroup",
    "GraphPositions",
    "GraphRecord",
    "GroupBlock",
    "Instruction",
    "Isa",
    "LinkRecord",
    "Load",
    "LoadRecord",
    "Manifest",
    "ModelInfo",
    "MoveEvent",
    "MoveRecord",
    "Param",
    "PlanRecord",
    "PlanStatus",
    "Positive",
    "Precision",
    "Receive",
    "Release",
    "Rows",
    "Run",
    "SchemaError",
    "Sealed",
    "Send",
    "Shapes",
    "Size",
    "Slice",
    "StageRecord",
    "Strict",
    "Tensor",
    "TransmissionKind",
    "TransmissionRecord",
    "WeightFormat",
    "WireFormat",
    "decode",
    "encode",
]
