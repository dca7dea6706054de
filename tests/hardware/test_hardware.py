"""The hardware run, on a fake Orin: its report, and what it says where it cannot run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hardware
import hardware_steps
import pytest
from fake_tensorrt import FakeCuda
from hardware_text import readable
from tensorrt_cases import CONTEXT, INFO, FakeMachine, float_bundle, plan_of, planned

from edgekit.bundle.reader import Bundle
from edgekit.errors import EngineError
from edgekit.pipeline.verify import ENGINE_LIMITS
from edgekit.power import Clock, Jetson
from edgekit.trt.device_build import Machine

ROOT = Path(__file__).parents[2]
ORIN = Jetson(
    board="NVIDIA Jetson AGX Orin Developer Kit",
    power_mode="MAXN",
    power_mode_id=0,
    fastest_mode_id=0,
    gpu=Clock(306.0, 1300.5, 1300.5),
    cpu=(Clock(2201.6, 2201.6, 2201.6),),
    cpu_governor="schedutil",
    memory_pinned=None,
    throttled=(),
    over_current_events=0,
)
OPTIONS = ["--contexts", "20,4096", "--batches", "1,2,16", "--steps", "3"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    plain = float_bundle(tmp_path_factory.mktemp("hardware"))
    return planned(plain, plan_of(plain))


@pytest.fixture
def orin(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """An Orin with everything installed; the bundle's manifest is the planned one."""
    monkeypatch.setattr(hardware, "open_bundle", lambda path: replace(bundle, path=path))
    monkeypatch.setattr(hardware, "doctor", lambda: {"healthy": True})
    monkeypatch.setattr(hardware_steps, "read_machine", lambda: ORIN)
    rate = {"batch": 1, "context_tokens": 20, "decode_tokens_per_s": 1234.0}
    found = {"power_mode": "MAXN", "rates": [rate]}
    monkeypatch.setattr(hardware_steps, "project", lambda *_: found)
    monkeypatch.setattr(hardware_steps, "_installed", bool)
    return FakeMachine(monkeypatch, FakeCuda())


