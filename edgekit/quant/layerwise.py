"""The streaming pass of calibrated quantization: one decoder layer at a time.

Two residual streams are carried through the model: that of the quantized layers so far and, when
outputs are matched, that of the full-precision layers. See :mod:`edgekit.quant.calibrate` for what
bounds its memory. Needs torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from edgekit.checkpoint.lazy import Float32Array
from edgekit.errors import QuantizationError
from edgekit.models.config import Linear, ModelConfig, all_linears, layer_linears, lm_head
from edgekit.progress import Progress
from edgekit.quant.calibrate import (
    CalibrationOptions,
    CalibrationReport,
    EmitDense,
    EmitLinear,
    StreamKeeper,
    TensorSource,
)
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.coupled import refine_coupled
from edgekit.quant.decoder_layer import SUBLAYERS, Sublayer, linear
from edgekit.quant.fold import Fold, FoldedLayer, fold_head, fold_layer
from edgekit.quant.gptq import GptqFactor, Rounded, round_to_nearest, search_scales
from edgekit.quant.guidance import Guidance
from edgekit.quant.hessian import InputMoments, MomentAccumulator, OutputTarget, output_error
from edgekit.quant.layer_reader import LayerReader
from edgekit.quant.plan import Schemes
from edgekit.quant.refine import refine
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import WeightError
from edgekit.quant.torch_run import repeatable

HEAD_ROWS = 16384
"""Rows of the LM head quantized at a time."""

KEPT_INPUT_BYTES = 1 << 30
"""Inputs of one linear that are kept rather than computed twice."""

Tensors = dict[str, torch.Tensor]


@dataclass(slots=True)
class _Streams:
    """Residual streams of all windows, [n, S, hidden] each; ``full`` is None when not carried."""

    quantized: torch.Tensor
    full: torch.Tensor | None

    def arrays(self) -> list[Float32Array]:
        """Return them as arrays of the same memory."""
        return [stream.numpy() for stream in (self.quantized, self.full) if stream is not None]


class LayerwiseCalibrator:
    """One calibration run; see :func:`edgekit.quant.calibrate.calibrate_model`."""

    def __init__(
        self,
        tensors: TensorSource,
        config: ModelConfig,
        plan: Schemes,
        calibration: CalibrationSet,
        options: CalibrationOptions,
        exponents: Mapping[str, int],
        guidance: Guidance,
        progress: Progress,
    ) -> None:
        self._reader = LayerReader(tensors, config, calibration, options.device, progress)
        self._config = config
        self._plan = plan
        self._options = options
        self._exponents = {x.name: exponents.get(x.name, 0) for x in all_linears(config)}
        self._device = self._reader.device
        self._layer = self._reader.layer
        self._output_error: dict[str, float] = {}
        self._match = options.matches_output
        self._guidance = guidance

    def run(
        self, emit: EmitLinear, emit_dense: EmitDense, keeper: StreamKeeper | None = None
    ) -> CalibrationReport:
        """Quantize the whole model, or what ``keeper`` has no streams of yet."""
        with torch.no_grad(), repeatable(self._options.threads):
            first, streams = self._begin(keeper)
            for index in range(first, self._config.num_hidden_layers):
                self._quantize_layer(index, streams, emit, emit_dense)
                if keeper is not None:
                    keeper.keep(index + 1, streams.arrays())
            self._quantize_head(streams, emit, emit_dense)
        return CalibrationReport(
            self._options.algorithm,
            int(self._reader.calibration.windows.size),
            self._reader.calibration.digest,
            self._output_error,
        )

    def _begin(self, keeper: StreamKeeper | None) -> tuple[int, _Streams]:
        """Return the first layer to do and the streams before it."""
        self._tell("embedding")
        kept = None if keeper is None else keeper.load()
        if kept is None:
            first = self._reader.embed()
            return 0, _Streams(first, first.clone() if self._match else None)
        done, arrays = kept
        skipped = self._reader.open("model.embed_tokens.weight").stored_bytes
        skipped += sum(self._reader.layer_bytes(index) for index in range(done))
        self._reader.progress.advance(skipped, f"taken up after layer {done}")
        streams = [torch.from_numpy(array) for array in arrays]
        return done, _Streams(streams[0], streams[1] if self._match else None)

    def _tell(self, item: str) -> None:
        """Say what is being worked on."""
        self._reader.progress.advance(0, item.removeprefix("model."))

    def _quantize_layer(
        self, index: int, streams: _Streams, emit: EmitLinear, emit_dense: EmitDense
    ) -> None:
        full = self._reader.layer_tensors(index)
        prefix = f"model.layers.{index}."
        specs = {x.name.removeprefix(prefix): x for x in layer_linears(self._config, index)}
        left = self._reader.layer_bytes(index)
        folded = FoldedLayer()
        if self._options.algorithm != "gptq":
            self._tell(f"{prefix}*: channel scales")
            schemes = {short: self._plan[prefix + short] for short in specs}
            exponents = {short: self._exponents[prefix + short] for short in specs}
            batches = (streams.quantized[p].to(self._device) for p in self._batches(streams))
            folded = fold_layer(self._layer, full, schemes, exponents, batches)
            for name in folded.dense:
                emit_dense(prefix + name, full[name].cpu().numpy())
        quantized = dict(full)
        for sublayer in SUBLAYERS:
            self._tell(f"{prefix}{sublayer.linears[0]}: inputs")
            kept = _KeptInputs()
            moments = self._moments(sublayer, full, quantized, streams, kept)
            self._tell(f"{prefix}{sublayer.linears[0]}: {self._options.algorithm}")
            rounding = _Rounding(moments, self._options)
            for short in sublayer.linears:
                scheme = self._plan[prefix + short]
                if scheme is None:
                    continue
                self._tell(f"{prefix}{short}: {self._options.algorithm}")
                weight = full[f"{short}.weight"]
                gradients = self._gradients(prefix + short)
                rounded = rounding(weight, scheme, self._exponents[prefix + short], gradients)
                quantized[f"{short}.weight"] = rounded.dequantize()
                error = _Error(moments, folded.of(short))
                error.add(weight, rounded)
                left -= self._emit(specs[short], [rounded], error, emit)
            if sublayer.residual:
                self._advance(sublayer, quantized, streams, kept)
        self._reader.progress.advance(left, f"{prefix}*".removeprefix("model."))

    def _gradients(self, name: str) -> torch.Tensor | None:
        """Return the second moment of the gradients at a linear's outputs, [N, B], if known."""
        found = self._guidance.get(name)
        return None if found is None else torch.from_numpy(found).to(self._device)

    def _batches(self, streams: _Streams) -> Iterator[slice]:
        size = self._options.batch_of(self._reader.window)
        for start in range(0, streams.quantized.shape[0], size):
            yield slice(start, start + size)

    def _moments(
        self,
        sublayer: Sublayer,
        full: Tensors,
        quantized: Tensors,
        streams: _Streams,
        kept: _KeptInputs,
    ) -> InputMoments:
        """Run all windows up to the sublayer's input and add up its moments.

        The full stream, which waits for nothing, is taken past the sublayer on the way.
        """
        name = sublayer.linears[0]
        rows, columns = full[f"{name}.weight"].shape
        total = MomentAccumulator(
            columns,
            self._device,
            cross=self._match,
            out_features=rows if self._match and sublayer.residual else 0,
        )
        for part in self._batches(streams):
            x = streams.quantized[part].to(self._device)
            inputs = sublayer.inputs(self._layer, quantized, x)
            if sublayer.residual:
                kept.put(part, inputs)
            if streams.full is None:
                total.add(inputs)
                continue
            x_full = streams.full[part].to(self._device)
            inputs_full = sublayer.inputs(self._layer, full, x_full)
            total.add(inputs, inputs_full, x_full - x if sublayer.residual else None)
            if sublayer.residual:
                x_full += linear(full, name, inputs_full)
                streams.full[part] = x_full.to(streams.full.device)
        return total.result()

    def _quantize_head(self, streams: _Streams, emit: EmitLinear, emit_dense: EmitDense) -> None:
        """Quantize the LM head in strips of rows: they share one Hessian and nothing else."""
        spec = lm_head(self._config)
        scheme, exponent = self._plan[spec.name], self._exponents[spec.name]
        table = self._reader.open(spec.weight_key)
        before = self._reader.open("model.norm.weight").stored_bytes
        if scheme is None:
            self._reader.progress.advance(before + table.stored_bytes, spec.name)
            return
        self._reader.progress.advance(before)
        self._tell(f"{spec.name}: inputs")
        norm = self._reader.read("model.norm.weight")
        moments = self._head_moments(norm, streams)
        fold = Fold()
        if self._options.algorithm != "gptq":
            norm, fold, moments = fold_head(norm, table, scheme, exponent, moments)
            emit_dense("model.norm.weight", norm.cpu().numpy())
        self._tell(f"{spec.name}: {self._options.algorithm}")
        rounding, error = _Rounding(moments, self._options), _Error(moments, fold)
        parts: list[Rounded] = []
        for _, rows in self._reader.strips(spec.weight_key, HEAD_ROWS):
            weight = rows if fold.inputs is None else rows * fold.inputs
            rounded = rounding(weight, scheme, exponent)
            error.add(weight, rounded)
            parts.append(Rounded(rounded.codes.cpu(), rounded.scales.cpu()))
        self._emit(spec, parts, error, emit)

    def _head_moments(self, norm: torch.Tensor, streams: _Streams) -> InputMoments:
        total = MomentAccumulator(norm.shape[0], self._device, cross=streams.full is not None)
        for part in self._batches(streams):
            inputs = self._layer.norm(norm, streams.quantized[part].to(self._device))
            if streams.full is None:
                total.add(inputs)
            else:
                total.add(inputs, self._layer.norm(norm, streams.full[part].to(self._device)))
        return total.result()

    def _emit(self, spec: Linear, parts: list[Rounded], error: _Error, emit: EmitLinear) -> int:
        """Hand on a finished linear; returns its stored bytes."""
        codes = torch.cat([part.codes for part in parts]).cpu().numpy()
        scales = torch.cat([part.scales for part in parts]).cpu().numpy()
        if not np.isfinite(scales).all():
            raise QuantizationError(
                f"{spec.name} has weights too large for float16 scales",
                "The checkpoint is damaged, or was not trained for 16 bits: rescale the tensor",
            )
        self._output_error[spec.name] = error.relative_output
        emit(spec.name, codes, scales, error.weight)
        stored_bytes = self._reader.open(spec.weight_key).stored_bytes
        self._reader.progress.advance(stored_bytes, spec.name.removeprefix("model."))
        return stored_bytes

    def _advance(
        self, sublayer: Sublayer, quantized: Tensors, streams: _Streams, kept: _KeptInputs
    ) -> None:
        """Add the sublayer's output to the quantized stream, in place."""
        name, stream = sublayer.linears[0], streams.quantized
        for part in self._batches(streams):
            x = stream[part].to(self._device)
            inputs = kept.take(part)
            if inputs is None:
                inputs = sublayer.inputs(self._layer, quantized, x)
            x += linear(quantized, name, inputs)
            stream[part] = x.to(stream.device)


