"""A worker's life: load, listen, serve one head after another until interrupted."""

from __future__ import annotations

import os
from collections.abc import Mapping

from llrun.device.load import load_device
from llrun.device.slice import Place
from llrun.faces import local
from llrun.faces.console import Console
from llrun.faces.where import check_peers
from llrun.wire.transport import Transport
from llrun.worker.worker import Worker


def serve(
    place: Place,
    listen: str | None,
    announce: str | None,
    verify: bool,
    peers: Mapping[str, str],
    transport: Transport,
    console: Console,
) -> None:
    """Serve heads at `listen`, else at the bundle's address. `announce`: `FD:PID`, from --local. `peers`:
    addresses of other workers that differ from the bundle's."""
    check_peers(place, peers)
    writing, parent = (int(part) for part in announce.split(":")) if announce else (None, None)
    if parent is not None:
        local.end_with_parent(parent)
    device = load_device(place, verify, console.progress)
    listener = transport.listen(listen or place.record.devices[place.device].address)
    note = console.silent if announce else (lambda text: console.note(f"{device.name}: {text}"))
    if writing is None:
        console.note(f"{device.name}: listening on {listener.address}")
    else:
        with os.fdopen(writing, "w", encoding="ascii") as pipe:
            pipe.write(f"{listener.address}\n")
    Worker(device, transport, listener, note, peers).serve()
