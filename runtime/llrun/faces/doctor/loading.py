"""Loads a slice's library, in a process of its own: `python -m llrun.faces.doctor.loading SLICE`."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from llrun.device.library import load_library, sealed_copy
from llrun.device.load import templates_of
from llrun.device.slice import find
from llrun.errors import RunError
from llrun.faces.doctor.look import LoadFault


def main(folder: str) -> int:
    try:
        stored = find(Path(folder), None)
        record = stored.record
        runtime, compiled = (sealed_copy(stored, name) for name in (record.runtime_library, record.library))
        cached = {block.template for block in record.blocks if block.caches}
        threads = record.devices[record.device].threads
        load_library(runtime, compiled, templates_of(record), cached, threads)
    except RunError as error:
        sys.stdout.buffer.write(msgspec.json.encode(LoadFault(error.code, error.message)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
