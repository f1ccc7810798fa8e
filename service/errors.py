"""The one tree of errors that a request can end in, and its one mapping to HTTP.

Each message states a fact, then the remedy; none carries internals. Whatever is not in this tree is a bug:
the data plane logs it with its traceback and answers `INTERNAL_MESSAGE`.
"""

from __future__ import annotations

import math
from typing import ClassVar

from service.asgi import Headers

INTERNAL_MESSAGE = "internal error. The server's log has the details under this request's id."


class ServiceError(Exception):
    """A request that cannot be answered as asked.

    Attributes:
        status: The HTTP status.
        outcome: The value of the metrics' label `outcome`.
        reason: The value of the label `reason` of `mipgate_rejected_total`, or None when it is not counted.
        retry_after_s: Seconds after which trying again makes sense, or None.
    """

    status: ClassVar[int] = 500
    outcome: ClassVar[str] = "failed"
    reason: str | None = None
    retry_after_s: float | None = None

    def headers(self) -> Headers:
        """Response headers that go with the error."""
        if self.retry_after_s is None:
            return []
        return [(b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode())]


class ClientError(ServiceError):
    """The request is at fault."""

    status = 400
    outcome = "client_error"


class BadRequestError(ClientError):
    """Malformed, or a wrong name, dtype, shape, tier or parameter."""


class UnauthorizedError(ClientError):
    """No key, or none that is known; the header names the scheme (RFC 6750)."""

    status = 401

    def headers(self) -> Headers:
        """Which scheme to authenticate with."""
        return [(b"www-authenticate", b'Bearer realm="mipgate"')]


class ForbiddenError(ClientError):
    """The caller may not do this."""

    status = 403


class NotFoundError(ClientError):
    """Unknown model, variant or path; the message lists what exists."""

    status = 404


class MethodNotAllowedError(ClientError):
    """The path exists, the method does not."""

    status = 405


class ConflictError(ClientError):
    """The change cannot be made in the state that the gateway is in."""

    status = 409


class TooLargeError(ClientError):
    """The body is larger than the gateway takes."""

    status = 413


class PathTooLongError(ClientError):
    """The path is longer than the gateway takes."""

    status = 414


class MediaTypeError(ClientError):
    """The body is not of a type that the gateway reads."""

    status = 415


class UnmeetableSloError(ClientError):
    """No variant could ever meet what was asked; the message names the nearest that can."""

    status = 422


class RateLimitError(ClientError):
    """The caller's key sends more than it was given."""

    status = 429
    outcome = "rejected"
    reason = "rate_limit"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoBuilderError(ServiceError):
    """Nobody is there to build; the message says how to start a builder."""

    status = 501
    outcome = "rejected"


class UnavailableError(ServiceError):
    """Nothing can serve the request now."""

    status = 503
    outcome = "rejected"

    def __init__(self, message: str, reason: str = "capacity", retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class DeadlineError(ServiceError):
    """The request was accepted, but its deadline passed before its answer was there."""

    status = 504
    outcome = "late"


class OverrunError(DeadlineError):
    """The deadline passed while the runtime worked on it, and not while it waited for its turn.

    Attributes:
        begun: When its turn came, on the scheduler's clock.
        ran_s: How long the runtime had it by its deadline.
    """

    def __init__(self, message: str, begun: float, ran_s: float) -> None:
        super().__init__(message)
        self.begun = begun
        self.ran_s = ran_s


class InferenceError(ServiceError):
    """The runtime failed on this batch; only the requests of the batch fail."""

    status = 500


class NonFiniteError(InferenceError):
    """A candidate's answer held NaN or infinities."""


class UncomputableError(InferenceError):
    """The runtime failed on this request alone, and not on a row that is known to be good: a client's error.

    Unless another variant can answer it; then it is the variant's after all.
    """

    status = 400
    outcome = "client_error"