class _KeptInputs:
    """Inputs of a linear, kept from its moments for its outputs as far as they fit."""

    def __init__(self) -> None:
        self._kept: dict[int, torch.Tensor] = {}
        self._room = KEPT_INPUT_BYTES

    def put(self, part: slice, inputs: torch.Tensor) -> None:
        """Keep a batch's inputs if there is room."""
        if inputs.nbytes <= self._room:
            self._room -= inputs.nbytes
            self._kept[part.start] = inputs

    def take(self, part: slice) -> torch.Tensor | None:
        """Give a batch's inputs away; None: compute them again, to the same bits."""
        return self._kept.pop(part.start, None)


class _Rounding:
    """How the linears that read one input are rounded; factors its Hessian once."""

    def __init__(self, moments: InputMoments, options: CalibrationOptions) -> None:
        self._hessian = moments.hessian
        self._sweeps = options.refine_sweeps
        self._factor: GptqFactor | None = None
        if options.algorithm == "awq":
            return
        self._target = OutputTarget(moments, options.match_damping)
        self._factor = GptqFactor(
            moments.hessian, damping=options.damping, act_order=options.act_order
        )

    def __call__(
        self,
        weight: torch.Tensor,
        scheme: QuantScheme,
        exponent: int,
        gradients: torch.Tensor | None = None,
    ) -> Rounded:
        """Round ``weight`` [N, K]; its scales will be stored multiplied by ``2**exponent``.

        Rows are coupled by their ``gradients`` [N, B], if given.
        """
        target = weight if self._factor is None else self._target(weight)
        scales = search_scales(target, scheme, self._hessian.diagonal(), exponent=exponent)
        if self._factor is None:
            return round_to_nearest(weight, scales, scheme)
        rounded = self._factor.quantize(target, scales, scheme)
        if gradients is None:
            return refine(target, rounded, self._hessian, scheme, self._sweeps, exponent=exponent)
        return refine_coupled(
            target, rounded, self._hessian, gradients, scheme, self._sweeps, exponent=exponent
        )


class _Error:
    """Adds up how far quantized rows are from the weight, and their outputs from its outputs.

    The weight is the checkpoint's: what was folded into it is taken out of both again.
    """

    def __init__(self, moments: InputMoments, fold: Fold) -> None:
        self._hessian = moments.hessian
        self._fold = fold
        self._output = self._power = 0.0
        self.weight = WeightError(0.0, 0.0, 0.0)

    def add(self, weight: torch.Tensor, rounded: Rounded) -> None:
        """Add rows [R, K] of the folded weight."""
        change = rounded.dequantize() - weight
        # The Hessian is that of the folded inputs, which the folded weight undoes.
        self._output += output_error(self._fold.unfold_outputs(change), self._hessian)
        self._power += output_error(self._fold.unfold_outputs(weight), self._hessian)
        change, weight = self._fold.unfold(change), self._fold.unfold(weight)
        before = self.weight
        self.weight = WeightError(
            before.squared_error + float(change.square().sum(dtype=torch.float64)),
            before.squared_weight + float(weight.square().sum(dtype=torch.float64)),
            max(before.max_abs_error, float(change.abs().max())),
        )

    @property
    def relative_output(self) -> float:
        """Squared output error over squared output."""
        return self._output / self._power if self._power else 0.0
