"""tegrastats: every form of the line, and never a wrong number from a part of one."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.telemetry.sensors.tegrastats import Load, parse_line
from device.telemetry.sensors.tegrastats_process import Tegrastats
from edgekit.contracts.series import check_values
from edgekit.errors import SensorError

TEXT = (Path(__file__).parents[2] / "data/tegrastats/lines.txt").read_text("utf-8")
LINES = {
    name.removeprefix("# "): line
    for name, line in itertools.pairwise(TEXT.splitlines()[1:])
    if name.startswith("#")
}
MIB = 1024**2


def test_every_form_has_its_lines() -> None:
    """The data holds the three releases, as root and not."""
    assert len(LINES) == 9
    assert {name.partition("-")[0] for name in LINES} == {"r35", "agx64", "r36", "r39", "thor"}


def test_r35_as_root() -> None:
    """Gated sensors are missing, NC rails do not exist, a clock of 0 is one."""
    found = parse_line(LINES["r35-agx64-root"])
    assert (found.ram_used_bytes, found.ram_total_bytes) == (1282 * MIB, 62795 * MIB)
    assert (found.swap_used_bytes, found.swap_total_bytes) == (0, 31398 * MIB)
    assert found.largest_free_block_bytes == 4 * MIB
    assert found.cpus == (Load(0, 729),) * 12
    assert (found.memory, found.gpu) == (Load(0, 2133), Load(0, 0))
    assert found.celsius == {
        "cv0": None, "cpu": 42.593, "tboard": 32.0, "soc2": 39.343, "tdiode": 33.25, "soc0": 39.375,
        "cv1": None, "gpu": None, "tj": 42.593, "soc1": 40.468, "cv2": None,
    }  # fmt: skip
    assert found.milliwatts == {
        "VDD_GPU_SOC": 2399, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4032, "VDDQ_VDD2_1V8AO": 301,
    }  # fmt: skip


def test_negative_power_and_cores_that_are_off() -> None:
    """-398 mW is what the board says; cores that are off are not idle ones."""
    found = parse_line(LINES["agx64-negative"])
    assert found.milliwatts["VDD_CPU_CV"] == -398
    assert found.cpus is not None
    assert found.cpus[7:9] == (Load(0, 1420), Load())
    assert found.gpu == Load(0, None)
    assert found.memory == Load()


def test_r36_and_r39() -> None:
    """Clocks in brackets, three values a rail, two a temperature, no SWAP, no tj."""
    found = parse_line(LINES["r36-agx64-root"])
    assert (found.gpu, found.memory) == (Load(0, 0), Load(3, 2133))
    assert found.milliwatts["VDD_CPU_CV"] == 1607
    found = parse_line(LINES["r39-agx64-root"])
    assert (found.swap_used_bytes, found.swap_total_bytes) == (None, None)
    assert found.gpu == Load(12, 1300)
    assert found.cpu_percent == 15.9
    assert found.celsius == {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625}
    assert found.milliwatts == {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500}
    assert parse_line(LINES["r39-agx64"]).celsius["tj"] == 51.343


def test_a_clock_without_a_load() -> None:
    """Thor's form has clocks alone, and kB blocks."""
    found = parse_line(LINES["thor"])
    assert found.gpu == Load(None, 1000)
    assert found.largest_free_block_bytes == 512 * 1024
    assert found.cpus is None
    assert found.cpu_percent is None


@pytest.mark.parametrize("name", LINES)
def test_every_line_is_readings(name: str) -> None:
    """Names and values are as the contract has them."""
    values = parse_line(LINES[name]).values()
    check_values(values, "line")
    assert values["memory_total_bytes"]


@pytest.mark.parametrize("name", LINES)
def test_a_cut_line_has_no_wrong_number(name: str) -> None:
    """Whatever part of a line comes, each reading is the whole line's, or missing."""
    whole = parse_line(LINES[name])
    values = whole.values()
    for cut in range(len(LINES[name])):
        try:
            part = parse_line(LINES[name][:cut])
        except SensorError:
            continue
        for reading, value in part.values().items():
            assert value is None or value == values[reading], (cut, reading)
        assert part.cpus in {None, whole.cpus}


@pytest.mark.parametrize("name", LINES)
def test_the_end_of_a_line_is_none(name: str) -> None:
    """What lost its beginning is refused."""
    line = LINES[name]
    start = line.index("RAM ")
    for cut in range(start + 1, len(line)):
        with pytest.raises(SensorError, match="no known form"):
            parse_line(line[cut:])


@given(st.sampled_from(sorted(LINES)), st.sampled_from(sorted(LINES)), st.data())
def test_lines_that_run_into_one_another_are_refused(a: str, b: str, data: st.DataObject) -> None:
    """Two writers, or a lost line feed, never make one line's readings."""
    cut = data.draw(st.integers(0, len(LINES[a])))
    with pytest.raises(SensorError):
        parse_line(LINES[a][:cut] + " " + LINES[b] + LINES[a])


@given(st.sampled_from(sorted(LINES)), st.data())
def test_damage_is_an_error_of_ours_or_readings(name: str, data: st.DataObject) -> None:
    """Any bytes put anywhere into a line raise nothing else, and make no value out of range."""
    line = LINES[name]
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, min(start + 20, len(line))))
    noise = data.draw(
        st.text(st.characters(max_codepoint=0x2FF), max_size=12)
        | st.text("0123456789%@[],/-.CmW ", max_size=12)
    )
    try:
        found = parse_line(line[:start] + noise + line[end:])
    except SensorError:
        return
    values = found.values()
    check_values(values, "line")
    loads = (values["gpu_load_percent"], values["emc_load_percent"], values["cpu_load_percent"])
    assert all(load is None or 0 <= load <= 100 for load in loads)
    assert all(c is None or c > -256 for c in found.celsius.values())


@given(st.text())
def test_any_text(text: str) -> None:
    """No text raises anything but our own error."""
    with contextlib.suppress(SensorError):
        parse_line(text)


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_newest_whole_line_of_a_running_program(tmp_path: Path) -> None:
    """A line without its end is not read; without a new line for long there is no reading."""
    program = script(
        tmp_path / "tegrastats",
        f"echo '{LINES['r36-agx64']}'; echo '{LINES['r39-agx64']}'; printf 'RAM 1/2MB '; sleep 60",
    )
    sensor = Tegrastats([str(program)], interval_s=5)
    assert sensor.read(0.0) == {} or sensor.read(0.0)["gpu_load_percent"] == 5
    deadline = time.monotonic() + 10
    while not sensor.read(1.0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sensor.read(2.0)["gpu_load_percent"] == 5
    assert sensor.read(30.0) == {}
    sensor.close()


def test_a_program_that_ends_is_started_again_after_a_while(tmp_path: Path) -> None:
    """Not at once: a program that fails would be started for ever."""
    log = tmp_path / "starts"
    program = script(tmp_path / "tegrastats", f'echo "$@" >> {log}')
    sensor = Tegrastats([str(program)], interval_s=5)
    sensor.read(0.0)
    assert sensor._process is not None
    sensor._process.wait()
    for now_s in (1.0, 59.0, 61.0):
        sensor.read(now_s)
        sensor._process.wait()
    sensor.close()
    assert log.read_text().splitlines() == ["--interval 5000"] * 2


def test_a_program_that_is_not_there_is_named() -> None:
    """The sensor fails; nothing else does."""
    with pytest.raises(SensorError, match="cannot start /no/tegrastats: No such file"):
        Tegrastats([os.fspath(Path("/no/tegrastats"))]).read(0.0)
