"""Turning checkpoint tensors into the blobs of a bundle, one tensor at a time.

Every stored tensor has a resume key made of what it is computed from; a blob that an interrupted
build journalled under that key is taken as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import __version__
from edgekit.bundle.layout import blob_location
from edgekit.bundle.writer import BundleWriter, Noted
from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.lazy import LazyTensor, raw_rows, strips
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.manifest import TensorEntry
from edgekit.graph.exponents import Exponents
from edgekit.graph.weights import (
    ROPE_COS,
    ROPE_SIN,
    GraphTensor,
    bias_name,
    codes_name,
    dense_name,
    scales_name,
)
from edgekit.models.config import Linear, all_linears, tensor_shapes
from edgekit.models.rope import cos_sin_tables
from edgekit.pipeline.base import Base
from edgekit.pipeline.kept import kept_weight
from edgekit.progress import Progress
from edgekit.quant.float16 import to_float16
from edgekit.quant.plan import Schemes
from edgekit.quant.rtn import quantize_rows, quantize_weight
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import QuantizedWeight, WeightError
from edgekit.recipe import EmbeddingType

_Waiting = tuple[str, "Future[Noted]"]
"""A linear's name, and its blobs being written."""

EMBEDDING = "model.embed_tokens"
DENSE_STRIP_ROWS = 2048


@dataclass(slots=True)
class StoredModel:
    """Blobs written so far, as the graph builder and the manifest want them.

    Attributes:
        tensors: For the graph, by name.
        entries: For the manifest.
        errors: Error of every quantized linear.
    """

    tensors: dict[str, GraphTensor] = field(default_factory=dict)
    entries: list[TensorEntry] = field(default_factory=list)
    errors: dict[str, WeightError] = field(default_factory=dict)

    def add(self, *entries: TensorEntry) -> None:
        """Take note of written blobs."""
        for entry in entries:
            self.entries.append(entry)
            location = blob_location(entry.sha256)
            self.tensors[entry.name] = GraphTensor(entry.name, entry.dtype, entry.shape, location)

    def add_linear(self, name: str, noted: Noted) -> None:
        """Take note of a linear's blobs and, if it is quantized, its error."""
        if noted.facts:
            self.errors[name] = WeightError(**noted.facts)
        self.add(*noted.entries)


@dataclass(frozen=True, slots=True)
class Store:
    """What every store step needs.

    Attributes:
        checkpoint: Source of the weights.
        identity: Digest of everything that decides the bytes besides the tensor itself.
        writer: Where blobs go.
        exponents: Powers of two multiplied into the weights.
        threads: Worker threads.
        progress: Told about stored bytes as they pass.
        base: The bundle whose scales are kept where possible.
    """

    checkpoint: Checkpoint
    identity: str
    writer: BundleWriter
    exponents: Exponents
    threads: int
    progress: Progress
    base: Base | None = None

    def key(self, name: str, what: Any) -> str:
        """Return the resume key of a tensor."""
        parts = {
            "edgekit": __version__,
            "identity": self.identity,
            "exponents": self.exponents.to_dict(),
            "name": name,
            "what": what,
        }
        return hashlib.sha256(canonical_bytes(parts)).hexdigest()


