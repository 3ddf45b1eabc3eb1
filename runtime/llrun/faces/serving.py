"""A worker's life: listen, load, serve one head after another until interrupted."""

from __future__ import annotations

from collections.abc import Mapping

from llrun.device.load import load_device
from llrun.device.slice import StoredSlice
from llrun.faces import local
from llrun.faces.console import Console
from llrun.faces.processes.folder import Role, State
from llrun.faces.processes.noted import Doing, noted
from llrun.faces.where import check_peers
from llrun.wire.transport import Transport
from llrun.worker.worker import Worker


def serve(
    stored: StoredSlice,
    listen: str | None,
    announcer: local.Announcer | None,
    verify: bool,
    peers: Mapping[str, str],
    transport: Transport,
    console: Console,
) -> None:
    """Serve heads at `listen`, else at the bundle's address. `announcer`: tells the head that started this process.
    `peers`: addresses of other workers that differ from the bundle's."""
    check_peers(stored, peers)
    if announcer:
        announcer.end_with_parent()
    listener = transport.listen(listen or stored.record.devices[stored.device].address)
    note = console.silent if announcer else (lambda text: console.note(f"{stored.device}: {text}"))
    worker = Worker(stored.record, transport, listener, note, peers)
    with noted(stored, Role.WORKER, listener.address) as own:
        worker.load(lambda: load_device(stored, verify, console.progress))
        own.looks(lambda: _doing(worker))
        if announcer:
            announcer.listening(listener.address)
        else:
            console.note(f"{stored.device}: listening on {listener.address}")
        worker.serve()


def _doing(worker: Worker) -> Doing:
    sequences = worker.sequences
    return Doing(State.WAITING) if sequences is None else Doing(State.SERVING, sequences)
