"""The modem: ModemManager's answers over a real bus, and whatever it may say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.telemetry.sensors.modem import Modem, parse_objects
from edgekit.contracts.series import check_values
from edgekit.errors import SensorError

PATH = "/org/freedesktop/ModemManager1/Modem/0"
MODEM, SIGNAL = "org.freedesktop.ModemManager1.Modem", "org.freedesktop.ModemManager1.Modem.Signal"
SYSTEM_PYTHON = "/usr/bin/python3"

MOCK = """
import sys
import dbus, dbus.mainloop.glib
from gi.repository import GLib
dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
import dbusmock
from dbusmock.mockobject import DBusMockObject, objects
address, path, modem_interface, signal = sys.argv[1:]
bus = dbus.bus.BusConnection(address)
name = dbus.service.BusName("org.freedesktop.ModemManager1", bus)
root = DBusMockObject(name, "/org/freedesktop/ModemManager1", "org.x", {}, None, True)
objects["/org/freedesktop/ModemManager1"] = root
double, uint = dbus.Double, dbus.UInt32
root.AddObject(path, modem_interface, {
    "SignalQuality": dbus.Struct((uint(71), True), signature="ub"),
    "EquipmentIdentifier": "356938035643809", "OwnNumbers": dbus.Array(["+4917"], signature="s"),
}, [])
modem = objects[path]
modem.AddProperties(signal, {
    "Rate": uint(0),
    "Lte": dbus.Dictionary({"rsrp": double(-97.0), "rsrq": double(-11.0), "snr": double(8.4),
                            "rssi": double(-66.0)}, signature="sv"),
    "Nr5g": dbus.Dictionary({"rsrp": double(-1.7e308), "snr": double(21.5)}, signature="sv"),
})
update = "self.UpdateProperties('" + signal + "', {'Rate': args[0]})"
modem.AddMethod(signal, "Setup", "u", "", update)
print("ready", flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    """Start a bus of our own (Debian's dbus-daemon)."""
    daemon = shutil.which("dbus-daemon")
    assert daemon, "apt-get install dbus-daemon python3-dbusmock"
    command = [daemon, "--session", "--nofork", "--print-address", f"--address=unix:dir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture
def modem_manager(bus: str) -> Iterator[subprocess.Popen[str]]:
    """Start a mock of ModemManager (Debian's python3-dbusmock, on libdbus)."""
    with subprocess.Popen(
        [SYSTEM_PYTHON, "-c", MOCK, bus, PATH, MODEM, SIGNAL], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "apt-get install python3-dbusmock"
        yield process
        process.kill()


def test_a_modem_on_a_real_bus(bus: str, modem_manager: subprocess.Popen[str]) -> None:
    """It is asked to measure, its strengths are read, and what is no measurement is missing."""
    modem = Modem(bus)
    expected = {
        "modem_signal_percent": 71,
        "modem_rsrp_dbm.lte": -97.0,
        "modem_rsrq_db.lte": -11.0,
        "modem_snr_db.lte": 8.4,
        "modem_rsrp_dbm.nr5g": None,
        "modem_snr_db.nr5g": 21.5,
    }
    assert modem.read(0) == expected
    assert modem.read(10) == expected
    rate = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import dbus, sys; b = dbus.bus.BusConnection(sys.argv[1]); "
         "o = b.get_object('org.freedesktop.ModemManager1', sys.argv[2]); "
         "print(o.Get(sys.argv[3], 'Rate', dbus_interface='org.freedesktop.DBus.Properties'))",
         bus, PATH, SIGNAL], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert rate.stdout == "10\n"
    modem_manager.kill()
    modem_manager.wait()
    time.sleep(0.1)
    with pytest.raises(SensorError, match="ModemManager refuses GetManagedObjects"):
        modem.read(20)
    modem.close()


def test_no_bus_is_named(tmp_path: Path) -> None:
    """A container without the system's bus says so."""
    modem = Modem(f"unix:path={tmp_path}/none")
    with pytest.raises(SensorError, match="ModemManager cannot be asked"):
        modem.read(0)
    modem.close()


def test_identities_are_not_readings() -> None:
    """Nothing but strengths is taken of what ModemManager tells."""
    objects = {PATH: {
        MODEM: {"SignalQuality": [50, True], "EquipmentIdentifier": "356938035643809"},
        f"{MODEM}.Location": {"Location": {1: "262,01,,00A1B2C3"}},
        SIGNAL: {"Rate": 5, "Lte": {"rsrp": -100.0, "cid": 7.0}},
    }}  # fmt: skip
    values, quiet = parse_objects(objects)
    assert values == {"modem_signal_percent": 50, "modem_rsrp_dbm.lte": -100.0}
    assert quiet is None
    assert "3569" not in json.dumps(values)


def test_what_is_not_recent_is_missing() -> None:
    """A quality of minutes ago is no reading; no modem is none."""
    objects = {PATH: {MODEM: {"SignalQuality": [50, False]}, SIGNAL: {}}}
    assert parse_objects(objects) == ({"modem_signal_percent": None}, PATH)
    assert parse_objects({}) == ({}, None)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rsrp", "Lte", "SignalQuality", "Rate", SIGNAL, MODEM]), inner
        )
    ),
    max_leaves=10,
)


@given(
    ANYTHING
    | st.fixed_dictionaries({PATH: st.fixed_dictionaries({SIGNAL: ANYTHING, MODEM: ANYTHING})})
)
def test_any_answer_is_readings_or_an_error_of_ours(objects: Any) -> None:
    """Whatever a ModemManager says, strengths are within their ranges or missing."""
    try:
        values, _ = parse_objects(objects)
    except SensorError:
        return
    check_values(values, "modem")
    assert all(v is None or -156 <= v <= 100 for v in values.values())


def test_the_extra_is_named_where_it_is_missing(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent runs without it; the sensor says what to install."""
    monkeypatch.setitem(sys.modules, "dbus_fast", None)
    modem = Modem(bus)
    with pytest.raises(Exception, match=r"edgekit\[modem\]"):
        modem.read(0)
    modem.close()
