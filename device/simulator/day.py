"""Readings of an AGX Orin that serves a model, made from a seed.

What batches are measured on (``tests/bench``), and what simulated devices' sensors say.

Steps are those of real sensors: temperatures move in 1/32 degree, rails in the INA3221's 398 mW,
clocks jump between a few rates, counters grow with the requests, the radio's figures wander.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from device.simulator.seeds import chance_of
from edgekit.contracts.series import Number, Values

ZONES = {"cpu": 52.0, "gpu": 48.0, "tj": 52.0, "soc0": 49.0, "soc1": 48.5, "soc2": 47.5}
RAILS = {"VDD_GPU_SOC": 5200, "VDD_CPU_CV": 1600, "VIN_SYS_5V0": 5100}
CPU_MHZ = (729.6, 1190.4, 1728.0, 2201.6)
RADIO = (-94.0, -11.0, 12.0)
"""RSRP, RSRQ and signal to noise, about which they wander."""
AVAILABLE = 43_189_248_000
LOSS = 0.0002
"""Of the probes, one in a second."""
Readings = dict[str, Number | None]
SPELL_S = (120.0, 600.0)
"""How long something is wrong with a made-up device."""
_BUDGET_BYTES = 12_884_901_888
_OURS = ("link_", "mqtt_", "ring_")
"""Readings that a simulated device has true ones of."""


class Day:
    """A device's state; :meth:`samples` moves it on.

    Args:
        seed: Of everything.
        interval_s: Between two samples.
    """

    def __init__(self, seed: int, interval_s: float = 10.0) -> None:
        self._chance = chance_of(seed)
        self._interval_s = interval_s
        self._celsius = dict(ZONES)
        names = "requests prompt generated segments repeated sent received probes lost written read"
        self._counters = dict.fromkeys([*names.split(), "udp"], 0)
        self._busy = False
        self._radio = list(RADIO)
        self._available = AVAILABLE
        self._uptime = 86_400

    def samples(self, count: int) -> Iterator[Readings]:
        """Yield samples."""
        for _ in range(count):
            self._step()
            yield {**self._host(), **self._engine(), **self._link()}

    def _step(self) -> None:
        chance, counters = self._chance, self._counters
        if chance.random() < 0.05:
            self._busy = not self._busy
        self._uptime += int(self._interval_s)
        requests = chance.randrange(1, 6) if self._busy else 0
        counters["requests"] += requests
        counters["prompt"] += sum(chance.randrange(50, 2000) for _ in range(requests))
        counters["generated"] += sum(chance.randrange(20, 600) for _ in range(requests))
        counters["segments"] += chance.randrange(20, 90)
        counters["repeated"] += chance.random() < 0.1
        counters["sent"] += chance.randrange(0, 500)
        counters["received"] += chance.randrange(0, 200)
        counters["probes"] += int(self._interval_s)
        counters["lost"] += chance.random() < LOSS * self._interval_s
        counters["written"] += chance.randrange(0, 60) * 4096
        counters["read"] += chance.randrange(0, 3) * 4096
        counters["udp"] += chance.randrange(10, 20)
        for zone, usual in ZONES.items():
            aim = usual + (14 if self._busy else 0)
            moved = self._celsius[zone] + 0.1 * (aim - self._celsius[zone]) + chance.gauss(0, 0.15)
            self._celsius[zone] = round(moved * 32) / 32
        drawn = (AVAILABLE - self._available) // 4096 // 500
        self._available += (chance.randrange(-400, 400) + drawn) * 4096
        self._radio = [
            value + 0.02 * (usual - value) + chance.gauss(0, 0.8)
            for value, usual in zip(self._radio, RADIO, strict=True)
        ]

    def _host(self) -> Readings:
        chance, busy = self._chance, self._busy
        total = 65_868_398_592
        clocks = {f"cpu_mhz.policy{n}": chance.choice(CPU_MHZ) for n in (0, 4, 8)}
        found: Readings = {
            "memory_total_bytes": total,
            "memory_available_bytes": self._available,
            "memory_used_ratio": round(1 - self._available / total, 4),
            "swap_total_bytes": 32_945_217_536,
            "swap_used_bytes": 0,
            "cpu_load_percent": round(max(chance.gauss(18 if busy else 4, 2), 0), 1),
            "gpu_load_percent": round(min(max(chance.gauss(95, 3), 0), 100), 1) if busy else 0.0,
            "gpu_mhz": 1300.5 if busy else 306.0,
            **clocks,
            "power_mode_id": 0,
            "gpu_clock_pinned": 0,
            "cpu_clock_pinned": 0,
            "throttling_alerts": 0,
            "over_current_events_total": 37,
            "disk_used_ratio./": 0.4312,
            "disk_free_bytes./": 33_000_000_000 - self._counters["written"] // 3,
            "disk_read_bytes_total.nvme0n1": 2_338_759_680 + self._counters["read"],
            "disk_written_bytes_total.nvme0n1": 505_678_848 + self._counters["written"],
            "storage_temperature_celsius.nvme0": round(41.85 + chance.choice((0, 0, 0, 1)), 2),
            "uptime_s": self._uptime,
            "ring_rows": 60,
            "ring_file_bytes": 65_536,
        }
        for zone in ("cv0", "cv1", "cv2"):
            found[f"temperature_celsius.{zone}"] = None
        for zone, celsius in self._celsius.items():
            found[f"temperature_celsius.{zone}"] = int(celsius * 1000) / 1000
        for rail, usual in RAILS.items():
            milliwatts = usual * (3 if busy and rail == "VDD_GPU_SOC" else 1) + chance.gauss(0, 250)
            found[f"power_mw.{rail}"] = round(milliwatts / 398) * 398
        return found

    def _engine(self) -> Readings:
        counters = self._counters
        return {
            "engine_memory_bytes": 9_876_543_210,
            "engine_memory_budget_bytes": _BUDGET_BYTES,
            "engine_memory_used_ratio": 0.7665,
            "requests_running": self._chance.randrange(1, 4) if self._busy else 0,
            "requests_waiting": 0,
            "requests_total": counters["requests"],
            "requests_failed_total": 0,
            "prompt_tokens_total": counters["prompt"],
            "generated_tokens_total": counters["generated"],
        }

    def _link(self) -> Readings:
        counters, chance = self._counters, self._chance
        rsrp, rsrq, snr = self._radio
        return {
            "tcp_segments_sent_total": 294_111 + counters["segments"],
            "tcp_segments_retransmitted_total": 33 + counters["repeated"],
            "udp_datagrams_sent_total": 3279 + counters["udp"],
            "link_segments_sent_total.mqtt": counters["segments"] // 8,
            "link_segments_retransmitted_total.mqtt": counters["repeated"] // 2,
            "link_sent_bytes_total.mqtt": counters["sent"],
            "link_received_bytes_total.mqtt": counters["received"],
            "link_rtt_ms.mqtt": round(abs(chance.gauss(48, 9)), 3),
            "probe_sent_total": counters["probes"],
            "probe_lost_total": counters["lost"],
            "probe_unsent_total": 0,
            "probe_refused_total": 0,
            "probe_loss_lower_bound_ratio": 0.0,
            "modem_rsrp_dbm.nr5g": round(rsrp, 0),
            "modem_rsrq_db.nr5g": round(rsrq, 0),
            "modem_snr_db.nr5g": round(snr * 2) / 2,
            "modem_signal_percent": 71,
        }


class Spells:
    """Times when something is wrong, so that alarms rise, and then clear.

    Args:
        seed: Of everything.
        between_s: From one to the next, on average.
    """

    def __init__(self, seed: int, between_s: float) -> None:
        self._chance = chance_of("spells", seed)
        self._between_s = between_s
        self._kind: str | None = None
        self._until_s: float | None = None

    def readings(self, now_s: float) -> Readings:
        """Return what is other than it should be, if anything.

        Args:
            now_s: Monotonic time.
        """
        chance = self._chance
        if self._until_s is None:
            self._until_s = now_s + chance.expovariate(1 / self._between_s)
        while now_s >= self._until_s:
            if self._kind is None:
                self._kind = chance.choice(("memory", "heat"))
                self._until_s += chance.uniform(*SPELL_S)
            else:
                self._kind = None
                self._until_s += chance.expovariate(1 / self._between_s)
        if self._kind == "memory":
            used = round(chance.uniform(0.92, 0.97), 4)
            return {
                "engine_memory_bytes": int(used * _BUDGET_BYTES),
                "engine_memory_used_ratio": used,
            }
        if self._kind == "heat":
            return {f"temperature_celsius.{zone}": _hot(chance) for zone in ("gpu", "tj")}
        return {}


class MadeUpSensors:
    """All sensors of a simulated device's machine.

    Args:
        seed: Of everything.
        interval_s: Between two looks.
        spells_s: From one thing that goes wrong to the next, on average.
    """

    name = "made_up"

    def __init__(self, seed: int, interval_s: float, spells_s: float) -> None:
        self._day = Day(seed, interval_s)
        self._spells = Spells(seed, spells_s)

    def read(self, now_s: float) -> Values:
        """Return the readings of now."""
        (readings,) = self._day.samples(1)
        readings.update(self._spells.readings(now_s))
        return {name: value for name, value in readings.items() if not name.startswith(_OURS)}


def _hot(chance: Random) -> float:
    """Return a temperature that raises an alarm, in steps of a sensor."""
    return int(chance.uniform(91, 96) * 32) / 32
