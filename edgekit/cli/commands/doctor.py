"""``edgekit doctor``: what this machine can do and what is missing for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from edgekit.cli.findings import Finding, memory_findings
from edgekit.cli.render import console, facts_table, print_json
from edgekit.cli.tables import FactsTable
from edgekit.errors import MissingExtraError, MissingInterpreterError
from edgekit.exporters.optimum import find_optimum
from edgekit.power import Jetson, NotJetson, read_machine
from edgekit.trt.module import find_builder
from edgekit.units import format_bytes

# Feature, the packages it needs (distribution name, module), the extra that brings them.
_RUN = (
    "run, verify --no-graphs",
    (("onnxruntime", "onnxruntime"), ("tokenizers", "tokenizers"), ("jinja2", "jinja2")),
    "device",
)
_BUILD = ("build, verify, eval", (("onnx", "onnx"), ("numba", "numba")), "host")
_FEATURES = (
    _RUN,
    _BUILD,
    ("download from the hub", (("huggingface-hub", "huggingface_hub"),), "host"),
    ("calibrated recipes (GPTQ, AWQ, mixed)", (("torch", "torch"),), "calibrate"),
    (
        "TensorRT engines on this machine",
        (("tensorrt", "tensorrt"), ("cuda-bindings", "cuda.bindings"), ("onnx", "onnx")),
        "tensorrt",
    ),
)
_WITH_JETPACK = "tensorrt"
"""No extra brings it."""


@click.command("doctor")
@click.option("--device", is_flag=True, help="The machine runs bundles and builds none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(*, device: bool, as_json: bool) -> None:
    """Show what this machine can do and what is missing.

    Exits with 1 when something keeps `edgekit build` from working, or with --device `edgekit run`.
    """
    features = [*_features(device=device), _compile_check(), _optimum()]
    machine = read_machine()
    memory = memory_findings() if device or isinstance(machine, Jetson) else []
    findings = [*_machine(device=device), _power(machine), *memory, *features, *_engines()]
    healthy = all(f.state != "problem" for f in findings)
    if as_json:
        print_json(
            {
                "healthy": healthy,
                "findings": [asdict(f) for f in findings],
                "machine": machine.to_dict(),
            }
        )
    else:
        console().print(_table(findings))
    sys.exit(0 if healthy else 1)


def _table(findings: list[Finding]) -> FactsTable:
    marks = {"ok": ("✓", "green"), "missing": ("-", "yellow"), "problem": ("✗", "red")}
    rows: list[tuple[str | Text, str | Text]] = []
    for finding in findings:
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\n{finding.remedy}", style="dim")
        rows.append((Text.assemble(marks[finding.state], " ", finding.what), detail))
    return facts_table("edgekit doctor", rows)


def _machine(*, device: bool) -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(Path.cwd()).free
    python = platform.python_version()
    supported = device or sys.version_info >= (3, 11)
    return [
        Finding(
            "Python",
            "ok" if supported else "problem",
            python,
            "" if supported else "Building needs Python 3.11 or newer",
        ),
        Finding(
            "machine", "ok", f"{platform.machine()}, {cores} cores, {format_bytes(memory)} memory"
        ),
        Finding("disk here", "ok", f"{format_bytes(free)} free in {Path.cwd()}"),
    ]


def _power(machine: Jetson | NotJetson) -> Finding:
    """Say what speeds measured here are worth."""
    warnings = machine.warnings()
    remedy = f"For figures: {'; '.join(warnings)}" if warnings else ""
    return Finding("power and clocks", "missing" if warnings else "ok", machine.describe(), remedy)


def _features(*, device: bool) -> list[Finding]:
    findings = []
    needed = (_RUN[0],) if device else (_RUN[0], _BUILD[0])
    for feature, packages, extra in _FEATURES:
        missing = [dist for dist, module in packages if not _is_installed(module)]
        if not missing:
            versions = ", ".join(f"{dist} {_version(dist)}" for dist, _ in packages)
            findings.append(Finding(feature, "ok", versions))
            continue
        remedy = f"pip install 'edgekit[{extra}]'"
        if _WITH_JETPACK in missing:
            rest = f"; the others with: {remedy}" if len(missing) > 1 else ""
            remedy = f"{_WITH_JETPACK} comes with JetPack on the device{rest}"
        state = "problem" if feature in needed else "missing"
        findings.append(Finding(feature, state, f"without {', '.join(missing)}", remedy))
    return findings


def _is_installed(module: str) -> bool:
    """Whether a module is there; nothing but the packages above it is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is not
        return False


def _compile_check() -> Finding:
    """Look for the builder that `edgekit build` compiles with."""
    what = "compile check"
    try:
        builder = find_builder()
    except MissingExtraError as error:
        remedy = f"Install one with: pip install 'edgekit[{error.extra}]'"
        return Finding(what, "missing", "without a TensorRT builder", remedy)
    return Finding(what, "ok", f"{builder.name} {builder.version} for SM {builder.sm}")


def _optimum() -> Finding:
    """Look for the other Python that Optimum lives in, without importing anything there."""
    what = "export other families (Optimum)"
    try:
        optimum = find_optimum(None, 1)
        version = optimum.installed_version()
    except MissingInterpreterError as error:
        return Finding(what, "missing", error.message, error.remedy)
    return Finding(what, "ok", f"optimum-onnx {version} in {optimum.python}")


def _engines() -> list[Finding]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime  # noqa: PLC0415

    providers = onnxruntime.get_available_providers()
    cuda = "CUDAExecutionProvider" in providers
    remedy = "In an environment of its own: pip install 'edgekit[cuda]'"
    if platform.machine() == "aarch64":
        remedy = "On an Orin it needs an ONNX Runtime built for sm_87, which PyPI has not"
    return [
        Finding(
            "run bundles on a GPU",
            "ok" if cuda else "missing",
            f"ONNX Runtime {onnxruntime.__version__}: {', '.join(providers)}",
            "" if cuda else remedy,
        )
    ]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(version unknown)"
