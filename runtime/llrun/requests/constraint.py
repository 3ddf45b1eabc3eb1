"""What a request's tokens are held to, one after another."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Which tokens may come next, of one answer. Used on the driver's thread: neither method may take long there."""

    def allowed(self) -> NDArray[np.int64]:
        """The ids that may come next, ascending, at least one. Raises RunError where it cannot be said any more."""

    def take(self, token: int) -> None:
        """It was chosen, and is part of the answer."""
