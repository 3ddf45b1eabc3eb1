"""Which addresses a worker dials."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address

from llrun.errors import INTERNAL, RunError
from llrun.wire.addresses import literal_of, parse_address


def check_dial(device: str, address: str, described: Collection[str], head: str) -> None:
    """Refuse an address that a head may not send this worker to, so that no head, nor who poses as one, makes it
    connect to whatever it likes: a worker is no scanner of the network it stands in.

    A head names where each device is, since it may have been told otherwise than the bundle says (--peer, --local).
    Its word is taken for the port, and for the host where that is

    - the host of one of `described`: the addresses of this slice's devices, and those given here with --peer;
    - `head`, the address that the head's own connection comes from; with --local both are loopback.

    A loopback address of `described` is dialled as it stands there, or for a head that is on this machine itself.
    Names are compared as they are written; a name that is not described is not even looked up.

    Raises RunError R101 for what is no address, R309 for one that is not dialled.
    """
    host = parse_address(address)[0]
    here = literal_of(host)
    source = literal_of(head)
    if address in described or (here is not None and here == source):
        return
    if _is_loopback(host, here):
        allowed = source is not None and source.is_loopback
    else:
        allowed = _same_form(host) in {_same_form(parse_address(each)[0]) for each in described}
    if not allowed:
        raise RunError(
            "R309",
            f"it does not connect to {address}, where the head says that device {device} is: that host is not in"
            f" its slice. Start it with --peer {device}={address}, or build the bundle with this address",
            INTERNAL,
        )


def _is_loopback(host: str, literal: IPv4Address | IPv6Address | None) -> bool:
    return host.lower() == "localhost" if literal is None else literal.is_loopback


def _same_form(host: str) -> str:
    return str(literal_of(host) or host.lower())
