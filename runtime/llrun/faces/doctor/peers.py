"""Knocks at the other devices of a bundle, and at this one's own address."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from llrun.device.slice import StoredSlice
from llrun.errors import INTERNAL, RunError
from llrun.faces.doctor.found import Peer, Port, Way
from llrun.faces.doctor.route import way_to
from llrun.wire.addresses import peer_endpoints
from llrun.wire.probe import probe
from llrun.wire.protocol import BUSY
from llrun.wire.transport import ConnectionLost, Transport


def look_at_peers(
    stored: StoredSlice, peers: Mapping[str, str], transport: Transport, timeout_s: float
) -> list[Peer]:
    """Every worker but this device, one after the other. `peers`: addresses that differ from the bundle's."""
    record = stored.record
    names = sorted(record.devices.keys() - {record.head, record.device})
    addresses = {name: peers.get(name, record.devices[name].address) for name in names}
    return [_look_at(stored, name, address, transport, timeout_s) for name, address in addresses.items()]


def _look_at(stored: StoredSlice, name: str, address: str, transport: Transport, timeout_s: float) -> Peer:
    way: Way | None = None
    with suppress(OSError, RunError):  # said better by who connects
        way = way_to(peer_endpoints(address)[0])
    try:
        measured = probe(transport, name, address, stored.record.bundle, stored.device, timeout_s)
    except ConnectionLost as error:
        reason = f"nothing answers at {address}: {error}"
        return Peer(name, address, way, None, RunError("R302", reason, INTERNAL))
    except RunError as error:
        return Peer(name, address, way, None, error)
    return Peer(name, address, way, measured, None)


def look_at_port(stored: StoredSlice, listen: str | None, transport: Transport, timeout_s: float) -> Port:
    """Whether a worker can listen. Where something does already, whether that is the worker itself."""
    address = listen or stored.record.devices[stored.device].address
    try:
        transport.listen(address).close()
        return Port(address, None, None)
    except RunError as error:
        fault = error
    # Any device of the bundle may ask; the head is one that never listens at this address.
    sender = stored.record.head
    try:
        measured = probe(transport, stored.device, address, stored.record.bundle, sender, timeout_s)
    except ConnectionLost:
        return Port(address, fault, None)
    except RunError as error:
        return Port(address, fault, "busy" if error.code == BUSY else None)
    return Port(address, fault, measured.state)
