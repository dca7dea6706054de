"""Joules by rail: from a tree as an AGX Orin's, and from none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from device.api import energy
from device.api.energy import Energy, readable_rails

RAILS = {"VDD_GPU_SOC": (20_000, 150), "VDD_CPU_CV": (20_000, 50), "VIN_SYS_5V0": (5_000, 900)}


def orin(root: Path) -> Path:
    """Make two hwmon devices: a thermal one, and an INA3221 with shunt inputs and their sum."""
    (root / "sys/class/hwmon/hwmon0").mkdir(parents=True)
    (root / "sys/class/hwmon/hwmon0/name").write_text("tmp451\n")
    folder = root / "sys/class/hwmon/hwmon1"
    folder.mkdir()
    (folder / "name").write_text("ina3221\n")
    for channel, (name, (volts, amperes)) in enumerate(RAILS.items(), start=1):
        (folder / f"in{channel}_label").write_text(f"{name}\n")
        (folder / f"in{channel}_input").write_text(f"{volts}\n")
        (folder / f"curr{channel}_input").write_text(f"{amperes}\n")
        (folder / f"in{channel + 3}_input").write_text("7\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    (folder / "in7_input").write_text("3\n")
    return folder


def joules(source: Energy) -> dict[str, float]:
    return {s.labels["rail"]: s.value for metric in source.collect() for s in metric.samples}


def test_power_is_integrated(tmp_path: Path) -> None:
    """Millivolts by milliamperes by seconds; what changes between two readings goes in halves."""
    folder = orin(tmp_path)
    source = Energy(readable_rails(tmp_path))
    assert joules(source) == dict.fromkeys(RAILS, 0.0)
    source.sample(100.0)
    source.sample(102.0)
    assert joules(source) == pytest.approx({"VDD_GPU_SOC": 6, "VDD_CPU_CV": 2, "VIN_SYS_5V0": 9})
    (folder / "curr1_input").write_text("1150\n")
    source.sample(103.0)
    assert joules(source)["VDD_GPU_SOC"] == pytest.approx(6 + 13)


def test_what_cannot_be_read_is_not_invented(tmp_path: Path) -> None:
    """A rail that is off, currents below none, and a machine that slept add nothing."""
    folder = orin(tmp_path)
    source = Energy(readable_rails(tmp_path))
    source.sample(0.0)
    (folder / "in1_input").write_text("")
    (folder / "curr2_input").write_text("-398\n")
    source.sample(1.0)
    (folder / "in1_input").write_text("20000\n")
    source.sample(2.0)
    found = joules(source)
    assert found["VDD_GPU_SOC"] == 0
    assert found["VDD_CPU_CV"] == pytest.approx(0.5)  # 1 W, then none: half of a second's
    source.sample(1000.0)
    assert joules(source)["VIN_SYS_5V0"] == pytest.approx(9)


def test_no_monitor_no_series(tmp_path: Path) -> None:
    """A machine without one has no rails."""
    assert readable_rails(tmp_path) == []
    (tmp_path / "sys/class/hwmon/hwmon0").mkdir(parents=True)
    assert readable_rails(tmp_path) == []


def test_the_thread_reads_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started it reads by itself, and the counter is Prometheus'; stopped it ends."""
    orin(tmp_path)
    monkeypatch.setattr(energy, "INTERVAL_S", 0.01)
    source = Energy(readable_rails(tmp_path))
    registry = CollectorRegistry()
    registry.register(source)
    source.start()
    end = time.monotonic() + 10
    while not joules(source)["VIN_SYS_5V0"]:
        assert time.monotonic() < end
        time.sleep(0.01)
    source.stop()
    assert b'edgekit_energy_joules_total{rail="VDD_GPU_SOC"}' in generate_latest(registry)
