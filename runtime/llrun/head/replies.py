"""What comes to the head's driver: logits, messages of workers, and what happens to connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llrun.errors import RunError
from llrun.wire.messages import AnyMessage
from llrun.wire.transport import Connection


class Logits(NamedTuple):
    """Logits (rows, vocabulary) of a sequence's step that began at `position`."""

    sequence: int
    position: int
    rows: NDArray[np.float32]


@dataclass(frozen=True)
class Said:
    """A message of a device, the head's own engine among them. `connection`: over which; None from here."""

    device: str
    message: AnyMessage
    connection: Connection | None = None


@dataclass(frozen=True)
class Gone:
    """The control connection to a device has ended, or it said that it cannot go on. `code`: of the error."""

    device: str
    connection: Connection
    reason: str
    code: str


@dataclass(frozen=True)
class Silent:
    """Nothing is heard of a device, which may be frozen or behind a network that is gone for a while."""

    device: str
    reason: str


@dataclass(frozen=True)
class Back:
    """A device that was silent is heard again."""

    device: str


@dataclass(frozen=True)
class Came:
    """A device that was not there listens, and has taken this control connection."""

    device: str
    connection: Connection


@dataclass(frozen=True)
class Refused:
    """A device that is waited for refuses for good."""

    device: str
    error: RunError


@dataclass(frozen=True)
class Unlinked:
    """The data connection between the head and a device is gone."""

    device: str
    reason: str


# The logits of one pass come together; [] wakes. RunError: the head's own engine cannot go on.
Reply = list[Logits] | Said | Gone | Silent | Back | Came | Refused | Unlinked | RunError
