"""The one error type that users see: a code, what is wrong where, and the remedy."""

from __future__ import annotations

USAGE, INFEASIBLE, INTERNAL = 2, 3, 1


class CompileError(Exception):
    """A failure that the user can act on; the command line prints it as `error[CODE]: message` and exits.

    Codes: E1xx the command line and passes, F1xx frontend, G1xx graph, C1xx devices and targets, P2xx plan,
    L1xx lowering, Q1xx weights, B1xx bundle.
    """

    def __init__(self, code: str, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.message}"
