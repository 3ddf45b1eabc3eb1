"""Where a bundle goes: written beside its place and renamed, so that a partial one is never seen."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llcompile.ir.errors import INTERNAL, USAGE, CompileError

MANIFEST = "manifest.json"


def check_destination(out: Path) -> None:
    """Raise CompileError B101 unless `out` is free, an empty folder, or a bundle to replace."""
    bundle = _resolve(out)
    try:
        if not os.path.lexists(bundle):
            parent = next(p for p in bundle.parents if p.exists())
            if not parent.is_dir():
                raise CompileError("B101", f"cannot write {out}: {parent} is not a folder")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise CompileError("B101", f"cannot write {out}: no permission to write in {parent}")
        elif not bundle.is_dir():
            raise CompileError("B101", f"{out} is a file: choose another place with -o")
        elif any(bundle.iterdir()) and not (bundle / MANIFEST).is_file():
            raise CompileError(
                "B101",
                f"{out} is a folder that holds something else than a bundle (it has no {MANIFEST}), and is "
                "left as it is: choose another place with -o",
            )
    except OSError as error:
        raise write_error(out, error) from error


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`: takes its place when the body ends well, else is removed.

    Left-overs of builds that were killed are removed first. A folder in the making is locked by the process
    that makes it, so those of other running builds are left alone. Raises CompileError B101, B102.
    """
    check_destination(out)
    bundle = _resolve(out)
    try:
        made = _make_parents(bundle.parent)
        try:
            _recover(bundle)
            with _locked_folder(bundle) as folder:
                yield folder
                check_destination(out)
                _swap(folder, bundle)
        except BaseException:
            _remove_parents(made)
            raise
    except OSError as error:
        raise write_error(out, error) from error


def write_error(path: Path, error: OSError) -> CompileError:
    wrong_use = isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError)
    remedy = (
        "choose another place with -o" if wrong_use else "free some space, or choose another place with -o"
    )
    code = USAGE if wrong_use else INTERNAL
    inside = error.filename and not os.path.isabs(error.filename)
    what = f"{path}, its {error.filename}" if inside else str(path)
    return CompileError("B102", f"cannot write {what}: {error.strerror}; {remedy}", code)


def _resolve(out: Path) -> Path:
    return Path(os.path.realpath(out))


def _make_parents(parent: Path) -> list[Path]:
    """Create `parent`; returns what was created, innermost first."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_parents(made: list[Path]) -> None:
    with suppress(OSError):
        for folder in made:
            folder.rmdir()


@contextmanager
def _locked_folder(bundle: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=_prefix(bundle, "partial"), dir=bundle.parent))
    folder.chmod(0o755)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _swap(folder: Path, bundle: Path) -> None:
    """Put `folder` at `bundle`. The old bundle is kept beside it until the new one is there."""
    if not bundle.exists():
        os.rename(folder, bundle)
        return
    old = Path(tempfile.mkdtemp(prefix=_prefix(bundle, "replaced"), dir=bundle.parent))
    os.rename(bundle, old)
    try:
        os.rename(folder, bundle)
    except BaseException:
        os.rename(old, bundle)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _recover(bundle: Path) -> None:
    """Undo what a killed build left: a bundle moved aside goes back, everything else is removed."""
    beside = sorted(bundle.parent.iterdir())
    for old in (path for path in beside if path.name.startswith(_prefix(bundle, "replaced"))):
        if (old / MANIFEST).exists() and not bundle.exists():
            os.rename(old, bundle)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for partial in (path for path in beside if path.name.startswith(_prefix(bundle, "partial"))):
        if _abandoned(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _prefix(bundle: Path, kind: str) -> str:
    return f".{bundle.name}.{kind}-"
