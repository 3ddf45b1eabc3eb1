"""Machines of a network that can be cut: network namespaces, each with one interface, on a bridge in another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
IP = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def why_not() -> str | None:
    """Why no namespaces can be made here, None where they can."""
    if IP is None:
        return "ip of iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"llp{os.getpid()}"
    made = subprocess.run([IP, "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run([IP, "netns", "del", probe], check=True)
    return None


def ip(*words: str) -> None:
    subprocess.run([str(IP), *words], check=True, capture_output=True)


class Network:
    """`names`: machines, which have the addresses 10.77.0.1 and fe80::1%net, and so on, in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._prefix = f"ll{os.getpid()}"
        self._names = list(names)
        self._running: list[subprocess.Popen[str]] = []
        self.addresses = {name: f"10.77.0.{i}" for i, name in enumerate(names, 1)}

    def __enter__(self) -> Network:
        ip("netns", "add", self._space("middle"))
        ip("-n", self._space("middle"), "link", "add", "bridge", "type", "bridge")
        self.join()
        for i, name in enumerate(self._names):
            space, port = self._space(name), f"port{i}"
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "add", "net", "type", "veth", "peer", "name", port, "netns",
               self._space("middle"))  # fmt: skip
            ip("-n", self._space("middle"), "link", "set", port, "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "net")
            ip("-n", space, "addr", "add", f"fe80::{i + 1}/64", "dev", "net", "nodad")
            ip("-n", space, "link", "set", "net", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.communicate()
        for name in (*self._names, "middle"):
            subprocess.run([str(IP), "netns", "del", self._space(name)], capture_output=True)

    def cut(self) -> None:
        """From now on nothing passes, and no interface notices."""
        ip("-n", self._space("middle"), "link", "set", "bridge", "down")

    def join(self) -> None:
        ip("-n", self._space("middle"), "link", "set", "bridge", "up")

    def start(self, name: str, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Run a script of this folder on the machine `name`."""
        process = subprocess.Popen(
            [str(IP), "netns", "exec", self._space(name), sys.executable, str(HERE / script), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._running.append(process)
        return process

    def _space(self, name: str) -> str:
        return f"{self._prefix}{name}"
