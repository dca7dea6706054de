"""What the exporter reads: the store, behind the few questions that are asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ota.store import read
from ota.store.database import Store
from ota.store.records import StoredAlarm, StoredBatch, StoredDevice

_TIMES = ("not_before", "not_after")


class Source(Protocol):
    """Where batches, devices and alarms come from."""

    def batches_after(self, cursor: int, limit: int) -> Sequence[StoredBatch]:
        """Return batches that follow a cursor, in the order of their commits."""

    def devices(self) -> Sequence[StoredDevice]:
        """Return all devices."""

    def active_alarms(self) -> Sequence[StoredAlarm]:
        """Return the alarms that are raised now."""


@dataclass(frozen=True, slots=True)
class StoreSource:
    """A store.

    Attributes:
        store: An open one; its errors pass through.
    """

    store: Store

    def batches_after(self, cursor: int, limit: int) -> Sequence[StoredBatch]:
        """See :func:`ota.store.read.batches_after`."""
        return read.batches_after(self.store, cursor, limit)

    def devices(self) -> Sequence[StoredDevice]:
        """See :func:`ota.store.read.devices`."""
        return read.devices(self.store)

    def active_alarms(self) -> Sequence[StoredAlarm]:
        """See :func:`ota.store.read.active_alarms`."""
        return read.active_alarms(self.store)


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when something holds.

    Attributes:
        begin_s: Seconds since 1970: a certificate's ``notBefore``, a role's signing.
        end_s: Its ``notAfter``, its expiry.
    """

    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What other parts of the cloud know; each may know nothing.

    Attributes:
        certificates: Of devices, by tenant and device.
        metadata: Of TUF's roles, by role.
        rollbacks: How often devices went back, by tenant and device; give 0 for those that never
            did, or the first one is not seen to be new.
    """

    certificates: Mapping[tuple[str, str], Validity] = field(default_factory=dict)
    metadata: Mapping[str, Validity] = field(default_factory=dict)
    rollbacks: Mapping[tuple[str, str], int] = field(default_factory=dict)


FactSource = Callable[[], Facts]


def birth_certificates(devices: Iterable[StoredDevice]) -> dict[tuple[str, str], Validity]:
    """Return the lives of the devices' certificates, as their last births told them.

    A birth that tells none, or no life (a device may write what it likes), is left out.
    """
    found = {}
    for one in devices:
        begin, end = (one.details.get(f"certificate_{name}_ms") for name in _TIMES)
        if isinstance(begin, int | float) and isinstance(end, int | float) and begin < end:
            found[one.tenant, one.device] = Validity(begin / 1000, end / 1000)
    return found
