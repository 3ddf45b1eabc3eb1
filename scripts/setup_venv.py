"""Make .venv with everything pinned by constraints.txt: CPU torch first, then llrun and llcompile, editable.

Runs on CPython 3.11 and its standard library alone. A second run with nothing changed does nothing.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from private_apt import PrivateApt, Unavailable

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
PYTHON = VENV / "bin/python"
STAMP = VENV / "setup.stamp"
CONSTRAINTS = REPOSITORY / "constraints.txt"
INPUTS = (CONSTRAINTS, REPOSITORY / "pyproject.toml", REPOSITORY / "runtime/pyproject.toml", Path(__file__))
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class SetupError(Exception):
    """What failed, and the remedy."""


def main() -> int:
    wanted = hashlib.sha256(b"\n".join(path.read_bytes() for path in INPUTS)).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return 0
    start = time.monotonic()
    try:
        require_python()
        make_venv()
        install_torch()
        install_packages()
    except SetupError as error:
        say(f"error: {error}")
        return 1
    STAMP.write_text(wanted)
    say(f"Python packages: ready in .venv ({time.monotonic() - start:.0f} s)")
    return 0


def require_python() -> None:
    if sys.version_info[:2] != (3, 11) or platform.python_implementation() != "CPython":
        found = f"{platform.python_implementation()} {platform.python_version()}"
        raise SetupError(f"CPython 3.11 is needed, this is {found}; run `make setup PYTHON=python3.11`")


def make_venv() -> None:
    """Make .venv if it is missing or broken, with the pinned pip and setuptools in it."""
    if not (PYTHON.exists() and works([PYTHON, "-m", "pip", "--version"])):
        say("making .venv")
        shutil.rmtree(VENV, ignore_errors=True)
        if works([sys.executable, "-c", "import ensurepip"]):
            run([sys.executable, "-m", "venv", VENV])
        else:
            make_venv_without_ensurepip()
    pip("install", pin("pip"), pin("setuptools"))


def make_venv_without_ensurepip() -> None:
    """Debian keeps pip's bootstrap in python3-venv; without it, unpack pip's wheel from the archive."""
    remedy = "`apt-get install python3-venv` makes this step unnecessary"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            PrivateApt(folder / "apt", debian_architecture()).unpack(("python3-pip-whl",), folder / "root")
        except Unavailable as error:
            raise SetupError(f"no ensurepip, and pip could not be fetched: {error}; {remedy}") from error
        wheels = sorted((folder / "root/usr/share/python-wheels").glob("pip-*.whl"))
        if not wheels:
            raise SetupError(f"python3-pip-whl holds no pip; {remedy}")
        run([sys.executable, "-m", "venv", "--without-pip", VENV])
        run([PYTHON, f"{wheels[0]}/pip", "install", "--quiet", pin("pip")])


def debian_architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def install_torch() -> None:
    """Install the CPU build, without CUDA: by pip's own configuration, else from PyTorch's CPU index."""
    wanted = pin("torch")
    say(f"installing {wanted}, CPU build (190 MB)")
    build = f"{wanted}+cpu" if (sys.platform, platform.machine()) == ("linux", "x86_64") else wanted
    command = pip_command("install", "--no-deps", build)
    if works(command) or works([*command, "--extra-index-url", TORCH_CPU_INDEX]):
        return
    raise SetupError(
        f"{build} is neither where pip's configuration looks nor at {TORCH_CPU_INDEX}. Put that address in "
        f"reach, or set PIP_FIND_LINKS to a folder that holds the wheel"
    )


def install_packages() -> None:
    say("installing everything else that constraints.txt pins (2 GB on disk)")
    runtime, compiler = f"{REPOSITORY / 'runtime'}[head]", f"{REPOSITORY}[dev]"
    pip("install", "--no-build-isolation", "--editable", runtime, "--editable", compiler)


def pip_command(action: str, *arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", action, "--quiet", "--constraint", str(CONSTRAINTS), *arguments]


def pip(action: str, *arguments: str) -> None:
    run(pip_command(action, *arguments))


def pin(name: str) -> str:
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.strip()
    raise SetupError(f"constraints.txt does not pin {name}; run `make lock` in a working .venv")


def works(command: Sequence[str | Path]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run(command: Sequence[str | Path]) -> None:
    """Run `command`, silent unless it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        raise SetupError(f"{' '.join(map(str, command))} failed (exit {result.returncode}):\n{tail}")


def say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
