"""The series that devices report: names with units, and what each counts.

A reading's name is ``<series>`` or, where a device has several of a kind, ``<series>.<label>``:
``temperature_celsius.cpu``. Gauges are values at an instant. Counters, whose series end in
``_total``, only grow while the agent runs; they begin again at 0 with a new boot or a new agent.
Readers pass series on that they do not know: a newer agent has more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.contracts.fields import show
from edgekit.errors import MessageError

Number = int | float
Values = Mapping[str, Number | None]
"""Reading's name to value; None is missing: not there, gated, or not read."""

MAX_SERIES = 500
"""Most readings in one sample."""
NAME = re.compile(r"([a-z][a-z0-9_]{0,63})(?:\.([A-Za-z0-9/][A-Za-z0-9._:/-]{0,63}))?")
_MAX_INTEGER = 2**53


@dataclass(frozen=True, slots=True)
class Series:
    """What a series is.

    Attributes:
        help: One line.
        label: What the part behind the dot names; empty if there is none.
    """

    help: str
    label: str = ""


SERIES: Mapping[str, Series] = {
    "memory_total_bytes": Series("MemTotal: the memory that CPU and GPU share."),
    "memory_available_bytes": Series("MemAvailable of it."),
    "memory_used_ratio": Series("1 - available / total."),
    "swap_total_bytes": Series("SwapTotal."),
    "swap_used_bytes": Series("SwapTotal - SwapFree."),
    "memory_largest_free_block_bytes": Series("Largest contiguous free block."),
    "cpu_load_percent": Series("Busy time of all CPUs since the last sample."),
    "cpu_mhz": Series("Clock.", "cluster"),
    "gpu_load_percent": Series("Busy time of the GPU."),
    "gpu_mhz": Series("Clock of the GPU."),
    "emc_load_percent": Series("Load of the memory controller."),
    "emc_mhz": Series("Clock of the memory controller."),
    "temperature_celsius": Series("Temperature; gated sensors are missing.", "zone"),
    "power_mw": Series("Power of a rail; small negative values are real.", "rail"),
    "power_mode_id": Series("nvpmodel's mode."),
    "gpu_clock_pinned": Series("1 if jetson_clocks pins the GPU."),
    "cpu_clock_pinned": Series("1 if jetson_clocks pins the CPU."),
    "throttling_alerts": Series("Thermal alerts that are raised now."),
    "over_current_events_total": Series("Over-current events."),
    "disk_used_ratio": Series("Used share of a file system.", "mount"),
    "disk_free_bytes": Series("What unprivileged programs may still write.", "mount"),
    "disk_read_bytes_total": Series("Bytes read since the boot.", "disk"),
    "disk_written_bytes_total": Series("Bytes written since the boot.", "disk"),
    "storage_life_used_ratio": Series("Worn share of flash, by its own estimate.", "disk"),
    "storage_temperature_celsius": Series("Temperature of an NVMe disk.", "disk"),
    "tcp_segments_sent_total": Series("TCP segments of the host."),
    "tcp_segments_retransmitted_total": Series("Of these, retransmitted; not packet loss."),
    "udp_datagrams_sent_total": Series("UDP datagrams of the host."),
    "link_segments_sent_total": Series("TCP segments of our connections.", "connection"),
    "link_segments_retransmitted_total": Series("Of these, retransmitted.", "connection"),
    "link_sent_bytes_total": Series("TCP payload sent, retransmissions included.", "connection"),
    "link_received_bytes_total": Series("TCP payload received.", "connection"),
    "link_rtt_ms": Series("Smoothed round trip.", "connection"),
    "probe_sent_total": Series("Probes that left and were answered or lost."),
    "probe_lost_total": Series("Of these, unanswered."),
    "probe_unsent_total": Series("Probes that the device could not send."),
    "probe_refused_total": Series("Probes that met no reflector."),
    "probe_loss_lower_bound_ratio": Series("Wilson lower bound of the loss in the window."),
    "mqtt_connects_total": Series("Connections that the broker accepted."),
    "mqtt_failures_total": Series("Connections that failed or broke.", "reason"),
    "mqtt_refused_total": Series("Publishes and subscriptions that the broker refused."),
    "mqtt_day_bytes": Series("Bytes of the UTC day on the broker's connection, with headers."),
    "mqtt_malformed_total": Series("Messages of the broker that could not be read."),
    "notices_total": Series("Notices by what became of them.", "outcome"),
    "modem_rsrp_dbm": Series("Reference signal received power.", "technology"),
    "modem_rsrq_db": Series("Reference signal received quality.", "technology"),
    "modem_snr_db": Series("Signal to noise.", "technology"),
    "modem_signal_percent": Series("ModemManager's signal quality."),
    "engine_memory_bytes": Series("What the engine holds: weights, caches, activations."),
    "engine_memory_budget_bytes": Series("What it may hold."),
    "engine_memory_used_ratio": Series("Held / may hold."),
    "requests_running": Series("Requests that have a slot."),
    "requests_waiting": Series("Requests that wait for one."),
    "requests_total": Series("Requests ended."),
    "requests_failed_total": Series("Of these, failed or refused."),
    "prompt_tokens_total": Series("Tokens of prompts."),
    "generated_tokens_total": Series("Tokens generated."),
    "ring_rows": Series("Samples and alarms that no store has acknowledged."),
    "ring_file_bytes": Series("Size of the ring on disk."),
    "ring_dropped_total": Series("Rows dropped unsent.", "reason"),
    "sensor_errors_total": Series("Readings that failed.", "sensor"),
    "uptime_s": Series("Since the boot."),
}
"""Every series that this release reports, without the labels' values."""


def split_name(name: str) -> tuple[str, str | None]:
    """Return a reading's series and label.

    Raises:
        MessageError: It is no reading's name.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise MessageError(f"{show(name)} is not a reading's name, such as temperature_celsius.cpu")
    return match[1], match[2]


def is_counter(name: str) -> bool:
    """Whether a reading only grows."""
    return split_name(name)[0].endswith("_total")


def is_value(value: Any) -> bool:
    """Whether a value can stand for a reading: a finite number, or None for a missing one."""
    if type(value) is int:
        return abs(value) <= _MAX_INTEGER
    return value is None or (type(value) is float and math.isfinite(value))


def check_values(data: Any, where: str) -> Values:
    """Return the readings of a sample.

    Raises:
        MessageError: They are no object of names to numbers and nulls, or too many.
    """
    if not isinstance(data, Mapping) or len(data) > MAX_SERIES:
        raise MessageError(f"{where} is not an object of at most {MAX_SERIES} readings")
    for name, value in data.items():
        split_name(name)
        if not is_value(value):
            raise MessageError(f"{where}: {show(name)} is {show(value)}, not a number or null")
    return data
