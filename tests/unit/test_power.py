"""The machine's state from files as JetPack 6.2 and 7.2 lay them out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgekit.plan.hardware import machines
from edgekit.power import Jetson, NotJetson, read_machine

AGX_MODES = """\
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=MODE_15W >
< POWER_MODEL ID=2 NAME=MODE_30W >
< POWER_MODEL ID=3 NAME=MODE_50W >
< PM_CONFIG DEFAULT=2 >
"""
NX_MODES = """\
< POWER_MODEL ID=0 NAME=MAXN_SUPER >
< POWER_MODEL ID=1 NAME=10W >
< POWER_MODEL ID=2 NAME=15W >
< POWER_MODEL ID=3 NAME=25W >
< POWER_MODEL ID=4 NAME=40W >
"""
MAXN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "var/lib/nvpmodel/status": "pmode:0000\n",
    "etc/nvpmodel.conf": AGX_MODES,
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2201600\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1190400\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
}
"""An AGX Orin 64GB after its boot in MAXN, read without root: clocks float."""
PINNED = {
    "sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "2201600\n",
}
"""What jetson_clocks changes of it."""


def tree(root: Path, *layouts: dict[str, str]) -> Path:
    """Write files below a root, later layouts over earlier ones."""
    for layout in layouts:
        for name, text in layout.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return root


def jetson(root: Path, *layouts: dict[str, str]) -> Jetson:
    """Return the Jetson that files describe."""
    found = read_machine(tree(root, *layouts))
    assert isinstance(found, Jetson)
    return found


def test_unpinned_clocks_are_said(tmp_path: Path) -> None:
    """The report has mode, board and clocks, and a warning names what floats; fans are no alert."""
    found = jetson(tmp_path, MAXN)
    assert found.to_dict() == {
        "kind": "jetson",
        "board": "NVIDIA Jetson AGX Orin Developer Kit",
        "power_mode": "MAXN",
        "power_mode_id": 0,
        "clocks_pinned": {"gpu": False, "cpu": False, "memory": None},
        "gpu": {"min_mhz": 306.0, "max_mhz": 1300.5, "current_mhz": 306.0},
        "cpu_governor": "schedutil",
        "throttled": [],
        "over_current_events": 37,
    }
    (warning,) = found.warnings()
    assert warning.startswith("clocks are not pinned (gpu, cpu)")
    assert "sudo jetson_clocks" in warning
    assert found.describe().endswith("power mode MAXN, GPU up to 1300.5 MHz, clocks not pinned")


def test_pinned_at_maxn_warns_of_nothing(tmp_path: Path) -> None:
    """After jetson_clocks nothing is to be said; as root the memory's lock is read, too."""
    assert jetson(tmp_path, MAXN, PINNED).warnings() == []
    emc = "sys/kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked"
    assert jetson(tmp_path, {emc: "1\n"}).clocks_pinned["memory"] is True
    loose = jetson(tmp_path, {emc: "0\n"})
    assert loose.warnings()[0].startswith("clocks are not pinned (memory)")


def test_slow_modes_are_named_as_plan_names_them(tmp_path: Path) -> None:
    """Each mode of `edgekit plan` comes out of the file that its board has, and warns but MAXN."""
    planned = {name: [mode.name for mode in m.modes] for name, m in machines().items() if m.modes}
    for machine, conf in (("agx-orin-64gb", AGX_MODES), ("orin-nx-16gb", NX_MODES)):
        names = []
        for number in re.findall(r"ID=(\d)", conf):
            status = {"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": f"pmode:000{number}\n"}
            found = jetson(tmp_path / machine, MAXN, PINNED, status)
            assert found.power_mode is not None
            names.append(found.power_mode)
            slow = not found.power_mode.startswith("MAXN")
            assert len(found.warnings()) == slow
            if slow:
                assert (
                    f"power mode is {found.power_mode}, not MAXN (sudo nvpmodel -m 0"
                    in (found.warnings()[0])
                )
        assert sorted(names) == sorted(planned[machine])


def test_throttling_is_said(tmp_path: Path) -> None:
    """A raised alert of a cooling device is a warning."""
    hot = {"sys/class/thermal/cooling_device1/cur_state": "1\n"}
    assert jetson(tmp_path, MAXN, PINNED, hot).warnings() == [
        "the board is throttling (gpu-throttle-alert)"
    ]


def test_in_a_container_little_is_known(tmp_path: Path) -> None:
    """Without device tree and nvpmodel it is still a Jetson, by its GPU's older name as well."""
    clocks = {
        name.replace(".gpu", ".ga10b"): text
        for name, text in {**MAXN, **PINNED}.items()
        if name.startswith("sys/")
    }
    found = jetson(tmp_path, clocks)
    assert (found.board, found.power_mode, found.gpu.pinned) == (None, None, True)
    assert found.warnings() == [
        "the power mode is unknown (/var/lib/nvpmodel/status and /etc/nvpmodel.conf cannot be "
        "read), so the speed cannot be compared"
    ]


@pytest.mark.parametrize("garbage", ["", "pmode:\n", "\xff\xfe"])
def test_damaged_files_are_unknown(tmp_path: Path, garbage: str) -> None:
    """Nothing that a file may hold raises."""
    found = jetson(tmp_path, dict.fromkeys(MAXN, garbage), {"proc/device-tree/model": "Jetson"})
    assert found.power_mode is None
    assert found.clocks_pinned == {"gpu": None, "cpu": None, "memory": None}
    assert any("is unknown: no GPU clock" in warning for warning in found.warnings())


def test_other_machines_say_so(tmp_path: Path) -> None:
    """A host is no Jetson, has its governor and its card, and warns of nothing."""
    assert read_machine(tmp_path) == NotJetson(None, None)
    root = tree(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 5\0",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": (
                "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 148\n"
            ),
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n",
        },
    )
    found = read_machine(root)
    assert json.dumps(found.to_dict(), sort_keys=True) == json.dumps(
        {"cpu_governor": "powersave", "gpu_name": "NVIDIA GeForce RTX 4090", "kind": "other"}
    )
    assert found.warnings() == []
    assert found.describe() == "not a Jetson, CPU governor powersave, NVIDIA GeForce RTX 4090"
