"""llrun: the device side. Runs a bundle made by llcompile on several devices together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from llrun.version import VERSION

if TYPE_CHECKING:
    from llrun.errors import RunError as RunError
    from llrun.faces.api import Answer as Answer
    from llrun.faces.api import Session as Session
    from llrun.head.view import Event as Event
    from llrun.head.view import View as View
    from llrun.schema import StageRecord as Stage  # noqa: F401

__version__ = VERSION
# What Python programs use, and where it is: imported when it is asked for, so that a worker and --help stay light.
_HOMES = {
    "Answer": ("llrun.faces.api", "Answer"),
    "Event": ("llrun.head.view", "Event"),
    "RunError": ("llrun.errors", "RunError"),
    "Session": ("llrun.faces.api", "Session"),
    "Stage": ("llrun.schema", "StageRecord"),
    "View": ("llrun.head.view", "View"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'llrun' has no attribute {name!r}")
    module, own_name = _HOMES[name]
    return getattr(importlib.import_module(module), own_name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
