"""Sensors of files: an Orin's sysfs, /proc, storage, the board; what is not there is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.telemetry.sensors.board import Board
from device.telemetry.sensors.counters import Counters
from device.telemetry.sensors.proc import (
    Proc,
    parse_diskstats,
    parse_meminfo,
    parse_snmp,
    parse_stat,
    parse_uptime,
)
from device.telemetry.sensors.storage import Storage, parse_life
from device.telemetry.sensors.sysfs import Sysfs, label
from edgekit.contracts.series import SERIES, Values, check_values, split_name
from edgekit.errors import SensorError

ORIN = {
    "sys/devices/platform/gpu.0/load": "437\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2201600\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "<unknown>\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "52968\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "-256000\n",
    "sys/class/thermal/thermal_zone2/type": "Tboard_tegra\n",
    "sys/class/thermal/thermal_zone2/temp": "-3500\n",
    "sys/class/thermal/thermal_zone3/type": "gpu-thermal\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon1/in1_input": "19280\n",
    "sys/class/hwmon/hwmon1/curr1_input": "124\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "19280\n",
    "sys/class/hwmon/hwmon1/curr2_input": "-16\n",
    "sys/class/hwmon/hwmon1/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon1/in3_input": "4968\n",
    "sys/class/hwmon/hwmon1/in4_label": "NC\n",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon0/name": "nvme\n",
    "sys/class/hwmon/hwmon0/temp1_input": "40850\n",
    "sys/class/mmc_host/mmc0/mmc0:0001/life_time": "0x01 0x02\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert\n",
    "sys/class/thermal/cooling_device1/cur_state": "1\n",
}
"""An AGX Orin 64 GB's files; the GPU's zone cannot be read while the GPU is off."""
MEMINFO = """\
MemTotal:       64325632 kB
MemFree:               1 kB
MemAvailable:   43189248 kB
SwapTotal:      32174080 kB
SwapFree:       32173056 kB
HugePages_Total:       0
"""
STAT = "cpu  1000 20 300 8000 100 5 15 60 7 0\ncpu0 1 2 3 4\nintr 5\n"
SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens OutSegs RetransSegs InErrs
Tcp: 1 200 120000 -1 8291 7283 294111 33 0
Udp: InDatagrams NoPorts InErrors OutDatagrams
Udp: 3121 0 0 3279
"""
DISKSTATS = """\
   7       0 loop0 11 0 28 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 259       0 nvme0n1 52344 1 4567890 1 33221 1 987654 1 0 1 1 0 0 0 0 0 0
 259       1 nvme0n1p1 52344 1 4567890 1 33221 1 987654 1 0 1 1 0 0 0 0 0 0
 179       0 mmcblk0 100 0 2000 1 50 1 400 1 0 1 1
"""


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    for name, text in ORIN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def known(values: Values) -> Values:
    """Check that readings are of the contract's series, labelled as those are."""
    for name in check_values(values, "x"):
        series, labelled = split_name(name)
        assert (labelled is not None) == bool(SERIES[series].label), name
    return values


def test_sysfs_of_an_orin(orin: Path) -> None:
    """Units are converted, gated and unreadable zones are None, unconnected rails are not there."""
    assert known(Sysfs(orin).read(0)) == {
        "gpu_load_percent": 43.7,
        "gpu_mhz": 1300.5,
        "cpu_mhz.policy0": 2201.6,
        "cpu_mhz.policy4": None,
        "temperature_celsius.cpu": 52.968,
        "temperature_celsius.cv0": None,
        "temperature_celsius.tboard_tegra": -3.5,
        "temperature_celsius.gpu": None,
        "power_mw.VDD_GPU_SOC": 2391,
        "power_mw.VDD_CPU_CV": -308,
        "power_mw.VIN_SYS_5V0": None,
    }


def test_a_load_that_cannot_be_is_missing(orin: Path) -> None:
    """The driver answers -1 or more than all when the GPU wakes."""
    for text in ("1001", "-1"):
        (orin / "sys/devices/platform/gpu.0/load").write_text(text)
        assert Sysfs(orin).read(0)["gpu_load_percent"] is None


def test_storage_of_an_orin(orin: Path) -> None:
    """Wear is the worse type's upper end; a mount that is not there is missing."""
    values = known(Storage((orin, Path("/no/such")), orin).read(0))
    ratio = values[f"disk_used_ratio.{orin}"]
    assert ratio is not None
    assert 0 < ratio < 1
    assert values["disk_used_ratio./no/such"] is None
    assert values["disk_free_bytes./no/such"] is None
    assert values["storage_life_used_ratio.mmcblk0"] == 0.2
    assert 40.85 in values.values()


