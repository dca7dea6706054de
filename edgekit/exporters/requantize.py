"""Quantizing an exported graph: constant matrices become codes and scales, the rest blobs.

A linear's matrix is replaced by ``DequantizeLinear(codes, scales)``, as in edgekit's own graphs;
what cannot be quantized as the recipe says stays dense, and the report says so. Activations stay
float32.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from edgekit.bundle.writer import BundleWriter
from edgekit.contracts.manifest import TensorEntry, blob_bytes
from edgekit.errors import CheckpointError, QuantizationError, RecipeError
from edgekit.exporters.embedding import STRIP_ROWS, is_embedding, require_float16, store_embedding
from edgekit.exporters.exported_graph import ExportedGraph
from edgekit.exporters.graph_edit import GraphEdit, read_initializers
from edgekit.exporters.linears import ExportedLinear, MatrixRows, find_linears
from edgekit.graph.weights import codes_name, dense_name, scales_name
from edgekit.progress import Progress
from edgekit.quant.rtn import quantize_weight
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import QuantizedWeight, WeightError
from edgekit.recipe import Recipe

INLINE_ELEMENTS = 16
"""Float constants of at most this many elements stay in the graph, as all integers do."""


@dataclass(slots=True)
class Requantized:
    """What was stored of a graph, and how.

    Attributes:
        entries: Blobs for the manifest.
        schemes: Scheme of every linear by name; None is dense.
        errors: Error of every quantized linear.
        linear_bytes: Stored bytes of the linears.
        linear_weights: Number of their weights.
    """

    entries: tuple[TensorEntry, ...] = ()
    schemes: dict[str, QuantScheme | None] = field(default_factory=dict)
    errors: dict[str, WeightError] = field(default_factory=dict)
    linear_bytes: int = 0
    linear_weights: int = 0

    @property
    def labels(self) -> dict[str, int]:
        """Scheme label (or ``dense``) to number of linears."""
        names = (s.label if s else "dense" for s in self.schemes.values())
        return dict(sorted(Counter(names).items()))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all blobs, each counted once."""
        return blob_bytes(self.entries)

    @property
    def bits_per_linear_weight(self) -> float:
        """Stored bits per weight of the linears, scales included."""
        return 8 * self.linear_bytes / max(1, self.linear_weights)


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step of a requantization needs."""

    exported: ExportedGraph
    edit: GraphEdit
    writer: BundleWriter
    threads: int
    progress: Progress
    result: Requantized


def requantize(
    exported: ExportedGraph,
    recipe: Recipe,
    vocab_size: int,
    writer: BundleWriter,
    *,
    threads: int,
    progress: Progress,
) -> Requantized:
    """Quantize a graph in place and store its weights.

    Args:
        exported: The graph; afterwards it reads the blobs beside a bundle's graph.
        recipe: Of algorithm ``rtn``.
        vocab_size: Rows of the token embedding.
        writer: Where blobs go.
        threads: Worker threads; the bytes do not depend on it.
        progress: Told about the bytes that pass.

    Raises:
        RecipeError: The recipe needs calibration, or an override matches nothing.
        QuantizationError: A weight has a type that cannot be stored, or overflows float16.
        CheckpointError: A weight is not finite.
        GraphError: No linear makes the logits, or the export lacks weights.
    """
    refuse_calibrated(recipe)
    graph = exported.proto.graph
    edit, result = GraphEdit(graph), Requantized()
    work = _Work(exported, edit, writer, threads, progress, result)
    linears = find_linears(graph)
    result.schemes = plan_exported(graph, linears, recipe)
    firsts = {(x.weight, x.transposed): x for x in reversed(linears)}
    for linear in linears:  # all before the first is stored: names that stay must be known
        owner = firsts[linear.weight, linear.transposed]
        _multiply_by(linear, _value(owner.name))
    rest = read_initializers(graph)
    taken = {tensor.name for tensor in rest}
    for linear in sorted(firsts.values(), key=linears.index):
        _store_linear(work, linear, taken)
    for tensor in rest:
        values = exported.values(tensor.name)
        if is_embedding(graph, tensor, vocab_size):
            store_embedding(edit, tensor.name, values, recipe.quant.embedding.dtype, writer)
        else:
            _store_plain(work, tensor, values)
        progress.advance(int(values.nbytes), tensor.name)
    edit.apply()
    result.entries = tuple(edit.entries)
    exported.proto.producer_name = "edgekit"
    return result


def refuse_calibrated(recipe: Recipe) -> None:
    """Refuse recipes that need a run of the model.

    Raises:
        RecipeError: It is not plain round-to-nearest.
    """
    if recipe.needs_calibration:
        raise RecipeError(
            f"recipe {recipe.name} needs calibration, which --exporter optimum does not do",
            'Use a recipe of algorithm "rtn", such as w4a16-g64',
        )


def plan_exported(
    graph: onnx.GraphProto, linears: Sequence[ExportedLinear], recipe: Recipe
) -> dict[str, QuantScheme | None]:
    """Return each linear's scheme: the recipe's, or None (dense) where its shape does not fit.

    Raises:
        RecipeError: An override matches no linear.
    """
    quant = recipe.quant
    schemes: dict[str, QuantScheme | None] = {}
    for linear in linears:
        table = quant.lm_head if linear.is_head else quant.linear
        schemes[linear.name] = table.scheme("rtn")
    for override in quant.override:
        matched = [name for name in schemes if fnmatch.fnmatchcase(name, override.pattern)]
        if not matched:
            raise RecipeError(
                f"{override.reason}: pattern {override.pattern!r} matches no linear of the model",
                f"Linears are named like {linears[0].name}",
            )
        schemes.update(dict.fromkeys(matched, override.scheme("rtn")))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for linear in linears:
        k, n = shapes[linear.weight][:: -1 if linear.transposed else 1]
        if not _fits(schemes[linear.name], k, n):
            schemes[linear.name] = None
    return schemes


def _fits(scheme: QuantScheme | None, k: int, n: int) -> bool:
    if scheme is None:
        return True
    return k % (scheme.group_size or k) == 0 and (scheme.bits == 8 or n % 2 == 0)


def _value(linear: str) -> str:
    """Return the name of the float32 value [K, N] that stands for a linear's matrix."""
    return f"{linear}.float32"


