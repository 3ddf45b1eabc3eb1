"""The one error type of the runtime: a code, what is wrong where, and the remedy."""

from __future__ import annotations

USAGE, INTERNAL = 2, 1
LOST = "R301"


def printable(text: str) -> str:
    """`text` with what would steer a terminal escaped: it may hold names out of a file or a message."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class RunError(Exception):
    """A failure that ends a request or the program; the command line prints it as `error[CODE]: message`.

    Codes: R1xx use and input, R2xx bundle and library, R3xx devices and links, R4xx protocol, R5xx execution.
    `exit_code`: 2 for wrong use or input, 1 for anything else. `device`: the one that was lost.
    """

    def __init__(self, code: str, message: str, exit_code: int = USAGE, device: str | None = None) -> None:
        message = printable(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code
        self.device = device

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.message}"


def lost(device: str, reason: str) -> RunError:
    """The request cannot go on because `device` is gone."""
    return RunError(LOST, f"device {device} was lost: {reason}", INTERNAL, device)
