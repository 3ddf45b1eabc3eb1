"""A worker process of a group that computes with numpy.

`numpy_group_worker.py NAME DEVICES LISTEN MEMBERS KIND SPARES OTHERS`, SPARES as `anna:1-6,bert:1-6` or nothing, OTHERS
as `anna,bert;bert,cora`: divisions 1 and so on. Prints its address, then serves.
"""

from __future__ import annotations

import sys

import numpy_group

from llrun.schema import AllReduceKind
from llrun.wire.transport import Tcp
from llrun.worker.worker import Worker


def spares_of(text: str) -> dict[str, range]:
    """Who holds which whole blocks beside its pieces."""
    named = (each.split(":") for each in text.split(",") if each)
    return {name: range(*map(int, blocks.split("-"))) for name, blocks in named}


def others_of(text: str, group: numpy_group.Group) -> list[numpy_group.Group]:
    """Divisions of the group's blocks for other devices."""
    named = [each.split(",") for each in text.split(";") if each]
    return [
        numpy_group.split(names, group.kind, division=number, blocks=group.blocks)
        for number, names in enumerate(named, 1)
    ]


if __name__ == "__main__":
    name, devices, listen, members, kind, spares, others = sys.argv[1:]
    group = numpy_group.split(members.split(","), AllReduceKind(kind))
    listener = Tcp().listen(listen)
    part = numpy_group.device(
        name, devices.split(","), group, spares_of(spares), others=others_of(others, group)
    )
    sys.stdout.write(listener.address + "\n")
    sys.stdout.flush()
    worker = Worker(part.record, Tcp(), listener, lambda text: sys.stderr.write(f"{text}\n") and None)
    worker.load(lambda: part)
    worker.serve()