@pytest.mark.parametrize(
    ("text", "life"),
    [("0x01 0x01", 0.1), ("0x00 0x03", 0.3), ("0x0b 0x02", 1.1), ("0x00 0x00", None), ("", None),
     ("0x01", None), ("0xff 0x01", 0.1)],
)  # fmt: skip
def test_wear(text: str, life: float | None) -> None:
    """Undefined estimates are None, never 0."""
    assert parse_life(text) == life


def test_board_of_an_orin(orin: Path) -> None:
    """Mode, pinned clocks and alerts as edgekit.power reads them; another machine has none."""
    values = known(Board(orin).read(0))
    assert values == {
        "power_mode_id": 2, "gpu_clock_pinned": 1, "cpu_clock_pinned": None,
        "throttling_alerts": 1, "over_current_events_total": None,
    }  # fmt: skip
    assert Board(orin / "proc").read(0) == {}


def test_proc_files() -> None:
    """Numbers as the kernel's documentation says them."""
    assert parse_meminfo(MEMINFO) == {
        "memory_total_bytes": 64325632 * 1024,
        "memory_available_bytes": 43189248 * 1024,
        "memory_used_ratio": 0.3286,
        "swap_total_bytes": 32174080 * 1024,
        "swap_used_bytes": 1024 * 1024,
    }
    assert parse_stat(STAT) == (1400, 9500)
    assert parse_snmp(SNMP) == {
        "tcp_segments_sent_total": 294111,
        "tcp_segments_retransmitted_total": 33,
        "udp_datagrams_sent_total": 3279,
    }
    assert parse_diskstats(DISKSTATS) == {
        "disk_read_bytes_total.nvme0n1": 4567890 * 512,
        "disk_written_bytes_total.nvme0n1": 987654 * 512,
        "disk_read_bytes_total.mmcblk0": 2000 * 512,
        "disk_written_bytes_total.mmcblk0": 400 * 512,
    }
    assert parse_uptime("626630.27 7519560.11") == 626630


def test_proc_of_this_machine(tmp_path: Path) -> None:
    """The real files are understood; the load needs two readings; nothing there is None."""
    sensor = Proc()
    first, second = known(sensor.read(0)), known(sensor.read(10))
    assert first["cpu_load_percent"] is None
    assert second["memory_total_bytes"]
    assert second["uptime_s"]
    assert second["tcp_segments_sent_total"] is not None
    assert set(Proc(tmp_path).read(0).values()) == {None}


def test_load_is_of_the_time_between(tmp_path: Path) -> None:
    """150 of 200 ticks were busy; a counter that goes back says nothing."""
    (tmp_path / "proc").mkdir()
    sensor = Proc(tmp_path)
    loads = []
    for user, idle in ((0, 0), (150, 50), (100, 50)):
        (tmp_path / "proc/stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\n")
        loads.append(sensor.read(0)["cpu_load_percent"])
    assert loads == [None, 75.0, None]


PARSERS = {
    parse_meminfo: MEMINFO, parse_snmp: SNMP, parse_diskstats: DISKSTATS,
}  # fmt: skip


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
def test_whole_lines_of_a_file_are_never_wrong(parse: object) -> None:
    """A file that ends early, at a line's end, gives the whole file's numbers or none."""
    assert callable(parse)
    text = PARSERS[parse]
    whole = parse(text)
    lines = text.splitlines(keepends=True)
    for count in range(len(lines)):
        for name, value in parse("".join(lines[:count])).items():
            assert value is None or value == whole[name]


@given(
    st.text() | st.sampled_from([MEMINFO, STAT, SNMP, DISKSTATS]), st.integers(0, 400), st.text()
)
def test_no_text_raises(text: str, cut: int, noise: str) -> None:
    """Whatever a kernel writes, parsers return readings or None."""
    damaged = text[:cut] + noise + text[cut:]
    for parse in (parse_meminfo, parse_snmp, parse_diskstats):
        check_values(parse(damaged), "x")
    parse_stat(damaged)
    parse_uptime(damaged)
    parse_life(damaged)
    assert split_name(f"power_mw.{label(damaged)}")


def test_counters_of_another_part() -> None:
    """The engine's share of its budget is worked out; what are no readings is named."""
    held = {"engine_memory_bytes": 30e9, "engine_memory_budget_bytes": 40e9}
    assert Counters("engine", lambda: held).read(0)["engine_memory_used_ratio"] == 0.75
    assert Counters("engine", lambda: {"requests_running": 1}).read(0) == {"requests_running": 1}
    with pytest.raises(SensorError, match="engine: 'requests_running' is nan, not a number"):
        Counters("engine", lambda: {"requests_running": float("nan")}).read(0)
