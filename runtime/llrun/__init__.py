"""llrun: the device side. Runs a bundle made by llcompile on several devices together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llrun.errors import RunError as RunError
    from llrun.faces.api import Answer as Answer
    from llrun.faces.api import Session as Session

__version__ = "0.1.0"
# What Python programs use, and where it is: imported when it is asked for, so that a worker and --help stay light.
_HOMES = {"Answer": "llrun.faces.api", "RunError": "llrun.errors", "Session": "llrun.faces.api"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'llrun' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
