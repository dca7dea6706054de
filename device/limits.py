"""Limits that stand unless others are asked for; here so that reading them loads nothing."""

from __future__ import annotations

from typing import Final

QUEUE_LIMIT: Final = 64
"""Requests that may wait for a slot."""
BODY_LIMIT_BYTES: Final = 4 << 20
"""Largest body of a request."""
