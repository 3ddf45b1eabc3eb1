"""A plan, a build and a run of a local model ask no name server, dial nobody and leave no trace of having meant to.

Every process is watched from below, native code too: network_watch.c, preloaded, refuses and writes down each lookup
and each packet for another machine, and where strace may trace, it sees what goes round the C library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from llcompile import telemetry
from tests.e2e import harness

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "python-llama"
SYSTEM_CALLS = "connect,sendto,sendmsg,sendmmsg"


@dataclass(frozen=True)
class Watched:
    """A folder in which commands run: `home`, `tmp` and the working directory are theirs alone."""

    folder: Path
    tracer: tuple[str, ...]

    def run(self, *command: str, **switches: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in telemetry.OFF}
        home = self.folder / "home"
        own = {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "TMPDIR": str(self.folder / "tmp"),
            "NETWORK_WATCH": str(self.folder / "watch.txt"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        preload = f"LD_PRELOAD={self.folder / 'watch.so'}"
        return subprocess.run(
            [*self.tracer, "env", preload, sys.executable, *command],
            cwd=self.folder / "cwd",
            env=kept | own | switches,
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )

    def noted(self, kind: str) -> list[str]:
        lines = (self.folder / "watch.txt").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{kind} ")]

    def traced(self) -> list[str]:
        """System calls with an internet address that is not loopback."""
        path = self.folder / "strace.txt"
        calls = re.findall(r".*AF_INET.*", path.read_text()) if path.exists() else []
        return [call for call in calls if not re.search(r'"(127\.|::1"|::ffff:127\.)', call)]

    def left(self) -> list[str]:
        """Files outside the bundle that look like a session's or a device's identity."""
        names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]
        return [name for name in names if re.search(r"\.ses$|deviceid|Microsoft|telemetry", name)]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    for name in ("home", "tmp", "cwd"):
        (tmp_path / name).mkdir()
    source, library = HERE / "network_watch.c", tmp_path / "watch.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    tracer = (
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-A",
        "-e",
        f"trace={SYSTEM_CALLS}",
        "-e",
        "signal=none",
        "-o",
    )
    command = (*tracer, str(tmp_path / "strace.txt"))
    may_trace = (
        shutil.which("strace") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    )
    return Watched(tmp_path, command if may_trace else ())


@pytest.mark.slow
def test_plan_build_and_run_call_nobody(watched: Watched) -> None:
    target = harness.devices_json(watched.folder / "devices.json", 2)
    model = [str(EXAMPLE), "--target", str(target), "--quant", "q8"]
    for command in (
        ["-m", "llcompile", "plan", *model, "--json"],
        ["-m", "llcompile", "build", *model, "--use-all", "-o", "bundle"],
        ["-m", "llrun", "bundle", "--local", "--prompt", "def ", "-n", "4", "--json"],
    ):
        done = watched.run(*command)
        assert done.returncode == 0, done.stderr
    assert len(watched.noted("loaded")) >= 4  # plan, build, and a process for each device
    assert watched.noted("lookup") == []
    assert watched.noted("send") == []
    assert watched.traced() == []
    assert watched.left() == []


def test_the_watch_sees_and_refuses_native_calls(watched: Watched) -> None:
    """192.0.2.1 and 2001:db8::1 are nobody's (RFC 5737, RFC 3849); nothing is sent to them either."""
    script = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
print(libc.getaddrinfo(b"telemetry.invalid", None, None, ctypes.byref(ctypes.c_void_p())) != 0)
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as one:
                one.connect((address, 9)) if kind == socket.SOCK_STREAM else one.sendto(b"x", (address, 9))
        except OSError as error:
            print(error.strerror)
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(("localhost", server.getsockname()[1])).close()
"""
    done = watched.run("-c", script)
    assert done.stdout.splitlines() == ["True", *["Network is unreachable"] * 4], done.stderr
    assert watched.noted("lookup") == ["telemetry.invalid"]
    assert watched.noted("send") == ["4 192.0.2.1", "4 192.0.2.1", "6 2001:db8::1", "6 2001:db8::1"]
    assert watched.traced() == []


def test_any_part_of_the_compiler_switches_telemetry_off() -> None:
    script = (
        "import os, sys, llcompile.ir.errors\n"
        f"assert all(os.environ[name] == '1' for name in {sorted(telemetry.OFF)!r})\n"
        "assert not {'onnxruntime', 'huggingface_hub', 'transformers', 'torch'} & sys.modules.keys()\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in telemetry.OFF}
    clean["HF_HUB_DISABLE_TELEMETRY"] = "0"
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
