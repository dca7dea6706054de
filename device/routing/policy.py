"""What may leave the device. Whoever is remote can take away from it and never add to it.

Policies are ordered by what they allow; ``tightened_by`` is the greatest lower bound of two, so
that it does not matter how often or in which order a remote policy comes.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from device.tables import read_table
from edgekit.errors import ConfigError

CloudReason = Literal["context", "queue"]
"""Why a request goes to the cloud: it does not fit the context here, or it would wait too long."""
CLOUD_REASONS: frozenset[CloudReason] = frozenset(get_args(CloudReason))


@dataclass(frozen=True, slots=True)
class Policy:
    """What may go to the cloud. The defaults are the loosest: all of it.

    Attributes:
        cloud: Whether anything may.
        reasons: For which reasons.
        daily_bytes: Sent and received in a UTC day; infinite is no limit.
        local_only: Whether every request is pinned to the device.
        local_clients: Clients whose requests are.
    """

    cloud: bool = True
    reasons: frozenset[CloudReason] = CLOUD_REASONS
    daily_bytes: float = math.inf
    local_only: bool = False
    local_clients: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if (
            not self.daily_bytes >= 0
        ):  # NaN would be no limit: whatever is compared with it is false
            raise ConfigError(f"a policy's daily_bytes is {self.daily_bytes}", "Give 0 or more")
        object.__setattr__(self, "local_clients", frozenset(map(client_name, self.local_clients)))

    def tightened_by(self, remote: Policy) -> Policy:
        """Return what both allow."""
        return Policy(
            self.cloud and remote.cloud,
            self.reasons & remote.reasons,
            min(self.daily_bytes, remote.daily_bytes),
            self.local_only or remote.local_only,
            self.local_clients | remote.local_clients,
        )

    def allows_no_more_than(self, other: Policy) -> bool:
        """Return whether everything that this allows is allowed by the other, too."""
        return (
            self.cloud <= other.cloud
            and self.reasons <= other.reasons
            and self.daily_bytes <= other.daily_bytes
            and self.local_only >= other.local_only
            and self.local_clients >= other.local_clients
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A remote policy as it is written; what it leaves out it does not touch."""

    cloud: bool = True
    reasons: tuple[str, ...] = tuple(sorted(CLOUD_REASONS))
    daily_bytes: int | None = None
    local_only: bool = False
    local_clients: tuple[str, ...] = ()


def client_name(name: str) -> str:
    """Return a client's name as it is compared: an address in its one shortest form."""
    return str(ipaddress.ip_address(name.strip())) if is_address(name) else name


def is_address(name: str) -> bool:
    """Return whether a client's name is an IP address."""
    try:
        ipaddress.ip_address(name.strip())
    except ValueError:
        return False
    return True


def read_policy(table: Mapping[str, Any], source: str) -> Policy:
    """Return a remote policy.

    A key that this version does not know may forbid something: the whole is refused, and the
    caller keeps what it has.

    Args:
        table: Its keys and values.
        source: What to call it in errors.

    Raises:
        ConfigError: An unknown key, a wrong type or an impossible value.
    """
    read = read_table(_Table, table, source)
    return Policy(
        read.cloud,
        cloud_reasons(read.reasons, source),
        math.inf if read.daily_bytes is None else read.daily_bytes,
        read.local_only,
        frozenset(read.local_clients),
    )


def cloud_reasons(names: tuple[str, ...], source: str) -> frozenset[CloudReason]:
    """Return reasons by their names.

    Raises:
        ConfigError: One is none.
    """
    unknown = sorted(set(names) - CLOUD_REASONS)
    if unknown:
        raise ConfigError(
            f"{source}: reasons has {unknown[0]!r}", f"Use: {', '.join(sorted(CLOUD_REASONS))}"
        )
    return frozenset(reason for reason in CLOUD_REASONS if reason in names)
