"""Fitting each engine's parameters on published rates, and comparing it with those kept aside.

``scripts/fit_engines.py`` writes what this gives to ``engines.toml``; a test holds the file to it.
Nothing here is tuned by hand: which row is fitted stands in ``rows.toml``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.models.published_shapes import shape_config
from edgekit.plan.hardware import Machine, find_machine
from edgekit.plan.roofline import Engine
from edgekit.plan.toml_file import read_table
from edgekit.plan.workload import Workload, uniform_workload

DIGITS = 6
"""Significant digits of a stored parameter."""
Kind = Literal["decode", "batch", "prefill", "low_power"]
KINDS: tuple[Kind, ...] = ("decode", "batch", "prefill", "low_power")


@dataclass(frozen=True, slots=True)
class Row:
    """One published rate.

    Attributes:
        engine, calibration: Whose row it is.
        kind: What was measured; ``prefill`` of ``context`` tokens.
        name: The model, as published.
        rate: Tokens a second, of all sequences together.
        fitted: Whether the parameters were fitted on it; the others are kept aside.
        source: Where it was published.
    """

    engine: str
    calibration: str
    kind: Kind
    name: str
    work: Workload
    machine: Machine
    context: int
    batch: int
    rate: float
    fitted: bool
    source: str

    def predict(self, engine: Engine) -> float:
        """Return the rate an engine's parameters give."""
        if self.kind == "prefill":
            seconds = engine.prefill_s(self.work, self.machine, self.context)
            return self.context / seconds if seconds else 0.0
        step = engine.decode_step_s(self.work, self.machine, self.batch, self.context)
        return self.batch / step

    def error(self, engine: Engine) -> float:
        """Return the relative error of :meth:`predict`."""
        return self.predict(engine) / self.rate - 1


def published_rows() -> tuple[Row, ...]:
    """Return every published rate, in the file's order."""
    table = read_table("rows.toml")
    return tuple(
        _row(name, calibration, kind, group, row)
        for name, groups in table["engine"].items()
        for calibration, group in groups.items()
        for kind in KINDS
        for row in group.get(kind, ())
    )


def _row(
    name: str, calibration: str, kind: Kind, group: dict[str, Any], row: dict[str, Any]
) -> Row:
    table = read_table("rows.toml")
    family, hidden, inter, layers, heads, keys, vocab = table["shape"][row["model"]]
    config = shape_config(
        family,
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocab,
    )
    bits = row.get("linear_bits", group["linear_bits"])
    machine = find_machine(row.get("machine", group["machine"]))
    return Row(
        name,
        calibration,
        kind,
        " ".join(filter(None, (row["model"], row.get("note", "")))),
        uniform_workload(config, bits, group["head_bits"]),
        machine.in_mode(row["mode"]) if "mode" in row else machine,
        row["context"],
        row.get("batch", 1),
        row["rate"],
        row.get("use") == "fit",
        table["source"][row["source"]],
    )


def fit_engines(rows: Iterable[Row]) -> dict[tuple[str, str], Engine]:
    """Return every engine's parameters, by name and machine, fitted on its fit rows."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.fitted:
            grouped.setdefault((row.engine, row.calibration), []).append(row)
    return {key: _fit(*key, group) for key, group in grouped.items()}


def fit_sm_bytes_per_clock(rows: Iterable[Row], engines: dict[tuple[str, str], Engine]) -> float:
    """Return the bytes an SM asks for in a clock, from the one rate at reduced clocks."""
    (row,) = (row for row in rows if row.kind == "low_power" and row.fitted)
    engine = engines[row.engine, row.calibration]
    moving_s = row.batch / row.rate - engine.fixed_s(row.machine, row.work.layers)
    clocks = row.machine.streaming_multiprocessors * row.machine.gpu_mhz * 1e6
    return _rounded(row.work.decode_bytes(row.batch, row.context) / moving_s / clocks)


def _fit(name: str, calibration: str, rows: Sequence[Row]) -> Engine:
    decode = [row for row in rows if row.kind == "decode"]
    # Least squares of relative errors: seconds predicted over seconds measured are to be 1.
    streamed = [r.work.decode_bytes(1, r.context) / r.machine.bandwidth_bytes_per_s for r in decode]
    columns = [(s * r.rate, r.work.layers * r.rate) for s, r in zip(streamed, decode, strict=True)]
    inverse, layer_s = _solve(columns, np.ones(len(decode)))
    engine = Engine(name, calibration, _rounded(1 / inverse), _rounded(layer_s))
    engine = _fit_batch(engine, [row for row in rows if row.kind == "batch"])
    return _fit_prefill(engine, [row for row in rows if row.kind == "prefill"])


def _fit_batch(engine: Engine, rows: Sequence[Row]) -> Engine:
    """Fit what each further sequence costs beside its cache."""
    if not rows:
        return engine
    columns, wanted = [], []
    for row in rows:
        measured_s = row.batch / row.rate
        moved = row.work.decode_bytes(row.batch, row.context) / _streaming(engine, row)
        left = measured_s - moved - engine.fixed_s(row.machine, row.work.layers)
        share = (row.batch - 1) / measured_s
        flops_s = row.work.decode_flops(1, 0) / row.machine.fp16_flops_per_s
        columns.append((flops_s * share, row.work.layers * share))
        wanted.append(left / measured_s)
    inverse, layer_s = _solve(columns, np.array(wanted))
    return replace(
        engine, sequence_efficiency=_rounded(1 / inverse), sequence_layer_s=_rounded(layer_s)
    )


def _fit_prefill(engine: Engine, rows: Sequence[Row]) -> Engine:
    """Fit the share of peak FP16 that a prompt reaches: the mean over its rows."""
    if not rows:
        return engine
    shares = []
    for row in rows:
        fixed = engine.fixed_s(row.machine, row.work.layers)
        moved = row.work.weight_bytes / _streaming(engine, row)
        compute_s = row.context / row.rate - fixed - moved
        shares.append(
            row.work.prefill_flops(row.context) / compute_s / row.machine.fp16_flops_per_s
        )
    return replace(engine, compute_efficiency=_rounded(float(np.mean(shares))))


def _streaming(engine: Engine, row: Row) -> float:
    """Return the bytes a second at full clocks, where the SMs are not what limits them."""
    return engine.bandwidth_efficiency * row.machine.bandwidth_bytes_per_s


def _solve(
    columns: Sequence[tuple[float, float]], wanted: npt.NDArray[np.float64]
) -> tuple[float, float]:
    solution, *_ = np.linalg.lstsq(np.array(columns), wanted, rcond=None)
    return float(solution[0]), float(solution[1])


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
