"""What a slice takes on disk, as far as it can be known before anything is compiled: never less than it will take."""

from __future__ import annotations

from llcompile.ir.cluster import Device
from llcompile.ir.plan import BlockCost

# TVM's runtime library has 3.4 MB, the compiled functions of the models tried less than 0.5 MB.
LIBRARIES_BYTES = 6 << 20
RECORD_BYTES = 16 << 10  # slice.json, for each block of the model
HEADER_BYTES = 16 << 10  # of a block's file


def file_bytes(cost: BlockCost) -> int:
    """Bytes of a block's file: its packed tensors on pages, and a header."""
    return max(cost.weights_bytes, cost.streamed_bytes) + cost.table_bytes + HEADER_BYTES


def room_bytes(device: Device, blocks: int) -> int | None:
    """Bytes that `disk_bytes` leaves for blocks' files on a device of a model of so many blocks; None: no bound."""
    if device.disk_bytes is None:
        return None
    return device.disk_bytes - LIBRARIES_BYTES - RECORD_BYTES * blocks - device.other_bytes
