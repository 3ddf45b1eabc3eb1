"""What is to be said of the links from a device to others: pure, of what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from llrun.faces.doctor.found import Check, Found, Peer, Status, Way
from llrun.faces.doctor.judge import ENOUGH, per_s
from llrun.faces.doctor.route import LOOPBACK, WIRED
from llrun.programs.placement import LinkRate, Placement, Rates
from llrun.version import VERSION
from llrun.wire.addresses import literal_of, parse_address
from llrun.wire.probe import Probing
from llrun.wire.protocol import BUSY

MORE, APART_S = 1.5, 2e-4  # a latency beyond so many times the planned one and so much is a slow one
LONGER = 1.2  # a token that takes so many times as long
MEASURE = "write what was found into links of devices.json, and build again"


def link_checks(found: Found) -> Iterator[Check]:
    """Of every device that this one may have to reach; then what they make of the plan, where this is the head."""
    for peer in found.peers:
        yield there(found, peer)
        if peer.way and peer.way.kind != LOOPBACK:
            yield path(peer, peer.way)
        if peer.measured:
            yield latency(found, peer.name, peer.measured)
            yield from rates(found, peer.name, peer.measured)
    measured = any(peer.measured for peer in found.peers)
    if found.is_head and measured:
        yield token(found)


def there(found: Found, peer: Peer) -> Check:
    """Whether the device answers, as itself."""
    name, measured, fault = f"device {peer.name}", peer.measured, peer.fault
    if measured:
        text = f"{peer.address} answers, and is {measured.state}"
        if measured.version == VERSION:
            return Check(name, Status.OK, text)
        remedy = f"install the same llrun on {peer.name} and here"
        return Check(
            name, Status.WARN, f"{text}; it has llrun {measured.version}", f"llrun {VERSION}", remedy
        )
    assert fault is not None
    if fault.code == "R302":
        return _silent(found, peer, fault.message, name)
    if fault.code == BUSY:
        return Check(name, Status.WARN, fault.message, "a free one", "ask again when the other has finished")
    expected = f"device {peer.name} of bundle {found.record.bundle[:12]}"
    if fault.code == "R304":
        remedy = f"copy the slice of {peer.name} there and start llrun on it, or give its address with --peer"
    elif "protocol version" in fault.message or "is due" in fault.message:
        remedy = f"install the same llrun on {peer.name} and here"
    else:
        remedy = f"end what listens there, and start llrun of {peer.name}; or give its address with --peer"
    return Check(name, Status.FAIL, fault.message, expected, remedy)


def _silent(found: Found, peer: Peer, reason: str, name: str) -> Check:
    """Nothing listens: of a bundle that lies here whole, whose devices are all here, it may not have to."""
    reason = reason.partition(". ")[0]
    start = f"start it there: llrun {peer.name}/"
    host = literal_of(parse_address(peer.address)[0])
    if found.whole and host and host.is_loopback:
        start = (
            f"llrun BUNDLE --local starts every device here; or start it: llrun BUNDLE --device {peer.name}"
        )
        return Check(name, Status.WARN, reason, f"{peer.name} listens", start)
    status = Status.FAIL if found.is_head else Status.WARN
    return Check(name, status, reason, f"{peer.name} listens", start)


def path(peer: Peer, way: Way) -> Check:
    """By which interface it is reached: one that others share, or that goes through other machines, is named."""
    name = f"path to {peer.name}"
    speed = f", {way.speed_mbit} Mbit/s" if way.speed_mbit else ""
    text = f"{way.interface}: {way.kind}{speed}"
    if way.kind == WIRED:
        return Check(name, Status.OK, text)
    remedy = f"connect {peer.name} by cable, and give its address there with --peer or in devices.json"
    return Check(name, Status.WARN, text, "a wired network", remedy)


def latency(found: Found, peer: str, measured: Probing) -> Check:
    planned = _planned(found, found.record.device, peer)
    name, text = f"latency to {peer}", milliseconds(measured.latency_s)
    if planned is None or measured.latency_s <= MORE * planned.latency_s + APART_S:
        expected = f"; the plan has {milliseconds(planned.latency_s)}" if planned else ""
        return Check(name, Status.OK, text + expected)
    return Check(name, Status.WARN, text, f"{milliseconds(planned.latency_s)} as planned", MEASURE)


def rates(found: Found, peer: str, measured: Probing) -> Iterator[Check]:
    """Of both ways."""
    me = found.record.device
    for name, way, rate in (
        (f"rate to {peer}", (me, peer), measured.there_bytes_per_s),
        (f"rate from {peer}", (peer, me), measured.back_bytes_per_s),
    ):
        planned = _planned(found, *way)
        if planned is None or rate >= ENOUGH * planned.bytes_per_s:
            expected = f"; the plan has {per_s(planned.bytes_per_s)}" if planned else ""
            yield Check(name, Status.OK, per_s(rate) + expected)
        else:
            yield Check(name, Status.WARN, per_s(rate), f"{per_s(planned.bytes_per_s)} as planned", MEASURE)


def token(found: Found) -> Check:
    """What the plan's stages take over the links as they were measured, the others as planned."""
    record, me = found.record, found.record.device
    links = {}
    for peer in found.peers:
        if peer.measured:
            links[me, peer.name] = LinkRate(peer.measured.latency_s, peer.measured.there_bytes_per_s)
            links[peer.name, me] = LinkRate(peer.measured.latency_s, peer.measured.back_bytes_per_s)
    planned = Placement.of(record).predict(record.stages)
    now = Placement.of(record, Rates(links=links)).predict(record.stages)
    text = f"a token would take {milliseconds(now)} over these links"
    if now <= LONGER * planned:
        return Check("plan", Status.OK, f"{text}; the plan has {milliseconds(planned)}")
    return Check("plan", Status.WARN, text, f"{milliseconds(planned)} as planned", MEASURE)


def _planned(found: Found, source: str, destination: str) -> LinkRate | None:
    for link in found.record.envelope.links:
        if (link.source, link.destination) == (source, destination):
            return LinkRate(link.latency_s, link.bytes_per_s)
    return None


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
