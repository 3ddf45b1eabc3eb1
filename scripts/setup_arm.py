"""Fetch what 64-bit Arm devices need: TVM's runtime library for bundles, and a small arm64 Debian for tests.

Best effort: a failure is reported with its remedy and never fails the set-up. The first part, the runtime
library, is needed to build bundles for Arm devices. The second, a folder with an arm64 Python and an
emulator, is needed only by the tests marked `qemu`.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from private_apt import PrivateApt, Unavailable

REPOSITORY = Path(__file__).resolve().parent.parent
ARM = REPOSITORY / ".arm"
LIBRARY = Path(sys.prefix) / "share/llcompile/aarch64-linux-gnu/libtvm_runtime.so"
GLIBC_TAGS = ("manylinux_2_28_aarch64", "manylinux_2_24_aarch64", "manylinux_2_17_aarch64")
SITE_WHEELS = ("apache-tvm-ffi", "click", "msgspec", "typing_extensions")
DEBIAN_PACKAGES = ("python3-minimal", "python3-numpy", "libpython3-stdlib", "libgomp1", "libstdc++6")
SMOKE = (
    "import ctypes, ssl, sys, numpy, msgspec, click, tvm_ffi; "
    "ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL); "
    "assert numpy.ones((2, 2)).dot(numpy.ones(2)).tolist() == [2, 2]"
)


def main() -> int:
    for what, make in (("Arm runtime library", runtime_library), ("Arm test system", test_system)):
        start = time.monotonic()
        try:
            fresh = make()
        except (Unavailable, OSError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
            say(f"warning: {what}: {error}")
            continue
        if fresh:
            say(f"{what}: ready ({time.monotonic() - start:.0f} s)")
    return 0


def runtime_library() -> bool:
    """Put TVM's aarch64 runtime library where the bundle writer looks for it. False if it was there."""
    stamp = LIBRARY.with_suffix(".stamp")
    pin = pinned("apache-tvm")
    if LIBRARY.exists() and stamp.exists() and stamp.read_text() == pin:
        return False
    say(f"Arm runtime library: fetching {pin} for aarch64 (95 MB)")
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LIBRARY.parent) as scratch:
        wheel = download_wheel(pin, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            member = next((n for n in archive.namelist() if n.endswith("/libtvm_runtime.so")), None)
            if member is None:
                raise Unavailable(f"{wheel.name} holds no libtvm_runtime.so")
            extracted = Path(archive.extract(member, scratch))
        extracted.chmod(0o644)
        extracted.replace(LIBRARY)
    stamp.write_text(pin)
    return True


def test_system() -> bool:
    """Make `.arm/root`, an arm64 Python, and find or fetch an emulator. False if they were there."""
    stamp, reason, root = ARM / "stamp", ARM / "unavailable", ARM / "root"
    wanted = fingerprint()
    if root.exists() and stamp.exists() and stamp.read_text() == wanted:
        return False
    say("Arm test system: fetching an arm64 Python for the tests under qemu (60 MB)")
    ARM.mkdir(exist_ok=True)
    try:
        build_test_system(root)
    except (Unavailable, OSError, subprocess.CalledProcessError) as error:
        reason.write_text(f"{error}\n")
        raise
    reason.unlink(missing_ok=True)
    stamp.write_text(wanted)
    return True


def build_test_system(root: Path) -> None:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise Unavailable(f"only made on x86-64 Linux, this is {platform.machine()} {sys.platform}")
    if not LIBRARY.exists():
        raise Unavailable("the Arm runtime library is missing; run `make setup` again with PyPI in reach")
    partial = ARM / "root.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=ARM) as scratch:
        PrivateApt(Path(scratch) / "arm64", "arm64").unpack(DEBIAN_PACKAGES, partial)
        link_linear_algebra(partial)
        site = partial / "opt/site"
        for name in SITE_WHEELS:
            with zipfile.ZipFile(download_wheel(pinned(name), Path(scratch))) as archive:
                archive.extractall(site)
        if shutil.which("qemu-aarch64") is None:
            fetch_emulator(Path(scratch))
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)
    smoke_test()


def link_linear_algebra(root: Path) -> None:
    """numpy's libraries, which Debian links in a maintainer script that cannot run here."""
    libraries = root / "usr/lib/aarch64-linux-gnu"
    for name in ("blas", "lapack"):
        (libraries / f"lib{name}.so.3").symlink_to(f"{name}/lib{name}.so.3")


def fetch_emulator(scratch: Path) -> None:
    PrivateApt(scratch / "amd64", "amd64").unpack(("qemu-user-static",), scratch / "qemu")
    (ARM / "bin").mkdir(exist_ok=True)
    shutil.copy2(scratch / "qemu/usr/bin/qemu-aarch64-static", ARM / "bin/qemu-aarch64")


def smoke_test() -> None:
    command = [str(REPOSITORY / "scripts/arm-python"), "-c", SMOKE, str(LIBRARY)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit {result.returncode}"])[-1]
        raise Unavailable(f"the arm64 Python does not run under qemu: {last}")


def download_wheel(requirement: str, folder: Path) -> Path:
    """The aarch64 (or pure) CPython 3.11 wheel of `requirement`, by pip and its configuration."""
    tags = [f"--platform={tag}" for tag in GLIBC_TAGS]
    before = set(folder.glob("*.whl"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--retries=1",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += [*tags, "--python-version=3.11", "--implementation=cp", f"--dest={folder}", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    new = sorted(set(folder.glob("*.whl")) - before)
    if result.returncode or len(new) != 1:
        last = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise Unavailable(f"pip could not download {requirement} for aarch64 ({last}); repeat `make setup`")
    return new[0]


def pinned(name: str) -> str:
    """`name==version` as constraints.txt has it."""
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line.lower().replace("_", "-").startswith(name.lower().replace("_", "-") + "=="):
            return line.strip()
    raise Unavailable(f"constraints.txt does not pin {name}")


def fingerprint() -> str:
    """What the test system was made from: it is made again when that changes."""
    scripts = [Path(__file__), Path(__file__).with_name("private_apt.py")]
    parts = [path.read_text() for path in scripts] + [pinned(name) for name in SITE_WHEELS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
