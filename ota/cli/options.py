"""Options that commands of ``edgekit-fleet`` share, and how they name a device."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

import click

from edgekit.errors import StoreError
from ota.store.database import Store
from ota.store.read import devices
from ota.store.records import StoredDevice

_YEAR_10000_MS = 253_402_300_800_000
"""Where calendars of :mod:`datetime` end."""
_Function = TypeVar("_Function", bound=Callable[..., Any])


def store_option(function: _Function) -> _Function:
    """Add ``--store URL``."""
    return click.option(
        "--store",
        "url",
        required=True,
        metavar="URL",
        envvar="EDGEKIT_FLEET_STORE",
        show_envvar=True,
        help="sqlite:///FILE, or postgresql://USER@HOST/DATABASE.",
    )(function)


def json_option(function: _Function) -> _Function:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


def find_named(store: Store, name: str) -> StoredDevice:
    """Return a device by ``TENANT/DEVICE``, or by its name where only one tenant has it.

    Raises:
        StoreError: The store has none of that name, or several.
    """
    tenant, _, device = name.rpartition("/")
    found = [one for one in devices(store, tenant or None) if one.device == device]
    if not found:
        raise StoreError(f"the store has no device {name!a}", "See: edgekit-fleet devices list")
    if len(found) > 1:
        names = ", ".join(f"{one.tenant}/{one.device}" for one in found)
        raise StoreError(f"{name!a} may be {names}", "Name the tenant, too")
    return found[0]


def moment(time_ms: int | None) -> str:
    """Return a time for a person, in UTC; a dash for none.

    A device may write any number as a time: one that no calendar has is shown as it is.
    """
    if time_ms is None:
        return "-"
    if not 0 <= time_ms < _YEAR_10000_MS:
        return f"{time_ms} ms"
    when = datetime.fromtimestamp(time_ms / 1000, timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M:%S")
