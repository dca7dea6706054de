"""The made-up parts of simulated devices: clocks, outages, readings, certificates, descriptors."""

from __future__ import annotations

import json
import os
import random
import ssl
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import mqtt_certificates
import pytest

from device.simulator.certificates import Authority
from device.simulator.clock import boottime_ms, open_clock
from device.simulator.day import MadeUpSensors, Spells
from device.simulator.outages import OutageRates, Outages
from device.simulator.rings import readings_digest
from device.simulator.settings import MAX_DEVICES, Settings
from device.telemetry.alarm_rules import PERIOD_S, rules_from_config
from device.telemetry.alarms import Alarms
from device.telemetry.clock import boot_id
from edgekit.contracts.series import check_values
from edgekit.contracts.topics import Device
from edgekit.errors import ConfigError, StorageError

DAY_S = 86_400
HERE = Path(__file__).parent


def settings(folder: Path, **changes: object) -> Settings:
    """Return settings that would run."""
    told: dict[str, object] = {
        "broker": "localhost",
        "port": 8883,
        "ca": folder / "ca.pem",
        "certificates": folder,
        "rings": folder,
    }
    return Settings(**{**told, **changes})  # type: ignore[arg-type]


def test_clocks_of_a_folder_agree_and_never_go_back(tmp_path: Path) -> None:
    """A process that is started again goes on in the same time, wherever it began."""
    first = open_clock(tmp_path, 50.0)
    before = (first.monotonic_ms(), first.time_ms())
    time.sleep(0.05)
    again = open_clock(tmp_path, 50.0)
    after = (again.monotonic_ms(), again.time_ms())
    assert after[0] - before[0] >= 2500
    assert abs((after[0] - before[0]) - (after[1] - before[1])) <= 2
    assert first.is_synced()


