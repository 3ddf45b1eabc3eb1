"""The lines of deploy/README.md, run as they stand: ssh and scp reach a folder of this machine instead of a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.bundle.small_bundle import build

RUNTIME = Path(__file__).parents[2] / "runtime"
# A device is a home folder; what ssh would run there runs here. `sudo` is for packages, which this machine has.
SSH = '#!/bin/sh\n[ "$1" = -t ] && shift\nshift\ncd "$DEVICE" && HOME=$DEVICE exec sh -c "$*"\n'
SUDO = '#!/bin/sh\necho "$@" >> "$DEVICE/sudo.log"\n'
SCP = """#!/bin/sh
set -e
for last; do :; done
set -- $(printf '%s\\n' "$@" | sed '$d')
cp $* "$DEVICE/${last#*:}"
"""


def lines(readme: str, first: str) -> list[str]:
    """The commands of the README's first block of lines that begins with `first`."""
    blocks = [block for block in readme.split("\n\n") if block.startswith(f"    {first}")]
    return [line.strip() for line in blocks[0].splitlines()]


@pytest.mark.slow  # pip makes a venv and fetches the runtime's four packages
def test_the_lines_put_a_worker_on_a_fresh_device_and_start_it(tmp_path: Path) -> None:
    bundle, device, tools = build(tmp_path / "bundle"), tmp_path / "device", tmp_path / "bin"
    device.mkdir()
    tools.mkdir()
    for name, text in (("ssh", SSH), ("scp", SCP), ("sudo", SUDO)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    readme = (bundle / "deploy/README.md").read_text()
    path = f"{tools}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LLRUN")}
    environment = {**kept, "PATH": path, "DEVICE": str(device), "RUNTIME": str(RUNTIME)}

    def run(line: str) -> str:
        result = subprocess.run(
            ["sh", "-c", line], cwd=bundle, env=environment, capture_output=True, text=True, timeout=240, check=False
        )  # fmt: skip
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        return result.stdout

    for line in lines(readme, "ssh -t 127.0.0.1 'sudo"):
        run(line)
    assert "python3-venv" in (device / "sudo.log").read_text()
    (start,) = lines(readme, "ssh -t 127.0.0.1 'sh llrun/run-pi.sh")
    assert run(start.replace("llrun/pi'", "llrun/pi --version'")).startswith("llrun ")
    assert (device / "llrun/pi/slice.json").read_bytes() == (bundle / "devices/pi/slice.json").read_bytes()


def test_the_units_lines_put_what_the_unit_starts_where_it_looks_for_it(tmp_path: Path) -> None:
    bundle = build(tmp_path / "bundle")
    (start,) = (
        line.removeprefix("ExecStart=").split()
        for line in (bundle / "deploy/llrun-pi.service").read_text().splitlines()
        if line.startswith("ExecStart=")
    )
    done = lines((bundle / "deploy/README.md").read_text(), "sudo mkdir -p /opt/llrun")
    assert start == ["/opt/llrun/venv/bin/llrun", "/opt/llrun/pi"]
    assert "sudo python3 -m venv /opt/llrun/venv" in done
    assert "sudo cp -r ~/llrun/pi /opt/llrun/" in done
    assert done[-1] == "sudo systemctl enable --now llrun-pi"
