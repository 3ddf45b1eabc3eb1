"""Several machines emulated on this one: namespaces, links with a rate and a delay, quotas of processor time.

Needs root, iproute2, a C compiler where links have a delay, and cgroup v1's processor controller for quotas. A
quota's period is 10 ms: with the kernel's usual 100 ms a device would stall for tens of milliseconds at a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from shared.bundles import CACHE

_SYSTEM = "/usr/sbin:/sbin"
IP = shutil.which("ip") or shutil.which("ip", path=_SYSTEM)
TC = shutil.which("tc") or shutil.which("tc", path=_SYSTEM)
_CPU = Path("/sys/fs/cgroup/cpu")
_PERIOD_US, _LEAST_US = 10_000, 1_000
_MTU_BYTES, _LARGE_MTU_BYTES = 1500, 16000
_ROOM_BYTES = 16384  # of a relay for these
_SUBNET = "10.77.0"
_PORT = 5700


@dataclass(frozen=True)
class Link:
    """From every machine to the switch, and back: two machines are twice `latency_s` apart. 0: no limit, no delay.
    `large`: of frames ten times as large as usual, so that the delay of many is a delay and no work of the relay."""

    bytes_per_s: float = 0.0
    latency_s: float = 0.0
    large: bool = False

    @property
    def words(self) -> tuple[str, str]:
        """Nanoseconds of its delay and of a byte, as the relay's command line has them."""
        return str(round(self.latency_s * 1e9)), str(1e9 / self.bytes_per_s if self.bytes_per_s else 0.0)


def why_not(delayed: bool = False, quotas: bool = False) -> str | None:
    """Why machines cannot be emulated here, None where they can."""
    if IP is None or TC is None:
        return "ip and tc of iproute2 are not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"llm{os.getpid()}"
    made = subprocess.run([IP, "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run([IP, "netns", "del", probe], check=True)
    if delayed and not (Path("/dev/net/tun").exists() and shutil.which(_compiler())):
        return "a link with a delay needs /dev/net/tun and a C compiler"
    if quotas and not (_CPU / "cpu.cfs_quota_us").parent.joinpath("cgroup.procs").exists():
        return f"a quota of processor time needs cgroup v1's controller at {_CPU}"
    return None


def _compiler() -> str:
    return os.environ.get("CC", "cc")


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def _ip(*words: str) -> None:
    _run(str(IP), *words)


class Machines:
    """`names`: machines, at 10.77.0.1 and so on, port 5700. `others`: links that are not like `link`, which has a
    delay then. Use as a context manager; end what runs on them before."""

    def __init__(self, names: Sequence[str], link: Link, others: Mapping[str, Link] | None = None) -> None:
        self._prefix = f"llb{os.getpid()}"
        self._names = list(names)
        self._link = link
        self._others = dict(others or {})
        self._relay: subprocess.Popen[str] | None = None

    def address(self, name: str) -> str:
        return f"{_SUBNET}.{self._names.index(name) + 1}:{_PORT}"

    def command(self, name: str, words: Sequence[str]) -> list[str]:
        """`words`, to be run on the machine `name`. The process keeps its id."""
        inside = [str(IP), "netns", "exec", self._space(name), *words]
        if not self._group(name).exists():
            return inside
        return ["sh", "-c", f'echo $$ > {self._group(name)}/cgroup.procs && exec "$@"', "sh", *inside]

    def quota(self, name: str, cores: float | None) -> None:
        """From now on all processes of `name` have so many cores together; None: as many as there are."""
        quota_us = -1 if cores is None else max(_LEAST_US, round(cores * _PERIOD_US))
        (self._group(name) / "cpu.cfs_quota_us").write_text(str(quota_us))

    def cut(self, name: str) -> None:
        """From now on nothing passes to or from `name`."""
        _ip("-n", self._space("switch"), "link", "set", self._port(name), "down")

    def join(self, name: str) -> None:
        _ip("-n", self._space("switch"), "link", "set", self._port(name), "up")

    def __enter__(self) -> Machines:
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relay:
            self._relay.kill()
            self._relay.communicate()
        for name in (*self._names, "switch"):
            subprocess.run([str(IP), "netns", "del", self._space(name)], capture_output=True)
        for name in self._names:
            until = time.monotonic() + 5
            while self._group(name).exists() and time.monotonic() < until:
                try:
                    self._group(name).rmdir()
                except OSError:
                    time.sleep(0.05)  # a process that was killed is not gone yet

    def _make(self) -> None:
        spaces = [self._space(name) for name in (*self._names, "switch")]
        for space in spaces:
            _ip("netns", "add", space)
            quiet = "for one in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $one; done"
            _ip("netns", "exec", space, "sh", "-c", quiet)
        _ip("-n", self._space("switch"), "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._space("switch"), "link", "set", "bridge", "up")
        if self._link.latency_s:
            self._start_relay()
        for name in self._names:
            self._plug_in(name)
            if (_CPU / "cgroup.procs").exists():
                self._group(name).mkdir()
                (self._group(name) / "cpu.cfs_period_us").write_text(str(_PERIOD_US))

    def _plug_in(self, name: str) -> None:
        space, switch, port = self._space(name), self._space("switch"), self._port(name)
        if not self._link.latency_s:
            _ip("-n", space, "link", "add", "net", "type", "veth", "peer", "name", port, "netns", switch)
            for where, end in ((space, "net"), (switch, port)) if self._link.bytes_per_s else ():
                rate = f"{round(self._link.bytes_per_s * 8)}bit"
                burst = str(round(max(self._link.bytes_per_s * 2e-4, 2 * _MTU_BYTES + 200)))
                _run(str(TC), "-n", where, "qdisc", "add", "dev", end, "root", "tbf", "rate", rate, "burst", burst,
                     "latency", "100ms")  # fmt: skip
        for where, end in ((space, "net"), (switch, port)) if self._link.large else ():
            _ip("-n", where, "link", "set", end, "mtu", str(_LARGE_MTU_BYTES))
        _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{self.address(name).partition(':')[0]}/24", "dev", "net")
        _ip("-n", space, "link", "set", "net", "up")

    def _start_relay(self) -> None:
        name, room = (
            ("frame_relay_large", [f"-DFRAME={_ROOM_BYTES}"]) if self._link.large else ("frame_relay", [])
        )
        source, program = Path(__file__).with_name("frame_relay.c"), CACHE / name
        if not program.is_file() or program.stat().st_mtime < source.stat().st_mtime:
            CACHE.mkdir(parents=True, exist_ok=True)
            _run(_compiler(), "-O2", *room, str(source), "-o", str(program))
        spaces = [
            ",".join([self._space(name), *(self._others[name].words if name in self._others else ())])
            for name in self._names
        ]
        words = [str(program), *self._link.words, self._space("switch"), *spaces]
        self._relay = subprocess.Popen(["nice", "-n", "-10", *words], stdout=subprocess.PIPE, text=True)
        assert self._relay.stdout
        if self._relay.stdout.readline() != "ready\n":
            raise RuntimeError("the relay of frames did not start")

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _port(self, name: str) -> str:
        return f"port{self._names.index(name)}"

    def _group(self, name: str) -> Path:
        return _CPU / self._space(name)
