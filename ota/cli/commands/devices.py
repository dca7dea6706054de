"""``edgekit-fleet devices``: who is there, and what is known of one."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import asdict

import click

from edgekit.cli.render import console, facts_table, grid_table, print_json
from edgekit.contracts.series import Number
from ota.cli.options import find_named, json_option, moment, store_option
from ota.store.read import active_alarms, alarms_of
from ota.store.read import devices as all_devices
from ota.store.records import StoredDevice
from ota.store.schema import open_store

_SHOWN_ALARMS = 20


def _state(device: StoredDevice) -> str:
    """Return a device's state for a person: who was stopped on purpose is not lost."""
    reason = f" ({device.down_reason})" if device.down_reason else ""
    return f"{device.state or '-'}{reason}"


def _detail(key: str, value: str | Number | None) -> str:
    """Return a detail of a birth for a person."""
    if value is None:
        return "-"
    return moment(value) if key.endswith("_ms") and isinstance(value, int) else str(value)


@click.group()
def command() -> None:
    """List the devices, or show one."""


@command.command(name="list")
@store_option
@json_option
@click.option("--tenant", help="Whose; everyone's without it.")
def list_devices(*, url: str, tenant: str | None, as_json: bool) -> None:
    """List the devices with when they were last seen."""
    with closing(open_store(url)) as store:
        found = all_devices(store, tenant)
        raised = Counter((one.tenant, one.device) for one in active_alarms(store, tenant))
    if as_json:
        rows = [{**asdict(one), "active_alarms": raised[one.tenant, one.device]} for one in found]
        print_json({"devices": rows})
        return
    console().print(
        grid_table(
            ["device", "state", "last seen (UTC)", "alarms"],
            [
                [
                    f"{one.tenant}/{one.device}",
                    _state(one),
                    moment(one.last_seen_ms),
                    str(raised[one.tenant, one.device]),
                ]
                for one in found
            ],
        )
    )


@command.command()
@store_option
@json_option
@click.argument("device")
def show(*, url: str, device: str, as_json: bool) -> None:
    """Show DEVICE (NAME or TENANT/NAME): presence, details, alarms."""
    with closing(open_store(url)) as store:
        found = find_named(store, device)
        raised = [one for one in active_alarms(store, found.tenant) if one.device == found.device]
        history = alarms_of(store, found.tenant, found.device, _SHOWN_ALARMS)
    if as_json:
        print_json(
            {
                **asdict(found),
                "active_alarms": [asdict(one) for one in raised],
                "alarms": [asdict(one) for one in history],
            }
        )
        return
    facts = [
        ("state", f"{_state(found)}, since {moment(found.state_ms)}"),
        ("first seen", moment(found.first_seen_ms)),
        ("last seen", moment(found.last_seen_ms)),
        ("boot", found.boot or "-"),
        ("connection", str(found.connection or "-")),
        *((key, _detail(key, value)) for key, value in sorted(found.details.items())),
        *(("raised", f"{a.alarm} {a.reading} {a.value:g} > {a.threshold:g}") for a in raised),
    ]
    console().print(facts_table(f"{found.tenant}/{found.device}", facts))
