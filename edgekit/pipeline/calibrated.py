"""Recipes that need data: mixed schemes by measured sensitivity, codes by GPTQ or AWQ.

A calibrated build is sequential: each layer is quantized on what the layers before it produce. An
interrupted one goes on after the last layer it finished, from the residual streams kept there
(:mod:`edgekit.pipeline.kept_streams`); measured sensitivities are noted as a whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import __version__
from edgekit.bundle.writer import BundleWriter, Noted
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import CalibrationError, RecipeError
from edgekit.models.config import ModelConfig, all_linears, layer_linears
from edgekit.pipeline.fingerprint import files_as_they_are
from edgekit.pipeline.guiding import Guiding, guidance_size
from edgekit.pipeline.kept_streams import FILES_AT_ONCE, StreamFile
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.stored import (
    Store,
    StoredModel,
    count_stored_bytes,
    store_dense_values,
    store_weight,
)
from edgekit.progress import Progress
from edgekit.quant.calibrate import (
    CalibrationOptions,
    calibrate_model,
    require_torch,
    stream_bytes,
)
from edgekit.quant.calibration import CalibrationSet, load_calibration
from edgekit.quant.packing import pack_codes
from edgekit.quant.plan import Schemes
from edgekit.quant.sensitivity import (
    PROBES,
    measure_sensitivity,
    mixed_plan,
    sensitivity_bytes,
)
from edgekit.quant.tensor import QuantizedWeight, WeightError
from edgekit.text.chat_template import ChatTemplate
from edgekit.text.tokenizer import Tokenizer

SENSITIVITY_TOKENS = 2048
"""Most tokens on which linears are ranked; more change the order little."""


def read_calibration(request: BuildRequest, checkpoint: Checkpoint) -> CalibrationSet | None:
    """Return the calibration data of a recipe that needs some; None for the others.

    Raises:
        CalibrationError: It is needed and not given, or has the wrong form.
        EdgekitError: The device cannot be used; see :func:`check_device`.
    """
    check_device(request)
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


def check_device(request: BuildRequest) -> None:
    """Refuse a device that cannot be used, before any work.

    Raises:
        RecipeError: The recipe runs no model that a device could speed up.
        MissingExtraError: torch is not installed.
        QuantizationError: torch finds no such device.
    """
    if request.recipe.needs_calibration:
        require_torch("Calibrated quantization")
    if request.device == "cpu":
        return
    if not request.recipe.needs_calibration:
        raise RecipeError(
            f"recipe {request.recipe.name} is not calibrated and takes no --device",
            "Leave --device out, or use a recipe that needs calibration",
        )
    from edgekit.quant.torch_run import torch_device  # noqa: PLC0415 - needs torch

    torch_device(request.device)


def calibration_options(request: BuildRequest) -> CalibrationOptions:
    """Return how a request calibrates."""
    algorithm: Any = request.recipe.quant.algorithm
    if algorithm == "rtn":
        return CalibrationOptions(threads=request.threads, device=request.device)
    return CalibrationOptions(algorithm, threads=request.threads, device=request.device)


def run_facts(request: BuildRequest, calibration: CalibrationSet | None) -> dict[str, Any] | None:
    """Return what besides the data decides a calibrated bundle's bytes; None without calibration.

    Sums are added up in an order that depends on all three, and a last bit can move a code.
    """
    if calibration is None:
        return None
    torch_version = importlib.metadata.version("torch")
    return {"threads": request.threads, "device": request.device, "torch": torch_version}


def kept_stream_bytes(
    request: BuildRequest, config: ModelConfig, calibration: CalibrationSet | None
) -> int:
    """Return the most disk that kept streams and guidance take; 0 without calibrated codes."""
    if calibration is None or request.recipe.quant.algorithm == "rtn":
        return 0
    options = calibration_options(request)
    streams = FILES_AT_ONCE * stream_bytes(config, calibration, options)
    return streams + (guidance_size(config) if options.is_guided else 0)


def mix_schemes(
    request: BuildRequest,
    checkpoint: Checkpoint,
    schemes: Schemes,
    calibration: CalibrationSet,
    progress: Progress,
) -> dict[str, Any]:
    """Return the plan with the recipe's bit budget spent where divergence falls most.

    What is measured is noted in the work folder's journal, for a later try.
    """
    budget = request.recipe.quant.mixed_bits_per_weight
    mixed_plan(checkpoint.config, schemes, dict.fromkeys(schemes, 1.0), budget)  # is it enough?
    sample = sensitivity_sample(calibration)
    progress.start("sensitivity", sensitivity_bytes(checkpoint.tensor, checkpoint.config))
    with BundleWriter(request.out, overwrite=request.overwrite) as writer:
        key = _sensitivity_key(request, checkpoint, schemes, sample)
        noted = writer.resume(key)
        if noted is None:
            measured = measure_sensitivity(
                checkpoint.tensor,
                checkpoint.config,
                schemes,
                sample,
                options=calibration_options(request),
                progress=progress,
            )
            noted = Noted((), measured)
            writer.note(key, noted)
    mixed = mixed_plan(checkpoint.config, schemes, noted.facts, budget)
    changed = sum(mixed[name] != scheme for name, scheme in schemes.items())
    progress.finish(f"{changed} of {len(mixed)} linears differ from the recipe's table")
    return mixed


def sensitivity_sample(calibration: CalibrationSet) -> CalibrationSet:
    """Return the windows on which linears are ranked; a window that is too long is cut."""
    count = max(1, SENSITIVITY_TOKENS // calibration.windows.shape[1])
    windows = calibration.windows[:count, :SENSITIVITY_TOKENS]
    return CalibrationSet(windows, calibration.digest, calibration.source_tokens)


def _sensitivity_key(
    request: BuildRequest, checkpoint: Checkpoint, schemes: Schemes, sample: CalibrationSet
) -> str:
    parts = {
        "edgekit": __version__,
        "what": "sensitivity",
        "files": files_as_they_are(checkpoint.files),
        "schemes": _plain(schemes),
        "sample": [sample.digest, *sample.windows.shape],
        "probes": PROBES,
        "run": run_facts(request, sample),
    }
    return hashlib.sha256(canonical_bytes(parts)).hexdigest()


def store_calibrated(
    request: BuildRequest,
    store: Store,
    schemes: Schemes,
    calibration: CalibrationSet,
    model: StoredModel,
) -> None:
    """Quantize every planned linear on calibration data and store it.

    Norms and biases that calibration changed are stored too, and noted in ``model``, so that the
    dense stage leaves them alone. A later try goes on after the last layer that was finished.
    """
    options, run = calibration_options(request), run_facts(request, calibration)
    calibrated = _Calibrated(store, schemes, [options.algorithm, calibration.digest, run], model)
    done = calibrated.take_up(None)
    guiding = Guiding(store, calibration, options, run)
    guidance = guiding.guidance() if options.is_guided and not done else None
    size = count_stored_bytes(store.checkpoint)
    store.progress.start("calibrate", size)
    if done:
        store.progress.advance(size, "taken up")
    else:
        calibrate_model(
            store.checkpoint.tensor,
            store.checkpoint.config,
            schemes,
            calibration,
            emit=calibrated.emit,
            emit_dense=calibrated.emit_dense,
            keeper=calibrated,
            options=options,
            exponents={name: store.exponents.of_weight(name) for name in schemes},
            guidance=guidance,
            progress=store.progress,
        )
        calibrated.finish()
    guiding.remove()
    store.progress.finish(f"{options.algorithm}, {len(model.errors)} linears")


class _Calibrated:
    """Stores what calibration emits, and takes up what an earlier try stored.

    Args:
        store: Where to.
        schemes: Of every linear.
        what: Decides the bytes, besides the schemes and what the store knows.
        model: Takes note of the blobs.
    """

    def __init__(self, store: Store, schemes: Schemes, what: list[Any], model: StoredModel) -> None:
        self._store = store
        self._schemes = schemes
        # A linear's codes depend on the schemes of all before it, too.
        self._what = [*what, _plain(schemes)]
        self._model = model
        self._dense: dict[str, TensorEntry] = {}
        self._streams = StreamFile(store.writer.work, store.key("streams", self._what))

    def emit(
        self,
        name: str,
        codes: npt.NDArray[np.int8],
        scales: npt.NDArray[np.float32],
        error: WeightError,
    ) -> None:
        """Store and note a finished linear."""
        scheme, store = self._schemes[name], self._store
        if scheme is None:
            raise AssertionError(name)
        packed = pack_codes(codes, scales, scheme, scale_exponent=store.exponents.of_weight(name))
        weight = QuantizedWeight(
            scheme, packed.in_features, packed.out_features, packed.packed, packed.scales, error
        )
        noted = Noted(store_weight(store.writer, name, weight), asdict(error))
        store.writer.note(store.key(name, self._what), noted)
        self._model.add_linear(name, noted)

    def emit_dense(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Store a changed norm or bias."""
        self._dense[name] = store_dense_values(self._store, name, values)

    def keep(self, layers: int, streams: Sequence[npt.NDArray[np.float32]]) -> None:
        """Note that ``layers`` layers are done, and keep the streams after them."""
        self._store.writer.note(self._key(layers), Noted(tuple(self._dense.values())))
        self._streams.save(layers, streams)

    def load(self) -> tuple[int, list[npt.NDArray[np.float32]]] | None:
        """Take up an earlier try's layers; None if it finished none, or a blob is missing."""
        kept = self._streams.load()
        return kept if kept is not None and self.take_up(kept[0]) else None

    def take_up(self, layers: int | None) -> bool:
        """Take up the blobs of the first ``layers``, or of all; False when any is missing."""
        config, writer = self._store.checkpoint.config, self._store.writer
        done = writer.resume(self._key(layers))
        if done is None:
            return False
        if layers is None:
            linears = all_linears(config)
        else:
            linears = tuple(x for index in range(layers) for x in layer_linears(config, index))
        found = []
        for linear in linears:
            if self._schemes[linear.name] is not None:
                noted = writer.resume(self._store.key(linear.name, self._what))
                if noted is None:
                    return False
                found.append((linear.name, noted))
        for name, noted in found:
            self._model.add_linear(name, noted)
        self._dense = {entry.name: entry for entry in done.entries}
        if layers is None:
            self.finish()
        return True

    def finish(self) -> None:
        """Note that all is done; the streams are needed no more."""
        entries = tuple(self._dense.values())
        self._store.writer.note(self._key(None), Noted(entries))
        self._model.add(*entries)
        self._streams.remove()

    def _key(self, layers: int | None) -> str:
        """Return the key under which the end of a layer, or of all, is noted."""
        name = "calibration" if layers is None else f"calibration, {layers} layers"
        return self._store.key(name, self._what)


def _plain(schemes: Schemes) -> dict[str, Any]:
    """Return schemes as resume keys have them."""
    return {name: asdict(scheme) if scheme else None for name, scheme in schemes.items()}