def store_tensors(
    store: Store, schemes: Schemes, embedding: EmbeddingType, max_context: int, model: StoredModel
) -> None:
    """Store every tensor of the model that is not stored yet.

    The embedding, mostly copying, is stored beside the linears, mostly arithmetic.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="edgekit-embedding") as pool:
        embedded = pool.submit(_store_embedding, store, embedding)
        _store_linears(store, schemes, model)
        _store_dense(store, max_context, model)
        model.add(*embedded.result().entries)


def _store_linears(store: Store, schemes: Schemes, model: StoredModel) -> None:
    """Store every linear not stored yet: codes and scales, or a dense float16 weight.

    A weight is hashed and written while the next one is quantized: two packed weights are alive.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="edgekit-store") as pool:
        waiting: _Waiting | None = None
        for linear in all_linears(store.checkpoint.config):
            if codes_name(linear.name) in model.tensors:
                continue
            scheme = schemes[linear.name]
            tensor = store.checkpoint.tensor(linear.weight_key)
            key = store.key(linear.name, asdict(scheme) if scheme else "dense")
            noted = store.writer.resume(key)
            if noted is not None:
                store.progress.advance(tensor.stored_bytes, linear.name)
                model.add_linear(linear.name, noted)
            elif scheme is None:
                noted = Noted((_store_transposed(store, linear, tensor),))
                store.writer.note(key, noted)
                model.add_linear(linear.name, noted)
            else:
                weight = _quantize(store, linear, tensor, scheme)
                _take(model, waiting)
                written = pool.submit(_write_weight, store.writer, key, linear.name, weight)
                waiting = linear.name, written
        _take(model, waiting)


def _write_weight(writer: BundleWriter, key: str, name: str, weight: QuantizedWeight) -> Noted:
    noted = Noted(store_weight(writer, name, weight), asdict(weight.error))
    writer.note(key, noted)
    return noted


def _take(model: StoredModel, waiting: _Waiting | None) -> None:
    """Wait for a weight to be written."""
    if waiting is not None:
        name, written = waiting
        model.add_linear(name, written.result())


def store_weight(
    writer: BundleWriter, name: str, weight: QuantizedWeight
) -> tuple[TensorEntry, TensorEntry]:
    """Store a quantized weight's codes and scales."""
    scheme = weight.scheme
    shape = (weight.in_features, weight.out_features)
    dtype: Any = "int4" if scheme.bits == 4 else "int8"
    codes = writer.add_tensor(
        codes_name(name), "codes", dtype, shape, [weight.packed.data], scheme.label
    )
    scales = writer.add_tensor(
        scales_name(name),
        "scales",
        "float16",
        weight.scales.shape,
        [weight.scales.data],
        scheme.label,
    )
    return codes, scales


