"""Addresses: how they are read, what they stand for, and what is said when one is not to be had."""

from __future__ import annotations

import errno
import re
import socket

import pytest

from llrun.errors import RunError
from llrun.wire import addresses
from llrun.wire.addresses import parse_address, show_address, why_not_listening, why_not_reached
from llrun.wire.transport import ConnectionLost, Tcp


def resolver(known: dict[str, list[str]]):
    """getaddrinfo of a machine whose hosts file has these names."""
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *arguments: object, **options: object):
        return [at for each in known.get(host, [host]) for at in real(each, port, *arguments, **options)]

    return resolve


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.b:1", ("a.b", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[fe80::1%eth0]:5700", ("fe80::1%eth0", 5700)),
        ("[::ffff:10.0.0.7]:5700", ("10.0.0.7", 5700)),
        ("[::FFFF:a00:7]:5700", ("10.0.0.7", 5700)),
    ],
)
def test_addresses(text, parts):
    assert parse_address(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "host:", ":5", "host:x", "host:65536", "host:-1", "host:²", "host:000080", "::1:5700", "[]:5",
        "[host]:5", "[::1:5", "::1]:5", "[[::1]]:5", "[127.0.0.1]:5", "[::1%]:5", "ho st:5", "host\n:5", "host\0:5",
        "höst:5",
    ],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(RunError, match=r"is not an address: write HOST:PORT, or \[ADDRESS\]:PORT for IPv6"):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_who_listens_is_reached_there(host):
    listener = Tcp().listen(f"{host}:0")
    port = listener.address.rpartition(":")[2]
    here = Tcp().connect(f"{host}:{port}", 5.0)
    there = listener.accept()
    here.send(b"x")
    data = bytearray(1)
    there.read_into(memoryview(data))
    assert data == b"x"
    for end in (here, there, listener):
        end.close()


def test_a_name_listens_on_what_it_stands_for(monkeypatch):
    monkeypatch.setattr(
        addresses.socket, "getaddrinfo", resolver({"six": ["::1"], "both": ["::1", "127.0.0.1"]})
    )
    six, both = Tcp().listen("six:0"), Tcp().listen("both:0")
    assert six.address.startswith("[::1]:")
    assert both.address.startswith("127.0.0.1:")
    port = both.address.rpartition(":")[2]
    Tcp().connect(f"both:{port}", 5.0).close()  # whose first address does not answer
    six.close()
    both.close()


@pytest.mark.parametrize(
    "address", ["0.0.0.0:5700", "[::]:5700", "[::ffff:0.0.0.0]:5700", "0:5700", "any:5700"]
)
def test_no_device_is_at_all_addresses(monkeypatch, address):
    monkeypatch.setattr(addresses.socket, "getaddrinfo", resolver({"any": ["0.0.0.0"]}))
    with pytest.raises(RunError, match="all addresses of a machine, which only --listen takes"):
        Tcp().connect(address, 1.0)


def test_all_addresses_can_be_listened_on():
    for address in ("0.0.0.0:0", "[::]:0"):
        Tcp().listen(address).close()


def test_no_device_is_at_port_0():
    with pytest.raises(RunError, match="port 0 means any port that is free"):
        Tcp().connect("127.0.0.1:0", 1.0)


def test_a_link_local_address_shows_its_interface():
    scope = socket.if_nametoindex("lo")
    assert show_address(("fe80::1", 5700, 0, scope)) == "[fe80::1%lo]:5700"
    assert show_address(("::1", 5700, 0, 0)) == "[::1]:5700"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("[fe80::1]:5700", r"needs the interface it is reached by: \[fe80::1%eth0\]:PORT"),
        ("[fe80::1%nosuch0]:5700", "this machine has no interface nosuch0"),
        (f"{'a' * 64}.b:5700", "longer than 63 characters"),
        ("a..b:5700", "parts are empty"),
    ],
)
def test_what_cannot_be_looked_up_says_why(address, reason):
    with pytest.raises(ConnectionLost, match=reason):
        Tcp().connect(address, 1.0)
    with pytest.raises(RunError, match=reason):
        Tcp().listen(address)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "the name is unknown .* /etc/hosts",
        ),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "is the network up"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "in the same network"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "is it switched on"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Is llrun running there"),
        (TimeoutError("timed out"), "switched off or asleep, or a firewall drops"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "a firewall drops"),
        (OSError(errno.EPERM, "Operation not permitted"), "a firewall on this machine"),
        (OSError(errno.ENOBUFS, "No buffer space available"), "no buffer space available"),
    ],
)
def test_each_cause_has_its_remedy(error, reason):
    said = why_not_reached(error)
    assert re.search(reason, said)
    assert ("llrun running" in said) == isinstance(error, ConnectionRefusedError)


def test_a_port_in_use_is_not_called_a_wrong_address():
    listener = Tcp().listen("127.0.0.1:0")
    with pytest.raises(RunError, match="in use: another llrun, or another program, listens there") as caught:
        Tcp().listen(listener.address)
    assert caught.value.code == "R303"
    assert caught.value.exit_code == 2
    listener.close()


def test_an_address_that_is_not_this_machines():
    with pytest.raises(
        RunError, match=r"cannot listen on 203\.0\.113\.1:80: .*one of its own with --listen"
    ) as caught:
        Tcp().listen("203.0.113.1:80")
    assert caught.value.exit_code == 2


def test_a_port_of_roots():
    error = why_not_listening("10.0.0.1:80", PermissionError(errno.EACCES, "Permission denied"))
    assert "ports below 1024" in error.message
