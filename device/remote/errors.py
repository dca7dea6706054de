"""Why a document from afar is not taken up: one word for the counters, a line for the log."""

from __future__ import annotations

from typing import Literal, get_args

from edgekit.errors import TrustError

Reason = Literal[
    "malformed",
    "signature",
    "tenant",
    "audience",
    "replayed",
    "early",
    "expired",
    "setting",
    "unsupported",
    "failed",
    "unreachable",
    "slow",
    "too_large",
]
Outcome = Literal["applied", "unchanged"] | Reason
"""What becomes of a document; the label of the series ``remote_documents_total``."""
OUTCOMES: tuple[Outcome, ...] = ("applied", "unchanged", *get_args(Reason))


class RefusedError(TrustError):
    """A document, or the answer that should bring some, is not taken up.

    Args:
        reason: For the counters.
        message: What is wrong.
        remedy: What to do.
    """

    def __init__(self, reason: Reason, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.reason: Reason = reason
