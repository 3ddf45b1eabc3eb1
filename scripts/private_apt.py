"""Debian packages unpacked into a folder by an apt of our own: no root, and nothing of the machine changes.

The machine's apt sources and keys are read; package lists, cache and status are private to `state`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """Something this machine or its network cannot give; the message says what, and the remedy."""


@dataclass(frozen=True)
class PrivateApt:
    """apt-get for `architecture` with everything it writes under `state`."""

    state: Path
    architecture: str

    def unpack(self, packages: tuple[str, ...], root: Path) -> None:
        """Unpack `packages` and what they depend on under `root`; no maintainer script runs."""
        require_bookworm()
        self._prepare()
        self._run("update")
        self._run("install", "--download-only", "--no-install-recommends", *packages)
        archives = sorted((self.state / "archives").glob("*.deb"))
        if not archives:
            raise Unavailable(f"apt-get downloaded nothing for {' '.join(packages)}")
        root.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            subprocess.run(["dpkg-deb", "--extract", str(archive), str(root)], check=True)

    def _prepare(self) -> None:
        for folder in ("lists/partial", "archives/partial"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        (self.state / "status").touch()
        settings = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
            "Dir::State": self.state,
            "Dir::State::Lists": self.state / "lists",
            "Dir::State::status": self.state / "status",
            "Dir::Cache": self.state,
            "Dir::Cache::archives": self.state / "archives",
        }
        text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        (self.state / "apt.conf").write_text(text)

    def _run(self, *arguments: str) -> None:
        command = ["apt-get", "-qq", "--yes", *arguments]
        environment = {**os.environ, "APT_CONFIG": str(self.state / "apt.conf"), "LC_ALL": "C"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = (result.stderr or result.stdout).strip().splitlines() or ["no output"]
            raise Unavailable(f"apt-get {arguments[0]} failed: {lines[-1]}")


def require_bookworm() -> None:
    """Raise Unavailable unless this is Debian 12, whose packages fit CPython 3.11."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable("apt-get and dpkg-deb are needed, which only Debian has")
    release = Path("/etc/os-release")
    if not release.exists() or "VERSION_CODENAME=bookworm" not in release.read_text():
        raise Unavailable("Debian 12 (bookworm) is needed: other releases have another Python")
