"""``edgekit doctor``: a host is judged by what building needs, a device by what running needs."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli.findings import memory_findings
from edgekit.cli.main import main
from edgekit.errors import MissingExtraError
from edgekit.power import Clock, Jetson

BUILD_ONLY = {"onnx", "numba", "torch", "huggingface_hub", "tensorrt"}


def doctor(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the findings by what was looked for."""
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments, "--json"])
    report = json.loads(capsys.readouterr().out)
    code = caught.value.code
    assert isinstance(code, int)
    assert report["healthy"] is (code == 0)
    return code, {finding["what"]: finding for finding in report["findings"]}


def without(monkeypatch: pytest.MonkeyPatch, modules: set[str]) -> None:
    """Let modules be not installed."""
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name in modules else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_device_needs_no_build_packages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what only building needs a device is healthy, a host is not; both name it."""
    without(monkeypatch, BUILD_ONLY)
    monkeypatch.setattr(sys, "version_info", (3, 10, 12, "final", 0))
    code, found = doctor(capsys, "--device")
    assert code == 0
    assert found["Python"]["state"] == "ok"
    build = found["build, verify, eval"]
    assert (build["state"], build["detail"]) == ("missing", "without onnx, numba")
    engines = found["TensorRT engines on this machine"]
    assert engines["state"] == "missing"
    assert engines["remedy"].startswith("tensorrt comes with JetPack on the device; the others")
    assert "edgekit[tensorrt]" in engines["remedy"]
    code, found = doctor(capsys)
    assert code == 1
    assert found["Python"]["state"] == found["build, verify, eval"]["state"] == "problem"


def test_engines_need_more_than_tensorrt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where JetPack brought TensorRT, doctor names the bindings that are missing beside it."""
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        if name == "cuda.bindings":
            raise ModuleNotFoundError(name)
        return real("json") if name == "tensorrt" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    _, found = doctor(capsys)
    engines = found["TensorRT engines on this machine"]
    assert (engines["state"], engines["detail"]) == ("missing", "without cuda-bindings")
    assert engines["remedy"] == "pip install 'edgekit[tensorrt]'"


def test_device_needs_what_runs_a_bundle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that cannot run a bundle is unhealthy, and is told which extra brings it."""
    without(monkeypatch, {"onnxruntime", "jinja2"})
    code, found = doctor(capsys, "--device")
    assert code == 1
    finding = found["run, verify --no-graphs"]
    assert (finding["state"], finding["detail"]) == ("problem", "without onnxruntime, jinja2")
    assert "edgekit[device]" in finding["remedy"]


def test_jetson_is_not_sent_to_pypi_for_cuda(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On aarch64 nobody is told to install PyPI's onnxruntime-gpu, which has no code for Orin."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    _, found = doctor(capsys, "--device")
    assert "sm_87" in found["run bundles on a GPU"]["remedy"]


def test_power_and_clocks_are_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Jetson in a slow mode is healthy, and told what to set before anything is measured."""
    clock = Clock(612.0, 612.0, 612.0)
    slow = Jetson("AGX", "30W", 2, 0, clock, (clock,), "schedutil", None, (), 0)
    monkeypatch.setattr("edgekit.cli.commands.doctor.read_machine", lambda: slow)
    _, found = doctor(capsys, "--device")
    power = found["power and clocks"]
    assert power["state"] == "missing"
    assert power["detail"] == "AGX, power mode 30W, GPU up to 612 MHz, clocks pinned"
    assert "sudo nvpmodel -m 0" in power["remedy"]


@pytest.mark.parametrize("width", [50, 80])
def test_findings_are_whole_at_any_width(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command or a variable to copy stands in one line, and no line is wider than asked for."""
    without(monkeypatch, {"tensorrt", "tensorrt_rtx"})
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("edgekit.cli.commands.doctor.find_builder", no_builder)
    monkeypatch.delenv("EDGEKIT_OPTIMUM_PYTHON", raising=False)
    with pytest.raises(SystemExit):
        main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any("EDGEKIT_OPTIMUM_PYTHON=DIR/bin/python" in line for line in lines)
    said = " ".join(line.strip() for line in lines)
    assert "without a TensorRT builder Install one with: pip install 'edgekit[trt-check]'" in said


def no_builder() -> None:
    raise MissingExtraError("the TensorRT compile check", "trt-check")


def board(root: Path, *, available_kb: int, swaps: str, huge: str) -> Path:
    """Make a tree of a machine with 64 GB."""
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(
        f"MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n"
    )
    (root / "proc/swaps").write_text(f"Filename Type Size Used Priority\n{swaps}")
    (root / "sys/kernel/mm/transparent_hugepage").mkdir(parents=True)
    (root / "sys/kernel/mm/transparent_hugepage/enabled").write_text(huge)
    return root


def test_advice_on_a_devices_memory(tmp_path: Path) -> None:
    """A desktop that eats the reserve, zram, and huge pages for all are told, with what to do."""
    zram = "/dev/zram0 partition 3900000 0 5\n/dev/zram1 partition 3900000 0 5\n"
    bad = board(tmp_path, available_kb=12_000_000, swaps=zram, huge="[always] madvise never\n")
    free, swap, pages = memory_findings(bad)
    assert (free.state, swap.state, pages.state) == ("missing", "missing", "missing")
    assert "less than the reserve of 20 %" in free.detail
    assert "7.99 GB, of it in zram" in swap.detail
    assert "nvzramconfig" in swap.remedy
    assert pages.remedy.startswith("echo madvise | sudo tee /sys/")


def test_a_device_in_order(tmp_path: Path) -> None:
    """What is free for a model is told; nothing is to be done."""
    disk = "/mnt/swap file 1000000 0 -2\n"
    good = board(tmp_path, available_kb=60_000_000, swaps=disk, huge="always [madvise] never\n")
    findings = memory_findings(good)
    assert [(f.state, f.remedy) for f in findings] == [("ok", "")] * 3
    assert "for a model after the reserve" in findings[0].detail
    (good / "proc/swaps").write_text("Filename Type Size Used Priority\n")
    assert memory_findings(good)[1].detail.startswith("none")


def test_memory_is_looked_at_on_devices_only(capsys: pytest.CaptureFixture[str]) -> None:
    """A host that builds is not advised."""
    assert "transparent huge pages" in doctor(capsys, "--device")[1]
    assert "transparent huge pages" not in doctor(capsys)[1]
