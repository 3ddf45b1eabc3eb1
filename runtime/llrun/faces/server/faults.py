"""What a client is told when its request fails: OpenAI's error object, and the status that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

from llrun.errors import RunError

INVALID, UNAUTHORISED, OVERLOADED, BROKEN = (
    "invalid_request_error",
    "authentication_error",
    "overloaded_error",
    "server_error",
)
TOO_LONG, QUEUE_FULL, STOPPED = "R105", "R402", "R403"
RETRY_S = 1


@dataclass
class ApiError(Exception):
    """A request's own end. `param`: the field that it is about; `code`: a word for programs."""

    status: int
    message: str
    kind: str = INVALID
    param: str | None = None
    code: str | None = None

    @property
    def body(self) -> dict[str, object]:
        """The object that OpenAI's clients read."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_S)} if self.status == 503 else {}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, INVALID, param, code)


def not_supported(param: str, what: str) -> ApiError:
    """A field that means something, which is not done here."""
    return invalid(f"{param} is not supported: {what}", param, "unsupported_parameter")


def of_run_error(error: RunError) -> ApiError:
    """A RunError as a client is told of it."""
    if error.code == TOO_LONG:
        return invalid(error.message, None, "context_length_exceeded")
    if error.code == QUEUE_FULL:
        return ApiError(503, error.message, OVERLOADED, None, "queue_full")
    if error.code == STOPPED:
        return ApiError(503, error.message, OVERLOADED, None, "stopped")
    if error.code.startswith("R1"):
        return invalid(error.message, None, error.code)
    return ApiError(500, error.message, BROKEN, None, error.code)
