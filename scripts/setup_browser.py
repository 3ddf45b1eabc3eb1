"""Install chromium, which the tests of the web page use: as root on Debian, by its own apt.

Best effort: where it cannot be had, the reason is told with its remedy, the tests skip, and the set-up does not fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-dejavu-core")
REMEDY = "apt-get install chromium"


def main() -> int:
    if any(map(shutil.which, NAMES)):
        return 0
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        say(f"warning: no chromium for the tests of the web page, which skip ({REMEDY}, as root)")
        return 0
    start = time.monotonic()
    say("installing chromium for the tests of the web page (120 MB)")
    install = ("install", "--no-install-recommends", *PACKAGES)
    reason = apt_get(*install)
    if reason:  # package lists that are old, or not there
        reason = apt_get("update") or apt_get(*install)
    if reason:
        say(f"warning: chromium: {reason}; the tests of the web page skip")
    else:
        say(f"chromium: ready ({time.monotonic() - start:.0f} s)")
    return 0


def apt_get(*arguments: str) -> str | None:
    """Why it failed; None when it did not."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", "-qq", "--yes", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return None
    lines = (result.stderr or result.stdout).strip().splitlines() or ["no output"]
    return f"apt-get {arguments[0]} failed: {lines[-1]}"


def say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
