"""What goes wrong between a device and its cloud."""

from __future__ import annotations

from edgekit.errors import EdgekitError


class CloudError(EdgekitError):
    """The cloud did not answer as it should.

    Args:
        message: What happened.
        said: What the endpoint says of it. It may quote the prompt: for the client, not the log.
        retry_after_s: Seconds that the endpoint asks to be let alone; None if it said nothing.
    """

    def __init__(self, message: str, said: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.said = said
        self.retry_after_s = retry_after_s

    @property
    def told(self) -> str:
        """What the client is told."""
        return f"{self.message}: {self.said}" if self.said else self.message


class CloudUnreachableError(CloudError):
    """No connection came about: the link is to blame rather than the endpoint."""


class CloudRefusedError(CloudError):
    """The endpoint is well and refuses this very request.

    Args:
        message: What happened.
        said: See the base.
        status: Its HTTP status, 400, 413 or 422.
    """

    def __init__(self, message: str, said: str, status: int) -> None:
        super().__init__(message, said)
        self.status = status


class BudgetSpentError(CloudError):
    """The day's bytes are used up."""


class CloudBusyError(CloudError):
    """All connections to the endpoint are in use."""


class CloudLateError(CloudError):
    """The request's own deadline passed, however short it was: nothing is known of the endpoint."""