def test_a_new_clock_has_the_right_time(tmp_path: Path) -> None:
    """A folder's devices begin now, however long the machine runs already."""
    assert abs(open_clock(tmp_path, 10.0).time_ms() - time.time_ns() // 1_000_000) < 5000


def test_a_clock_file_that_says_nothing_is_refused(tmp_path: Path) -> None:
    """A spoiled file is named, not replaced: rings beside it would see their time go back."""
    path = tmp_path / f"clock-{boot_id()}.json"
    for text in ("", "[]", json.dumps({"speed": 1.0, "boot_ms": boottime_ms()})):
        path.write_text(text)
        with pytest.raises(StorageError, match="says no time"):
            open_clock(tmp_path, 1.0)
    with pytest.raises(StorageError, match="cannot write"):
        open_clock(path / "below", 1.0)


@pytest.mark.parametrize("speed", [0.0, -1.0, 1001.0, float("nan")])
def test_a_speed_must_mean_something(speed: float, tmp_path: Path) -> None:
    """Clocks do not stand still, and no faster ones are offered than sessions can follow."""
    with pytest.raises(ConfigError, match="speed is"):
        open_clock(tmp_path, speed)


def test_outages_have_the_share_and_length_that_were_asked_for() -> None:
    """Over two months the network is away a tenth of the time, five minutes on average."""
    outages = Outages(OutageRates(share=0.1, mean_s=300.0), random.Random(1))
    seen = [outages.is_out(second) for second in range(0, 60 * DAY_S, 30)]
    begun = sum(now and not before for before, now in pairwise(seen))
    assert 0.09 < sum(seen) / len(seen) < 0.11
    assert 270 < 30 * sum(seen) / begun < 330


def test_without_outages_the_network_stays() -> None:
    """A share of none is none."""
    outages = Outages(OutageRates(), random.Random(1))
    assert not any(outages.is_out(second) for second in range(0, DAY_S, 60))


@pytest.mark.parametrize(("share", "mean_s"), [(1.0, 60.0), (-0.1, 60.0), (0.1, 0.0)])
def test_outages_must_mean_something(share: float, mean_s: float) -> None:
    """A network that is always away, or for no time, is refused."""
    with pytest.raises(ConfigError, match="outages'"):
        OutageRates(share, mean_s)


def test_alarms_rise_and_clear_now_and_then() -> None:
    """A made-up day raises alarms of memory and heat under the shipped rules, and ends them."""
    sensors = MadeUpSensors(3, PERIOD_S, spells_s=3600)
    alarms = Alarms(rules_from_config({}))
    decided = []
    for second in range(0, DAY_S, int(PERIOD_S)):
        decided += alarms.step(sensors.read(float(second)), float(second))
    raised = [(one.alarm, one.reading) for one in decided if one.state == "raised"]
    cleared = [(one.alarm, one.reading) for one in decided if one.state == "cleared"]
    assert {alarm for alarm, _ in raised} == {"gpu_memory", "temperature"}
    assert 10 < len(raised) < 60
    assert sorted(raised) == sorted(cleared) or len(raised) - len(cleared) == len(alarms.raised)


def test_readings_are_those_of_the_contract() -> None:
    """Made-up readings bear the contract's names, and none that a simulated device measures."""
    values = MadeUpSensors(1, PERIOD_S, spells_s=60.0).read(0.0)
    assert check_values(values, "made up") == values
    assert len(values) > 50
    assert not [name for name in values if name.startswith(("link_", "mqtt_", "ring_"))]


def test_spells_are_the_same_for_a_seed() -> None:
    """A seed gives the same day again, and another one another."""

    def day(seed: int) -> list[bool]:
        spells = Spells(seed, 3600.0)
        return [bool(spells.readings(float(second))) for second in range(0, DAY_S, 30)]

    assert day(1) == day(1) != day(2)
    assert 0 < sum(day(1)) < len(day(1)) / 2


def test_a_digest_sees_what_readings_mean_and_nothing_else() -> None:
    """What batches do not keep apart is one digest; every other change is another."""
    digest = readings_digest({"gpu_mhz": 5, "emc_mhz": 0.0})
    assert digest == readings_digest({"emc_mhz": -0.0, "gpu_mhz": 5.0, "uptime_s": None})
    assert digest != readings_digest({"gpu_mhz": 6, "emc_mhz": 0.0})
    assert digest != readings_digest({"gpu_mhz": 5})
    assert digest != readings_digest({"gpu_mhz": 5, "uptime_s": 0.0})


def test_certificates_are_made_once(tmp_path: Path) -> None:
    """Devices that lack one get a key and a certificate that TLS loads; others keep theirs."""
    authority = Authority(mqtt_certificates.Authority(tmp_path / "ca", "devices").bundle())
    names = [Device("acme", f"d{number}") for number in range(3)]
    assert authority.issue(tmp_path, names[:2]) == 2
    before = (tmp_path / "d0.pem").read_bytes()
    assert authority.issue(tmp_path, names) == 1
    assert (tmp_path / "d0.pem").read_bytes() == before
    assert (tmp_path / "d0-key.pem").stat().st_mode & 0o777 == 0o600
    context = ssl.create_default_context(cafile=tmp_path / "ca/devices-ca.pem")
    context.load_cert_chain(tmp_path / "d0.pem", tmp_path / "d0-key.pem")
    (found,) = [
        ssl._ssl._test_decode_cert(str(tmp_path / "d2.pem"))["subject"]  # type: ignore[attr-defined]
    ]
    assert found == ((("commonName", "acme/device/d2"),),)


def test_a_file_that_is_no_authority_is_named(tmp_path: Path) -> None:
    """A certificate without its key, or nothing at all, is refused with the file's name."""
    for path in (mqtt_certificates.Authority(tmp_path, "x").certificate, tmp_path / "nothing.pem"):
        with pytest.raises(ConfigError, match=f"{path.name} is no authority"):
            Authority(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": 0}, "0 devices in one process"),
        ({"devices": MAX_DEVICES + 1}, "1001 devices in one process"),
        ({"spread_s": -1.0}, "spread over -1 s"),
        ({"spells_s": 0.0}, "spells are 0 s apart"),
        ({"tenant": "no/level"}, "tenant"),
        ({"sample_s": 1.0}, "sample_s is 1.0"),
        ({"prefix": "x" * 60}, "is not 1 to 64"),
        ({"prefix": "x" * 50}, "66 characters"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    """Whatever a device's own configuration would refuse is refused before any device starts."""
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, **changes)


def test_a_device_has_its_name_everywhere(tmp_path: Path) -> None:
    """Certificate, ring and identity of a device bear one name, unlike any other's."""
    told = settings(tmp_path, first=7, devices=2, prefix="orin-", tenant="acme")
    assert [told.identity(number).path for number in told.numbers] == [
        "acme/device/orin-00007",
        "acme/device/orin-00008",
    ]
    config = told.config(8)
    assert [config.certificate.name, config.key.name, config.ring.name] == [
        "orin-00008.pem",
        "orin-00008-key.pem",
        "orin-00008.db",
    ]


def test_a_limit_on_files_is_raised_or_named(tmp_path: Path) -> None:
    """A process allows itself what its devices need, and says how much where it may not."""
    script = """
import resource, sys
from pathlib import Path
from test_simulator import settings
from device.simulator.clock import open_clock
from device.simulator.fleet import Fleet
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
Fleet(settings(folder, devices=20), open_clock(folder, 1.0))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
Fleet(settings(folder, first=20, devices=50), open_clock(folder, 1.0))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])}
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env=environment
    )
    assert ended.stdout.strip() == str(8 * 20 + 64)
    assert "50 devices need 464 open files, and a process may have 300" in ended.stderr
