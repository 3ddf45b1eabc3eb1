"""Addresses of devices: read, looked up, and why one cannot be reached or listened on."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from llrun.errors import RunError

MALFORMED, CANNOT_LISTEN = "R101", "R303"
FORM = "write HOST:PORT, or [ADDRESS]:PORT for IPv6, the port at most 65535"
_NO_SUCH_ADDRESS = "this machine has no such address: give one of its own with --listen"
_LISTENING = {
    errno.EADDRINUSE: "another llrun, or another program, listens there: end it, or choose another port with"
    " --listen HOST:PORT, and give it to the head with --peer NAME=HOST:PORT",
    errno.EADDRNOTAVAIL: _NO_SUCH_ADDRESS,
    errno.EACCES: "ports below 1024 are for root: choose another with --listen",
    errno.EAFNOSUPPORT: "this machine has no addresses of this kind: give another with --listen",
}
_REACHING = {
    errno.ECONNREFUSED: "connection refused: the machine is there, but nothing listens on this port. Is llrun"
    " running there, with this address?",
    errno.ENETUNREACH: "no route to its network: is this machine in the same network?",
    errno.EHOSTUNREACH: "no route to it: is it switched on, and in the same network?",
    errno.EACCES: "permission denied: a firewall on this machine forbids it",
    errno.EPERM: "permission denied: a firewall on this machine forbids it",
    errno.EAFNOSUPPORT: "this machine has no addresses of this kind",
    errno.EADDRNOTAVAIL: "this machine has no address from which to reach it",
    errno.EINVAL: "the system does not take this address",
}
SILENT = "no answer in time: it is switched off or asleep, or a firewall drops what comes to this port"


class NoSuchAddress(OSError):
    """What is written is no address that this machine could use; the message says why."""


@dataclass(frozen=True)
class Endpoint:
    """An address as a socket takes it. `sockaddr`: (host, port), or (host, port, flow, scope) for IPv6."""

    family: socket.AddressFamily
    sockaddr: tuple[str, int] | tuple[str, int, int, int]

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        return ip_address(self.sockaddr[0].partition("%")[0])


def parse_address(address: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, `[v6%interface]:port`; a v4 address written as v6 is that v4 address.
    Raises RunError R101."""
    host, _, port = address.rpartition(":")
    digits = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    literal = literal_of(inner)
    well = inner.isascii() and inner.isprintable() and not set(inner) & set("[] ")
    if not (inner and digits and well) or bracketed != (":" in inner) or (bracketed and literal is None):
        raise RunError(MALFORMED, f"{address!r} is not an address: {FORM}")
    if isinstance(literal, IPv6Address) and literal.ipv4_mapped:
        inner = str(literal.ipv4_mapped)
    return inner, int(port)


def literal_of(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that `host` is written as, None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def show_address(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """The text of a socket's address, the interface of a link-local one included."""
    host, port = host_of(sockaddr), sockaddr[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """The host of a socket's address, the interface of a link-local one included."""
    host = sockaddr[0]
    if len(sockaddr) == 4 and sockaddr[3] and "%" not in host:
        return f"{host}%{socket.if_indextoname(sockaddr[3])}"
    return host


def look_up(host: str, port: int) -> list[Endpoint]:
    """What `host` stands for, at least one. Raises OSError that says why there is none."""
    interface = host.partition("%")[2]
    if interface and interface not in {name for _, name in socket.if_nameindex()} and not interface.isdigit():
        raise NoSuchAddress(f"this machine has no interface {interface}")
    literal = literal_of(host)
    if isinstance(literal, IPv6Address) and literal.is_link_local and not literal.scope_id:
        raise NoSuchAddress("a link-local address needs the interface it is reached by: [fe80::1%eth0]:PORT")
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise NoSuchAddress("a name whose parts are empty or longer than 63 characters") from error
    return [Endpoint(socket.AddressFamily(family), _sockaddr(at)) for family, _, _, _, at in known]


def _sockaddr(at: tuple[object, ...]) -> tuple[str, int] | tuple[str, int, int, int]:
    match at:
        case (str(host), int(port)):
            return host, port
        case (str(host), int(port), int(flow), int(scope)):
            return host, port, flow, scope
    raise NoSuchAddress(f"an address of a kind that is not understood: {at}")


def peer_endpoints(address: str) -> list[Endpoint]:
    """Where to connect to. Raises RunError R101 for what no device has as its address, OSError for a name
    that cannot be looked up."""
    host, port = parse_address(address)
    if not port:
        raise RunError(MALFORMED, f"{address} is no device's address: port 0 means any port that is free")
    endpoints = look_up(host, port)
    if any(endpoint.ip.is_unspecified for endpoint in endpoints):
        raise RunError(
            MALFORMED,
            f"{address} is no device's address: it means all addresses of a machine, which only --listen takes."
            " Give the one that the device is reached by",
        )
    return endpoints


def why_not_reached(error: OSError) -> str:
    """What stands in the way of a connection, and what can be done about it."""
    if isinstance(error, socket.gaierror):
        return _name_fault(error)
    if isinstance(error, BlockingIOError | TimeoutError):
        return SILENT
    return _REACHING.get(error.errno or 0) or _said(error)


def why_not_listening(address: str, error: OSError) -> RunError:
    if isinstance(error, socket.gaierror):
        reason = _name_fault(error)
    else:
        said = _said(error)
        remedy = _LISTENING.get(error.errno or 0)
        reason = f"{said}: {remedy}" if remedy else f"{said}: give this machine's own address with --listen"
    return RunError(CANNOT_LISTEN, f"cannot listen on {address}: {reason}")


def _said(error: OSError) -> str:
    return error.strerror.lower() if error.strerror else str(error)


def _name_fault(error: socket.gaierror) -> str:
    if error.errno == socket.EAI_AGAIN:
        return "the name cannot be looked up now: is the network up? An IP address needs no look-up"
    return "the name is unknown on this machine: write its IP address, or add the name to /etc/hosts"
