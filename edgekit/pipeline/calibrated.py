"""Recipes that need data: mixed schemes by measured sensitivity, codes by GPTQ or AWQ.

A calibrated build is sequential (each layer is quantized on what the layers before it produce), so
an interrupted one resumes only when calibration had finished.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.writer import Noted
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import CalibrationError
from edgekit.models.config import all_linears
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.stored import Store, StoredModel, store_dense_values, store_weight
from edgekit.progress import Progress
from edgekit.quant.calibrate import CalibrationOptions, calibrate_model
from edgekit.quant.calibration import CalibrationSet, load_calibration
from edgekit.quant.packing import pack_codes
from edgekit.quant.plan import Schemes
from edgekit.quant.sensitivity import measure_sensitivity, mixed_plan
from edgekit.quant.tensor import QuantizedWeight, WeightError
from edgekit.text.chat_template import ChatTemplate
from edgekit.text.tokenizer import Tokenizer

SENSITIVITY_TOKENS = 2048
"""Tokens on which linears are ranked; more change the order little."""


def read_calibration(request: BuildRequest, checkpoint: Checkpoint) -> CalibrationSet | None:
    """Return the calibration data of a recipe that needs some; None for the others.

    Raises:
        CalibrationError: It is needed and not given, or has the wrong form.
    """
    recipe = request.recipe
    if not recipe.needs_calibration:
        return None
    if request.calibration is None:
        raise CalibrationError(
            f"recipe {recipe.name} needs calibration data",
            "Give --calibration FILE (.jsonl or .txt), or use a recipe that needs none",
        )
    options = recipe.calibration
    template = ChatTemplate.from_folder(checkpoint.path)
    return load_calibration(
        request.calibration,
        Tokenizer.from_folder(checkpoint.path),
        tokens=options.tokens,
        window=options.window,
        seed=options.seed,
        segment_tokens=options.segment_tokens if options.segment_tokens[1] else None,
        render=(lambda messages: template.render(list(messages))) if template else None,
    )


def mix_schemes(
    request: BuildRequest,
    checkpoint: Checkpoint,
    schemes: Schemes,
    calibration: CalibrationSet,
    progress: Progress,
) -> dict[str, Any]:
    """Return the plan with the recipe's bit budget spent where divergence falls most."""
    budget = request.recipe.quant.mixed_bits_per_weight
    progress.start("sensitivity", checkpoint.stored_bytes)
    windows = calibration.windows[: max(1, SENSITIVITY_TOKENS // calibration.windows.shape[1])]
    sample = CalibrationSet(windows, calibration.digest, calibration.source_tokens)
    sensitivity = measure_sensitivity(
        checkpoint.tensor,
        checkpoint.config,
        schemes,
        sample,
        options=CalibrationOptions(threads=request.threads),
        progress=progress,
    )
    mixed = mixed_plan(checkpoint.config, schemes, sensitivity, budget)
    changed = sum(mixed[name] != scheme for name, scheme in schemes.items())
    progress.finish(f"{changed} of {len(mixed)} linears differ from the recipe's table")
    return mixed


def store_calibrated(
    request: BuildRequest,
    store: Store,
    schemes: Schemes,
    calibration: CalibrationSet,
    model: StoredModel,
) -> None:
    """Quantize every planned linear on calibration data and store it.

    Norms and biases that calibration changed are stored too, and noted in ``model``, so that the
    dense stage leaves them alone.
    """
    algorithm: Any = request.recipe.quant.algorithm
    what = [algorithm, calibration.digest, request.threads]
    marker = store.key("calibration", what)
    done = store.writer.resume(marker)
    if done is not None and _take_back(store, schemes, what, done, model):
        return
    dense: list[TensorEntry] = []

    def emit(
        name: str,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.float16],
        error: WeightError,
    ) -> None:
        scheme = schemes[name]
        if scheme is None:
            raise AssertionError(name)
        packed = pack_codes(codes, scales, scheme, scale_exponent=store.exponents.of_weight(name))
        weight = QuantizedWeight(
            scheme, packed.in_features, packed.out_features, packed.packed, packed.scales, error
        )
        noted = Noted(store_weight(store.writer, name, weight), asdict(error))
        store.writer.note(store.key(name, [*what, asdict(scheme)]), noted)
        model.errors[name] = error
        model.add(*noted.entries)

    def emit_dense(name: str, values: npt.NDArray[np.float32]) -> None:
        dense.append(store_dense_values(store, name, values))

    calibrate_model(
        store.checkpoint.tensor,
        store.checkpoint.config,
        schemes,
        calibration,
        emit=emit,
        emit_dense=emit_dense,
        options=CalibrationOptions(algorithm=algorithm, threads=request.threads),
        progress=store.progress,
    )
    latest = {entry.name: entry for entry in dense}
    store.writer.note(marker, Noted(tuple(latest.values())))
    model.add(*latest.values())


def _take_back(
    store: Store, schemes: Schemes, what: list[Any], done: Noted, model: StoredModel
) -> bool:
    """Take up a finished calibration's blobs; False when any is missing."""
    found = []
    for linear in all_linears(store.checkpoint.config):
        scheme = schemes[linear.name]
        if scheme is None:
            continue
        noted = store.writer.resume(store.key(linear.name, [*what, asdict(scheme)]))
        if noted is None:
            return False
        found.append((linear.name, noted))
    for name, noted in found:
        model.errors[name] = WeightError(**noted.facts)
        model.add(*noted.entries)
    model.add(*done.entries)
    return True
