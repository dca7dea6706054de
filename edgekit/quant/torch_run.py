"""Torch's global switches, set for one calibration run and put back after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgekit.errors import QuantizationError


def torch_device(name: str) -> torch.device:
    """Return a device torch can use now.

    Raises:
        QuantizationError: It is unknown or not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise QuantizationError(
            f"{name!r} is no torch device", "Use cpu, cuda or cuda:N"
        ) from error
    if device.type not in {"cpu", "cuda"}:
        raise QuantizationError(f"calibration does not run on {name!r}", "Use cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise QuantizationError(
            f"torch finds no device {name!r}", "Use --device cpu, or install a CUDA build of torch"
        )
    return device


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Run with ``threads`` CPU threads and kernels that give the same bits every time."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    # cuBLAS is deterministic only with a fixed workspace; it reads this when first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(before)
