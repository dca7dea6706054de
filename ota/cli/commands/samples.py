"""``edgekit-fleet samples``: what a device measured, decoded."""

from __future__ import annotations

from contextlib import closing

import click

from edgekit.cli.render import console, grid_table, print_json
from edgekit.contracts.telemetry import Sample
from edgekit.errors import StoreError
from ota.cli.options import find_named, json_option, moment, store_option
from ota.store.read import newest_batches
from ota.store.schema import open_store


@click.group()
def command() -> None:
    """Show what a device measured."""


@command.command()
@store_option
@json_option
@click.option("--last", type=click.IntRange(1, 10_000), default=10, show_default=True)
@click.option(
    "--reading", "readings", multiple=True, help="Only these; may be given several times."
)
@click.argument("device")
def show(*, url: str, device: str, last: int, readings: tuple[str, ...], as_json: bool) -> None:
    """Show the samples of DEVICE (NAME or TENANT/NAME) that came last, by time.

    After an outage those are the oldest of it, for devices send the newest first.
    """
    with closing(open_store(url)) as store:
        name = find_named(store, device)
        batches = newest_batches(store, name.tenant, name.device, last)
    samples = [sample for stored in batches for sample in stored.batch().samples()]
    samples = sorted(samples, key=lambda one: (one.time_ms, one.seq))[-last:]
    for reading in readings:
        if not any(reading in one.values for one in samples):
            raise StoreError(
                f"no sample that is shown has a reading {reading!a}",
                "Ask without --reading for those that there are",
            )
    if as_json:
        rows = [
            {
                "boot": one.boot,
                "seq": one.seq,
                "time_ms": one.time_ms,
                "clock": one.clock,
                "values": _values(one, readings),
            }
            for one in samples
        ]
        print_json({"tenant": name.tenant, "device": name.device, "samples": rows})
        return
    console().print(
        grid_table(
            ["time (UTC)", "clock", "reading", "value"],
            [
                [moment(one.time_ms), one.clock, reading, "-" if value is None else str(value)]
                for one in samples
                for reading, value in sorted(_values(one, readings).items())
            ],
        )
    )


def _values(sample: Sample, readings: tuple[str, ...]) -> dict[str, int | float | None]:
    return {key: value for key, value in sample.values.items() if not readings or key in readings}
