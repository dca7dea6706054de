"""One message of every kind, as the golden files have them."""

from __future__ import annotations

from edgekit.contracts.message import Message
from edgekit.contracts.series import Values
from edgekit.contracts.telemetry import (
    Alarm,
    Batch,
    CommandNotice,
    Health,
    Sample,
    StoreAcknowledgement,
)

BOOT = "1f0a52c3d4e5b6a7-3f9c01d2"
MOMENT_MS = 1_784_970_508_000
VALUES = {
    "memory_total_bytes": 65_868_398_592,
    "memory_used_ratio": 0.3286,
    "gpu_load_percent": 12,
    "temperature_celsius.cpu": 52.968,
    "temperature_celsius.cv0": None,
    "power_mw.VDD_CPU_CV": -398,
    "tcp_segments_sent_total": 294_111,
}
LATER = {
    "memory_total_bytes": 65_868_398_592,
    "memory_used_ratio": 0.3291,
    "gpu_load_percent": 97.5,
    "temperature_celsius.cpu": 53.125,
    "power_mw.VDD_CPU_CV": 794,
    "tcp_segments_sent_total": 294_180,
}


def sample(seq: int, time_ms: int, values: Values) -> Sample:
    return Sample(boot=BOOT, seq=seq, time_ms=time_ms, clock="synced", values=values)


def health(state: str, alarms: tuple[str, ...], details: dict[str, str | float | None]) -> Health:
    return Health(
        boot=BOOT, time_ms=MOMENT_MS, clock="synced", state=state, connection=3, alarms=alarms,
        details=details,
    )  # fmt: skip


MESSAGES: dict[str, Message] = {
    "sample": sample(17, MOMENT_MS, VALUES),
    "batch": Batch.of_samples(
        [
            sample(17, MOMENT_MS, VALUES),
            sample(18, MOMENT_MS + 10_000, LATER),
            sample(20, MOMENT_MS + 20_001, {**LATER, "gpu_load_percent": None}),
        ]
    ),
    "alarm": Alarm(
        boot=BOOT, seq=19, time_ms=MOMENT_MS + 15_000, clock="unsynced", alarm="temperature",
        reading="temperature_celsius.cpu", state="raised", severity="major", value=91.5,
        threshold=90,
    ),
    "health_up": health(
        "up",
        ("temperature:temperature_celsius.cpu",),
        {"agent_version": "0.5.0", "board": "NVIDIA Jetson AGX Orin", "l4t": "39.2.0",
         "encodings": "zstd-ek1,zstd,json", "sample_interval_s": 10},
    ),
    "health_down": health("down", (), {}),
    "store_acknowledgement": StoreAcknowledgement(
        stored={BOOT: ((1, 18), (20, 20)), "0123456789abcdef-00000001": ((7, 7),)}
    ),
    "command_notice": CommandNotice(
        id="01JDKXW4", command="job", issued_ms=MOMENT_MS, expires_ms=MOMENT_MS + 3_600_000
    ),
}  # fmt: skip
