"""The generator of ``bench_ingest.py``, a process of its own: batches of a fleet at a steady rate.

Usage: python ingest_load.py PORT FIRST_DEVICE BATCHES RATE    (a rate of 0: as fast as it goes)

Payloads are made before the clock starts; a line ``ready`` says so, and a line on standard input
lets it begin. Every batch is the second of its device: numbers 61 to 120.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from device.simulator.day import Day
from edgekit.batch_encoding import PROPERTY, compress
from edgekit.contracts.telemetry import Batch, Sample

BOOT = "1f0a52c3d4e5b6a7-3f9c01d2"
SAMPLES = 60
PAYLOADS = 100
START_MS = 1_784_970_508_000
TENANT = "bench"


def payloads() -> list[bytes]:
    """Return batches of made-up days, compressed as devices do."""
    found = []
    for seed in range(PAYLOADS):
        samples = [
            Sample(
                boot=BOOT,
                seq=SAMPLES + 1 + row,
                time_ms=START_MS + 10_000 * row,
                clock="synced",
                values=values,
            )
            for row, values in enumerate(Day(seed).samples(SAMPLES))
        ]
        found.append(compress(Batch.of_samples(samples).to_bytes(), "zstd-ek1"))
    return found


def main() -> None:
    """Send."""
    port, first, batches, rate = int(sys.argv[1]), *map(int, sys.argv[2:4]), float(sys.argv[4])
    made = payloads()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, f"load-{first}", protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(90)
    client.connect("127.0.0.1", port)
    client.loop_start()
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [(PROPERTY, "zstd-ek1")]
    print("ready", flush=True)
    sys.stdin.readline()
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.monotonic()
    for number in range(batches):
        if rate:
            time.sleep(max(start + number / rate - time.monotonic(), 0))
        topic = f"ek/{TENANT}/device/d{first + number}/m/batch"
        sent = client.publish(topic, made[number % PAYLOADS], qos=1, properties=properties)
        if number % 500 == 499:
            sent.wait_for_publish(60)
    sent.wait_for_publish(60)
    after = resource.getrusage(resource.RUSAGE_SELF)
    client.disconnect()
    client.loop_stop()
    report = {
        "seconds": round(time.monotonic() - start, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "payload_bytes": round(sum(map(len, made)) / PAYLOADS),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
