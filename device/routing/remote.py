"""What may be taken away from afar of what the owner allows: everything; and nothing be added.

The settings that can let a word leave the device are those of ``[routing]``; prompts and answers
are in no log and no telemetry, so nothing of those is there to be forbidden. Whoever calls this has
checked who says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from device.routing.config import RoutingConfig
from device.routing.policy import Policy, read_policy
from device.tables import refuse_unknown
from edgekit.errors import ConfigError

TABLE: Final = "routing"
SHUT: Final = Policy(cloud=False, reasons=frozenset(), daily_bytes=0, local_only=True)
"""Lets nothing go: what a device without ``[routing]`` allows."""


def read_remote(data: Mapping[str, Any], source: str) -> Policy:
    """Return what a remote configuration lets be; what it leaves out it does not touch.

    Args:
        data: Tables, as TOML or JSON has them; of this version ``routing``.
        source: What to call it in errors.

    Raises:
        ConfigError: A table, key or value that this version does not know. It may forbid
            something: the whole is refused, and the caller keeps what it has.
    """
    refuse_unknown(data, (TABLE,), source)
    table = data.get(TABLE, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: {TABLE} is no table")
    return read_policy(table, f"[{TABLE}] of {source}")


def tightened(own: RoutingConfig | None, remote: Policy) -> Policy:
    """Return what is allowed: what both the owner and whoever is remote allow.

    It is of these two alone, never of what was allowed before: a remote policy that was lifted
    gives back what the owner allows, and no order or number of them gives more.

    Args:
        own: The owner's table; None lets nothing go.
        remote: See ``read_remote``.
    """
    return (SHUT if own is None else own.policy).tightened_by(remote)
