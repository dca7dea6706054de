"""Per-tensor error of a quantized model, worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekit.quant.plan import Schemes
from edgekit.quant.tensor import WeightError


def error_report(errors: Mapping[str, WeightError], schemes: Schemes) -> list[dict[str, Any]]:
    """Return one row per quantized linear, largest relative error first.

    Keys: ``name``, ``scheme``, ``relative_rmse`` (root of squared error over squared weight),
    ``sqnr_db`` (signal to quantization noise, decibels; null when the error is zero),
    ``max_abs_error``. Four significant digits.
    """
    rows = []
    for name, error in errors.items():
        scheme = schemes[name]
        ratio = error.relative_rmse
        rows.append(
            {
                "name": name,
                "scheme": scheme.label if scheme else "dense",
                "relative_rmse": float(f"{ratio:.4g}"),
                "sqnr_db": float(f"{-20 * math.log10(ratio):.4g}") if ratio else None,
                "max_abs_error": float(f"{error.max_abs_error:.4g}"),
            }
        )
    return sorted(rows, key=lambda row: (-float(row["relative_rmse"] or 0), row["name"]))