def _store_dense(store: Store, max_context: int, model: StoredModel) -> None:
    """Store what is small and not stored yet: norms, biases, rotary tables."""
    checkpoint = store.checkpoint
    linears = {linear.weight_key for linear in all_linears(checkpoint.config)}
    for name in tensor_shapes(checkpoint.config):
        module, kind = name.rsplit(".", 1)
        if module != EMBEDDING and name not in linears:
            exponent = store.exponents.of_tensor(name)
            stored = bias_name(module) if kind == "bias" else name
            if stored not in model.tensors:
                tensor = checkpoint.tensor(name)
                model.add(_store_float16(store, stored, tensor, exponent))
    config = checkpoint.config
    tables = cos_sin_tables(config.rope, config.head_dim, np.arange(max_context))
    for name, table in zip((ROPE_COS, ROPE_SIN), tables, strict=True):
        shape = (max_context, config.head_dim // 2)
        model.add(store.writer.add_tensor(name, "dense", "float32", shape, [table.data]))


def store_dense_values(store: Store, name: str, values: npt.NDArray[np.float32]) -> TensorEntry:
    """Store new values of a norm or a bias, named as in the checkpoint."""
    module, kind = name.rsplit(".", 1)
    exponent = store.exponents.of_tensor(name)
    stored = bias_name(module) if kind == "bias" else name
    data = to_float16(name, values, exponent)
    return store.writer.add_tensor(stored, "dense", "float16", values.shape, [data.data])


def _quantize(
    store: Store, linear: Linear, tensor: LazyTensor, scheme: QuantScheme
) -> QuantizedWeight:
    """Quantize a weight, or take the codes it brings along."""
    exponent = store.exponents.of_weight(linear.name)
    kept = kept_weight(tensor, exponent)
    if kept is not None:
        store.progress.advance(tensor.stored_bytes, linear.name)
        return kept

    def advance(done_bytes: int) -> None:
        store.progress.advance(done_bytes, linear.name)

    return quantize_weight(
        tensor,
        scheme,
        threads=store.threads,
        scale_exponent=exponent,
        base_scales=store.base.scales(linear, scheme) if store.base else None,
        advance=advance,
    )


def _store_transposed(store: Store, linear: Linear, tensor: LazyTensor) -> TensorEntry:
    """Store a dense weight as float16 [K, N]; memory is one float16 copy of it."""
    rows, columns = tensor.shape
    transposed = np.empty((columns, rows), np.float16)
    exponent = store.exponents.of_weight(linear.name)
    for start, strip in strips(tensor, DENSE_STRIP_ROWS):
        transposed[:, start : start + len(strip)] = to_float16(tensor.name, strip, exponent).T
        store.progress.advance(tensor.stored_bytes * len(strip) // rows, linear.name)
    return store.writer.add_tensor(
        dense_name(linear.name), "dense", "float16", (columns, rows), [transposed.data]
    )


def _store_embedding(store: Store, dtype: EmbeddingType) -> Noted:
    """Store the embedding as float16, or as int8 codes with one scale per token."""
    name = f"{EMBEDDING}.weight"
    tensor = store.checkpoint.tensor(name)
    exponent = store.exponents.of_weight(EMBEDDING)
    key = store.key(name, dtype)
    noted = store.writer.resume(key)
    if noted is None:
        if dtype == "float16":
            noted = Noted((_store_float16(store, name, tensor, exponent),))
        else:
            noted = Noted(_store_int8_rows(store, tensor, exponent))
        store.writer.note(key, noted)
    return noted


def _store_int8_rows(
    store: Store, tensor: LazyTensor, exponent: int
) -> tuple[TensorEntry, TensorEntry]:
    rows = tensor.shape[0]
    scales = np.empty((rows, 1), np.float16)

    def codes() -> Iterator[memoryview]:
        for start, strip in strips(tensor, DENSE_STRIP_ROWS):
            rows_codes, rows_scales = quantize_rows(
                tensor.name, strip, first_row=start, exponent=exponent
            )
            scales[start : start + len(strip)] = rows_scales
            yield rows_codes.data
            store.progress.advance(tensor.stored_bytes * len(strip) // rows, tensor.name)

    add = store.writer.add_tensor
    ahead = _ahead(codes())
    first = add(codes_name(EMBEDDING), "codes", "int8", tensor.shape, ahead, "w8-row")
    second = add(scales_name(EMBEDDING), "scales", "float16", (rows, 1), [scales.data], "w8-row")
    return first, second


def _store_float16(store: Store, name: str, tensor: LazyTensor, exponent: int) -> TensorEntry:
    def chunks() -> Iterator[memoryview]:
        for start in range(0, tensor.shape[0], DENSE_STRIP_ROWS):
            strip = raw_rows(tensor, start, min(start + DENSE_STRIP_ROWS, tensor.shape[0]))
            yield to_float16(tensor.name, strip, exponent).data
            store.progress.advance(tensor.stored_bytes * len(strip) // tensor.shape[0], name)

    return store.writer.add_tensor(name, "dense", "float16", tuple(tensor.shape), _ahead(chunks()))


def _ahead(chunks: Iterator[memoryview]) -> Iterator[memoryview]:
    """Make the next chunk while the current one is hashed and written."""
    with ThreadPoolExecutor(1, thread_name_prefix="edgekit-ahead") as pool:
        coming = pool.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = pool.submit(next, chunks, None)
            yield chunk


def count_stored_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes that pass through the store stages: a tied embedding passes twice."""
    tied = checkpoint.config.tie_word_embeddings
    twice = checkpoint.tensor(f"{EMBEDDING}.weight").stored_bytes if tied else 0
    return checkpoint.stored_bytes + twice
