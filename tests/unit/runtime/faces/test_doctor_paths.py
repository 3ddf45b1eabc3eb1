"""By which interface an address is reached is asked of the system: in namespaces with interfaces of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from namespaces import IP, ip, why_not

SCRIPT = """
import json, sys
from llrun.faces.doctor.route import way_to
from llrun.wire.addresses import peer_endpoints
ways = [way_to(peer_endpoints(address)[0]) for address in sys.argv[1:]]
print(json.dumps([way and [way.interface, way.kind] for way in ways]))
"""


@pytest.mark.root
def test_a_tunnel_is_told_from_a_cable():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    space = f"lld{os.getpid()}"
    ip("netns", "add", space)
    try:
        made = subprocess.run([str(IP), "-n", space, "tuntap", "add", "mode", "tun", "home"])
        if made.returncode:
            pytest.skip("no tun interface can be made here")
        ip("-n", space, "link", "add", "net", "type", "veth", "peer", "name", "other")
        for name, address in (("home", "10.88.0.1/24"), ("net", "10.77.0.1/24"), ("other", "fd00::1/64")):
            ip("-n", space, "addr", "add", address, "dev", name)
            ip("-n", space, "link", "set", name, "up")
        ip("-n", space, "route", "add", "10.99.0.0/16", "via", "10.88.0.9")
        addresses = ["10.77.0.2:1", "10.88.0.2:1", "10.99.3.4:1", "[fd00::2]:1", "203.0.113.1:1"]
        command = [str(IP), "netns", "exec", space, sys.executable, "-c", SCRIPT, *addresses]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        ip("netns", "del", space)
    wired, tunnel = "a wired network", "a VPN or tunnel"
    assert json.loads(done.stdout) == [
        ["net", wired],
        ["home", tunnel],
        ["home", tunnel],
        ["other", wired],
        None,
    ]