def _multiply_by(linear: ExportedLinear, value: str) -> None:
    """Let a node multiply by a value [K, N]."""
    linear.node.input[1] = value
    for attribute in linear.node.attribute:
        if attribute.name == "transB":
            attribute.i = 0


def _store_linear(work: _Work, linear: ExportedLinear, taken: set[str]) -> None:
    """Store a linear's matrix and add the nodes that make its value."""
    matrix = work.exported.values(linear.weight)
    rows = MatrixRows(linear.name, matrix, transposed=linear.transposed)
    scheme, before = work.result.schemes[linear.name], len(work.edit.entries)
    if scheme is None:
        _store_dense(work, linear, rows, taken)
    else:

        def advance(done_bytes: int) -> None:
            work.progress.advance(done_bytes, linear.name)

        weight = quantize_weight(rows, scheme, threads=work.threads, advance=advance)
        work.result.errors[linear.name] = weight.error
        _store_quantized(work, linear, weight)
    work.result.linear_weights += matrix.size
    work.result.linear_bytes += sum(e.size_bytes for e in work.edit.entries[before:])


def _store_quantized(work: _Work, linear: ExportedLinear, weight: QuantizedWeight) -> None:
    scheme, edit, add = weight.scheme, work.edit, work.writer.add_tensor
    dtype: Any = "int4" if scheme.bits == 4 else "int8"
    shape = (weight.in_features, weight.out_features)
    names = codes_name(linear.name), scales_name(linear.name)
    label, stored = scheme.label, weight.scales
    codes = edit.blob(add(names[0], "codes", dtype, shape, [weight.packed.data], label))
    scales = edit.blob(add(names[1], "scales", "float16", stored.shape, [stored.data], label))
    wide, output = edit.widened(scales), _value(linear.name)
    if scheme.group_size:
        edit.node("DequantizeLinear", [codes, wide], output, axis=0, block_size=scheme.group_size)
        return
    flat_shape = edit.inline(f"{scales}.flat_shape", np.array([-1], np.int64))
    flat = edit.node("Reshape", [wide, flat_shape], f"{scales}.flat")
    edit.node("DequantizeLinear", [codes, flat], output, axis=1)


def _store_dense(work: _Work, linear: ExportedLinear, rows: MatrixRows, taken: set[str]) -> None:
    """Store a matrix [K, N] in float16."""
    n, k = rows.shape
    matrix = np.empty((k, n), np.float16)
    for start in range(0, n, STRIP_ROWS):
        strip = rows.rows(start, min(start + STRIP_ROWS, n))
        require_float16(linear.name, strip)
        matrix[:, start : start + len(strip)] = strip.T
        work.progress.advance(strip.nbytes, linear.name)
    # The exporter may have kept that name for the same weight the other way round.
    name = dense_name(linear.name)
    name = f"{linear.name}.matrix" if name in taken else name
    entry = work.writer.add_tensor(name, "dense", "float16", (k, n), [matrix.data])
    stored, edit = work.edit.blob(entry), work.edit
    edit.node("Cast", [stored], _value(linear.name), to=onnx.TensorProto.FLOAT)


def _store_plain(work: _Work, tensor: onnx.TensorProto, values: Any) -> None:
    """Store a float32 tensor as it is; small and integer ones stay in the graph."""
    size, shape = math.prod(tensor.dims), tuple(tensor.dims)
    if values.dtype.kind != "f" or size <= INLINE_ELEMENTS:
        work.edit.inline(tensor.name, values)
        return
    if values.dtype != np.float32:
        raise QuantizationError(f"{tensor.name} is {values.dtype}; only float32 is stored")
    if np.isnan(values).any():
        raise CheckpointError(
            f"{tensor.name} holds NaN", "The checkpoint is damaged: download it again"
        )
    data = [np.ascontiguousarray(values).data]
    work.edit.blob(work.writer.add_tensor(tensor.name, "dense", "float32", shape, data))
