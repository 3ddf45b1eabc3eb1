"""Compiled libraries, kept for the next build: what is compiled again and again is compiled once.

A library is found by all that its bytes follow from: the templates, formats, shapes and the processor, this compiler's
own text, and the versions of TVM and the linker. The folder is $LLC_CACHE, or llcompile/libraries in the user's cache
folder; LLC_CACHE=off keeps nothing. The newest LIMIT_BYTES stay.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import llcompile.ir
import llrun.schema
from llcompile.ir.cluster import Processor
from llcompile.ir.graph import Template
from llrun.schema import Precision, Shapes

LIMIT_BYTES = 1 << 30
_PACKAGES = "apache-tvm", "ziglang"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def key_of(templates: Sequence[Template], precision: Precision, shapes: Shapes, processor: Processor) -> str:
    """The name under which a library of these is kept."""
    digest = hashlib.sha256(_compiler().encode())
    for part in (precision, shapes, processor, len(templates), *templates):
        text = repr(part).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def stored(key: str, out: Path, make: Callable[[Path], None]) -> bool:
    """Bring the library of `key` to `out`: the one that is kept, else what `make` writes there, which is kept then.

    Whether it was there. A file that is not what was kept is made anew; a folder that cannot be used is done without.
    """
    folder = _folder()
    found = next(iter(sorted(folder.glob(f"{key}-*.so"))), None) if folder else None
    if found is not None and _brought(found, out):
        return True
    make(out)
    if folder is not None:
        _keep(folder, key, out)
    return False


def _folder() -> Path | None:
    """Where libraries are kept, None for nowhere: only a folder of this user's that nobody else can write to."""
    place = os.environ.get("LLC_CACHE")
    if place == "off":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(place) if place else home / "llcompile" / "libraries"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return None
    safe = state.st_uid == os.geteuid() and not state.st_mode & _OTHERS
    return folder if safe else None


def _brought(found: Path, out: Path) -> bool:
    """Copy what is kept, if its digest is that of its name."""
    try:
        shutil.copyfile(found, out)
        os.utime(found)
    except OSError:
        return False
    if found.stem.endswith(_digest(out)):
        return True
    found.unlink(missing_ok=True)
    return False


def _keep(folder: Path, key: str, made: Path) -> None:
    """Keep a library; what has not been used for the longest makes room."""
    partial = folder / f".{key}.{os.getpid()}"
    try:
        shutil.copyfile(made, partial)
        partial.replace(folder / f"{key}-{_digest(made)}.so")
        files = sorted(
            ((path.stat(), path) for path in folder.glob("*.so")), key=lambda each: -each[0].st_mtime
        )
        total = 0
        for state, path in files:
            total += state.st_size
            if total > LIMIT_BYTES:
                path.unlink(missing_ok=True)
    except OSError:
        partial.unlink(
            missing_ok=True
        )  # a full disk, or another build at the same: the library itself is there


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _compiler() -> str:
    """What compiles, as a digest: the text of this stage and of the types it reads, and the packages' versions."""
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in _PACKAGES).encode())
    for folder in (Path(__file__).parent, *map(Path, (*llcompile.ir.__path__, *llrun.schema.__path__))):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
