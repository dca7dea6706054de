"""The per-tensor error report: order, units and the error-free case."""

from __future__ import annotations

from edgekit.quant.report import error_report
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import WeightError


def test_worst_first_with_decibels() -> None:
    """Rows are sorted by relative error; a tenth of the amplitude is 20 dB; ties go by name."""
    errors = {
        "b": WeightError(1.0, 100.0, 0.25),
        "c": WeightError(4.0, 100.0, 0.123456),
        "a": WeightError(1.0, 100.0, 0.25),
    }
    rows = error_report(errors, dict.fromkeys("abc", QuantScheme(4, 64)))
    assert [row["name"] for row in rows] == ["c", "a", "b"]
    assert rows[0] == {
        "name": "c",
        "scheme": "w4-g64",
        "relative_rmse": 0.2,
        "sqnr_db": 13.98,
        "max_abs_error": 0.1235,
    }
    assert rows[1]["sqnr_db"] == 20.0


def test_an_exact_weight_has_no_ratio() -> None:
    """No error is a ratio of zero and no decibels, also where the weight is all zeros."""
    rows = error_report({"zero": WeightError(0.0, 0.0, 0.0)}, {"zero": QuantScheme(8, 0)})
    assert rows[0]["relative_rmse"] == 0.0
    assert rows[0]["sqnr_db"] is None
