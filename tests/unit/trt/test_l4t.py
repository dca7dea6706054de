"""L4T's release as Jetsons write it, and what is refused for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import EngineError
from edgekit.targets import TARGETS
from edgekit.trt.l4t import parse_l4t, read_l4t, require_machine
from edgekit.trt.module import BuilderInfo

RECORDED = {
    "# R39 (release), REVISION: 2.0, GCID: 44530001, BOARD: generic, EABI: aarch64, "
    "DATE: Mon Mar  2 09:00:00 UTC 2026\n# KERNEL_VARIANT: oot\n": "39.2.0",
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
    "TARGET_USERSPACE_LIB_DIR=nvidia\n": "36.4.3",
    "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, "
    "DATE: Tue Aug  1 19:57:35 UTC 2023\n": "35.4.1",
    "# R39 (release), REVISION: 2, GCID: 1": "39.2",
}
TRT = BuilderInfo("tensorrt", "TensorRT", "10.16.2.10", "8.7")
RTX = BuilderInfo("tensorrt_rtx_bindings", "TensorRT-RTX", "1.7.1.116", "8.6")
ORIN = {"l4t": TARGETS["orin"].l4t, "tensorrt": TARGETS["orin"].tensorrt}


@pytest.mark.parametrize(("text", "release"), RECORDED.items())
def test_recorded_lines(text: str, release: str) -> None:
    assert parse_l4t(text) == release


@pytest.mark.parametrize("text", ["", "R39", "# R39 (release)", "# RX (release), REVISION: 2.0"])
def test_other_lines_are_refused(text: str) -> None:
    with pytest.raises(EngineError, match="names no L4T release"):
        parse_l4t(text)


def test_no_jetson_and_an_unreadable_file(tmp_path: Path) -> None:
    """A machine without the file is no Jetson; one whose file cannot be read is an error."""
    assert read_l4t(tmp_path / "missing") is None
    with pytest.raises(EngineError, match="cannot read"):
        read_l4t(tmp_path)


@pytest.mark.parametrize(
    ("l4t", "builder", "said"),
    [
        ("36.4.3", TRT, r"needs L4T >=39.2,<40, this machine has 36.4.3. Install the JetPack"),
        ("39.1.0", TRT, "needs L4T"),
        ("40.0.0", TRT, "needs L4T"),
        ("39.2.0", BuilderInfo("tensorrt", "TensorRT", "10.3.0", "8.7"),
         r"needs TensorRT >=10.15,<12, this machine has 10.3.0. Install that TensorRT"),
    ],
)  # fmt: skip
def test_other_machines_are_refused(l4t: str, builder: BuilderInfo, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        require_machine(ORIN, l4t, builder)


@pytest.mark.parametrize(("l4t", "builder"), [("39.2.0", TRT), ("39.2.1", TRT), (None, TRT),
                                              (None, RTX)])  # fmt: skip
def test_the_bundles_machine_passes(l4t: str | None, builder: BuilderInfo) -> None:
    require_machine(ORIN, l4t, builder)


def test_a_bundle_without_tensorrt_is_refused() -> None:
    with pytest.raises(EngineError, match="target runs no TensorRT"):
        require_machine({"l4t": "", "tensorrt": ""}, None, RTX)
