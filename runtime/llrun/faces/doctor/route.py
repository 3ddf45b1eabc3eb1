"""By which interface an address is reached, and what kind of interface that is."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path

from llrun.faces.doctor.found import Way
from llrun.wire.addresses import Endpoint

LOOPBACK, WIRED = "this machine itself", "a wired network"
WIRELESS, TUNNEL, MOBILE = "Wi-Fi", "a VPN or tunnel", "a mobile or dial-up network"
CLASS = Path("/sys/class/net")
# linux/rtnetlink.h, linux/netlink.h
RTM_GETROUTE, NLM_F_REQUEST, NLMSG_ERROR, RTA_DST, RTA_OIF = 26, 1, 2, 1, 4
MESSAGE, ROUTE, ATTRIBUTE, NUMBER = (
    struct.Struct("=IHHII"),
    struct.Struct("=BBBBBBBBI"),
    struct.Struct("=HH"),
    "=I",
)
ASK_S = 1.0
# linux/if_arp.h: interfaces without a link layer of their own.
PPP, TUNNELS, NONE = 512, frozenset({768, 769, 776, 778, 823}), 65534
TUNNEL_KINDS = frozenset(
    {"wireguard", "ipip", "gre", "gretap", "ip6gre", "ip6tnl", "vxlan", "geneve", "l2tp"}
)


def way_to(endpoint: Endpoint, folder: Path = CLASS) -> Way | None:
    """The interface by which this machine reaches the address; None where the system does not say."""
    name = _interface(endpoint)
    if name is None:
        return None
    one = folder / name
    kind = kind_of(
        name,
        _text(one / "uevent"),
        _number(_text(one / "type")),
        wireless=(one / "wireless").exists() or (one / "phy80211").exists(),
        tun=(one / "tun_flags").exists(),
    )
    speed = _number(_text(one / "speed"))
    return Way(name, kind, speed if speed and speed > 0 else None)


def kind_of(name: str, uevent: str, link_type: int | None, wireless: bool, tun: bool) -> str:
    """What an interface is, by what the system says of it, then by its name. `uevent`, `link_type`: the files of its
    folder in /sys/class/net."""
    said = dict(line.split("=", 1) for line in uevent.splitlines() if "=" in line).get("DEVTYPE", "")
    if name == "lo" or link_type == 772:
        return LOOPBACK
    if said == "wwan" or link_type == PPP or name.startswith(("wwan", "ppp", "rmnet")):
        return MOBILE
    if said in TUNNEL_KINDS or tun or link_type in TUNNELS or link_type == NONE:
        return TUNNEL
    if said == "wlan" or wireless or name.startswith(("wl", "ath")):
        return WIRELESS
    return TUNNEL if name.startswith(("tun", "tap", "wg", "tailscale", "zt", "utun")) else WIRED


def _interface(endpoint: Endpoint) -> str | None:
    """Asked of the system's own tables of routes, with all their rules: rtnetlink(7)."""
    address = ip_address(endpoint.sockaddr[0].partition("%")[0])
    if len(endpoint.sockaddr) == 4 and endpoint.sockaddr[3]:
        return socket.if_indextoname(endpoint.sockaddr[3])
    packed = address.packed
    route = ROUTE.pack(endpoint.family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    wanted = ATTRIBUTE.pack(ATTRIBUTE.size + len(packed), RTA_DST) + packed
    size = MESSAGE.size + len(route) + len(wanted)
    try:
        with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as asked:
            asked.settimeout(ASK_S)
            asked.send(MESSAGE.pack(size, RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + route + wanted)
            return _named(asked.recv(1 << 16))
    except (OSError, AttributeError, struct.error):  # another system, or one that forbids it
        return None


def _named(answer: bytes) -> str | None:
    """The interface that an answer names; None where it says that there is no route."""
    length, kind, *_ = MESSAGE.unpack_from(answer)
    if kind == NLMSG_ERROR:
        return None
    for attribute, value in _attributes(answer[MESSAGE.size + ROUTE.size : length]):
        if attribute == RTA_OIF:
            return socket.if_indextoname(struct.unpack(NUMBER, value)[0])
    return None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if length < ATTRIBUTE.size:
            return
        yield kind, data[ATTRIBUTE.size : length]
        data = data[-(-length // 4) * 4 :]


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _number(text: str) -> int | None:
    with suppress(ValueError):
        return int(text)
    return None
