"""Numba kernels that choose the codes of one block of input channels, channel by channel.

Each channel's choice moves what the channels after it see, so the loop over channels cannot be
vectorized; the output channels, which never meet, can. In torch every channel costs half a dozen
small calls and a pass over the whole block in memory; here a tile of output channels stays in the
first-level cache for the whole block. No sum is reassociated; products are fused with the sums they
enter where the CPU can, as torch does, so that the codes are those of the torch loops in
:mod:`edgekit.quant.gptq` and :mod:`edgekit.quant.refine`, which run on a GPU.

Where output channels do meet (:func:`descend_coupled`), the loop is over both.

All arrays are float32, laid out [channels, N]; ``low`` and ``high`` are the smallest and largest
code. ``lanes`` is how many output channels a tile has: an argument and not a constant, because LLVM
unrolls short constant loops into scalar code before it vectorizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

LANES = 64
"""A tile of 128 channels is 32 KiB, a first-level cache."""


@njit(nogil=True, cache=True)
def _load(source: Any, first: int, tile: Any) -> None:
    """Fill ``tile`` [channels, lanes] from columns ``first``..; lanes past the last are zero."""
    size = min(tile.shape[1], source.shape[1] - first)
    for k in range(tile.shape[0]):
        for lane in range(size):
            tile[k, lane] = source[k, first + lane]
        for lane in range(size, tile.shape[1]):
            tile[k, lane] = np.float32(0)


@njit(nogil=True, cache=True, fastmath={"contract"})
def _spread(tile: Any, k: int, factors: Any, moved: Any) -> None:
    """Add ``factors[j] * moved`` to every channel j after ``k``."""
    for j in range(k + 1, tile.shape[0]):
        factor = factors[j]
        for lane in range(tile.shape[1]):
            tile[j, lane] += factor * moved[lane]


@njit(nogil=True, cache=True)
def round_channels(
    block: Any, steps: Any, spread: Any, low: Any, high: Any, lanes: int, codes: Any, errors: Any
) -> None:
    """GPTQ within a block: round each channel and let those after it make up for its error.

    Args:
        block: [channels, N], the weights as the channels before the block left them.
        steps: [channels, N], scales.
        spread: [channels, channels], the block of the inverse Hessian's upper factor.
        low: See the module.
        high: See the module.
        lanes: See the module.
        codes: [channels, N], filled.
        errors: [channels, N], filled: each channel's error over its diagonal element.
    """
    channels, rows = block.shape
    tile = np.empty((channels, lanes), np.float32)
    moved = np.zeros(lanes, np.float32)
    for first in range(0, rows, lanes):
        size = min(lanes, rows - first)
        _load(block, first, tile)
        for k in range(channels):
            for lane in range(size):
                step = steps[k, first + lane]
                code = min(max(np.rint(tile[k, lane] / step), low), high)
                codes[k, first + lane] = code
                error = (tile[k, lane] - code * step) / spread[k, k]
                errors[k, first + lane] = error
                moved[lane] = -error
            _spread(tile, k, spread[k], moved)


@njit(nogil=True, cache=True)
def descend_channels(
    slope: Any, local: Any, steps: Any, low: Any, high: Any, lanes: int, codes: Any, change: Any
) -> None:
    """Coordinate descent within a block: move each code to the best value given all others.

    Args:
        slope: [channels, N], gradient H (Q - W) before the block is entered.
        local: [channels, channels], the block of H, symmetric.
        steps: [channels, N], scales.
        low: See the module.
        high: See the module.
        lanes: See the module.
        codes: [channels, N], changed in place.
        change: [channels, N], Q - W, changed in place.
    """
    channels, rows = slope.shape
    tile = np.empty((channels, lanes), np.float32)
    moved = np.zeros(lanes, np.float32)
    for first in range(0, rows, lanes):
        size = min(lanes, rows - first)
        _load(slope, first, tile)
        for k in range(channels):
            curve = local[k, k]
            if not curve > np.float32(0):  # a channel that is never active has nothing to gain
                continue
            for lane in range(size):
                step = steps[k, first + lane]
                code = codes[k, first + lane]
                best = min(max(np.rint(code - tile[k, lane] / (curve * step)), low), high)
                moved[lane] = (best - code) * step
                codes[k, first + lane] = best
                change[k, first + lane] += moved[lane]
            _spread(tile, k, local[:, k], moved)


@njit(nogil=True, cache=True, fastmath={"contract"})
def _add(target: Any, factor: Any, values: Any) -> None:
    """Add ``factor * values`` to ``target``, all [N]."""
    for n in range(target.shape[0]):
        target[n] += factor * values[n]


@njit(nogil=True, cache=True)
def descend_coupled(
    slope: Any, local: Any, coupling: Any, steps: Any, low: Any, high: Any, codes: Any, change: Any
) -> None:
    """As :func:`descend_channels`, where the errors of output channels add up to one effect.

    Most codes stay, and only one that moves is told to the others.

    Args:
        slope: [channels, N], gradient H (Q - W) G before the block is entered; used up.
        local: [channels, channels], the block of H, symmetric.
        coupling: [N, N], G, symmetric.
        steps: [channels, N], scales.
        low: See the module.
        high: See the module.
        codes: [channels, N], changed in place.
        change: [channels, N], Q - W, changed in place.
    """
    channels, rows = slope.shape
    moved = np.empty(rows, np.float32)
    for k in range(channels):
        curve = local[k, k]
        if not curve > np.float32(0):  # a channel that is never active has nothing to gain
            continue
        moved[:] = np.float32(0)
        stay = True
        for n in range(rows):
            step, code = steps[k, n], codes[k, n]
            best = min(
                max(np.rint(code - slope[k, n] / (curve * coupling[n, n] * step)), low), high
            )
            if best != code:
                difference = (best - code) * step
                codes[k, n] = best
                change[k, n] += difference
                _add(slope[k], curve * difference, coupling[n])
                _add(moved, difference, coupling[n])
                stay = False
        if stay:
            continue
        for j in range(k + 1, channels):
            _add(slope[j], local[j, k], moved)