def run(bundle: Bundle, folder: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Run it; returns its exit code and both files."""
    out = folder / "report"
    command = [str(bundle.path), "--out", str(out), "--cache", str(folder / "engines")]
    code = hardware.main([*command, *OPTIONS, *more])
    document: dict[str, Any] = json.loads((out / "hardware.json").read_text())
    return code, document, (out / "hardware.md").read_text()


def test_a_whole_run_is_reported(
    bundle: Bundle, orin: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Engine, gate and speeds of every batch and context that fits; state before and after."""
    code, document, text = run(bundle, tmp_path)
    assert (code, document["verdict"], len(orin.made)) == (0, "passed", 1)
    assert list(document["steps"]) == ["engine", "gate", "projection", "software", "speed"]
    assert document["steps"]["engine"]["found"]["built"]
    assert document["steps"]["gate"]["found"]["passed"]
    rows = document["steps"]["speed"]["found"]
    assert [(row["batch"], row["context"], row["status"]) for row in rows] == [
        (1, 20, "passed"), (1, 4096, "not run"), (2, 20, "passed"), (2, 4096, "not run"),
    ]  # fmt: skip
    assert rows[1]["reason"] == f"the bundle's context is {CONTEXT}"
    assert [row["cuda_graphs"] for row in rows if row["status"] == "passed"] == [1, 2]
    assert all(row["decode_tokens_per_s"] > 0 for row in rows if row["status"] == "passed")
    state = document["states"]["after"]
    assert state["machine"]["power_mode"] == "MAXN"
    assert "clocks are not pinned (gpu)" in state["warnings"][0]
    for said in (
        "passed",
        "TensorRT 10.16.2.10 for SM 8.7",
        "| 2, 20",
        "1234.00",
        "MAXN",
        "not pinned",
    ):
        assert said in text
    assert text in capsys.readouterr().out


def test_a_failed_build_is_reported(bundle: Bundle, orin: FakeMachine, tmp_path: Path) -> None:
    """The report is written all the same, and says in which step and why."""
    orin.failure = EngineError("TensorRT ran out of memory", "Free memory")
    code, document, text = run(bundle, tmp_path)
    assert (code, document["verdict"]) == (1, "failed in engine")
    assert list(document["steps"]) == ["engine", "software"]
    assert "EngineError: TensorRT ran out of memory. Free memory" in text


def test_a_missed_gate_fails_the_run(
    bundle: Bundle, orin: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong answers are figures in the report, and a failure; the speeds are measured as well."""
    limits = replace(ENGINE_LIMITS, mean_abs_difference_nats_max=1e-9)
    monkeypatch.setattr(hardware_steps, "ENGINE_LIMITS", limits)
    code, document, text = run(bundle, tmp_path)
    assert (code, document["verdict"], len(orin.made)) == (1, "failed in gate", 1)
    assert document["steps"]["speed"]["status"] == "passed"
    assert "missed: mean_abs_difference_nats" in text


def test_a_bundle_for_another_jetpack_is_missing_something(
    bundle: Bundle, orin: FakeMachine, tmp_path: Path
) -> None:
    """TensorRT out of range, or no bundle at all: named, and nothing is built."""
    orin.machine = Machine(replace(INFO, version="10.3.0"), "36.4.3")
    code, document, text = run(bundle, tmp_path)
    assert (code, orin.made, document["steps"]) == (1, [], {})
    assert "the bundle needs TensorRT >=10.15,<12, this machine has 10.3.0" in text
    assert hardware.main(["--out", str(tmp_path)]) == 1
    document = json.loads((tmp_path / "hardware.json").read_text())
    assert [row["what"] for row in document["missing"]] == ["a bundle"]


def test_a_machine_that_is_no_jetson_says_what_is_missing(tmp_path: Path) -> None:
    """This machine, for real: a list, a report, exit code 1."""
    script = ROOT / "tests/hardware/hardware.py"
    path = f"{ROOT}:{ROOT / 'tests/bench'}"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "none"), "--out", str(tmp_path / "report")],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    document = json.loads((tmp_path / "report/hardware.json").read_text())
    assert document["verdict"] == "not run, something is missing"
    assert document["doctor"]["machine"]["kind"] == "other"
    missing = [row["what"] for row in document["missing"]]
    assert any(what.startswith("a Jetson: this is") for what in missing)
    assert "TensorRT's Python module" in missing
    assert readable(document) in done.stdout


def test_the_projection_is_the_plans(bundle: Bundle) -> None:
    """`edgekit plan` of the bundle's target, for what fits; an error where it knows none."""
    target = {**bundle.manifest.target, "name": "orin"}
    orin = replace(bundle, manifest=replace(bundle.manifest, target=target))
    found = hardware_steps.project(orin, [20, 4096], [1, 2])
    rows = [(row["batch"], row["context_tokens"]) for row in found["rates"]]
    assert (found["power_mode"], rows) == ("MAXN", [(1, 20), (2, 20)])
    with pytest.raises(EngineError, match="edgekit plan gives no rates"):
        hardware_steps.project(replace(bundle, path=Path("none")), [20], [1])


def test_a_row_that_cannot_be_timed_says_why() -> None:
    """More steps than the context has tokens."""
    session: Any = SimpleNamespace(max_context=100, vocab_size=8)
    (row,) = hardware_steps.time_session(session, [50], [1], 64)
    assert row["reason"] == "68 steps take more than 50 tokens"


def test_temperatures_are_read_where_sensors_answer(tmp_path: Path) -> None:
    for number, text in enumerate(("48250", "", "x")):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"zone-{number}\n")
        (zone / "temp").write_text(text)
    assert hardware_steps.describe_state(tmp_path)["celsius"] == {"zone-0": 48.25}


def test_doctor_that_says_nothing_is_no_failure() -> None:
    found = hardware.doctor((sys.executable, "-c", "import sys; sys.exit('no such thing')"))
    assert found == {"error": "no such thing"}
