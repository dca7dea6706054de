"""How the decoder's few building blocks become operators: one class per dialect.

``decoder.py`` describes the model once, in terms of :class:`Lowering`; a dialect is another
implementation of it, never a fork of the model. ``standard`` uses ONNX's own operators only
(opset 24: Attention, RotaryEmbedding, RMSNormalization, TensorScatter), which ONNX Runtime runs
and TensorRT 10.15 and later parses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgekit.contracts import engine_io
from edgekit.graph.builder import ELEM_TYPE, ActivationDtype, GraphBuilder
from edgekit.graph.weights import GraphTensor
from edgekit.models.config import Linear
from edgekit.quant.scheme import QuantScheme


@dataclass(frozen=True, slots=True)
class Heads:
    """Head counts and size of one attention block."""

    queries: int
    keys: int
    dim: int


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """The stored rotary tables, [positions, D / 2]."""

    cos: GraphTensor
    sin: GraphTensor


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm: the name of its output, its weight in the activation dtype, its epsilon."""

    name: str
    weight: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class Product:
    """A linear as it is stored, to be multiplied by.

    Attributes:
        linear: Which one.
        scheme: Its scheme; None is a dense weight.
        weight: Codes or dense weight, [K, N].
        scales: [G, N] where it is quantized.
        bias: [N] where it has one.
    """

    linear: Linear
    scheme: QuantScheme | None
    weight: GraphTensor
    scales: GraphTensor | None
    bias: GraphTensor | None


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """One layer's attention, from the normalized input to what o_proj reads.

    Attributes:
        layer: Its index.
        query, key, value: The projections.
        query_norm, key_norm: Norms over each head, before rotary, where the family has them.
        tables: Rotary tables.
        heads: Head counts and size.
        scale: What the product of query and key is multiplied by.
        dtype: Activation dtype.
    """

    layer: int
    query: Product
    key: Product
    value: Product
    query_norm: Norm | None
    key_norm: Norm | None
    tables: RotaryTables
    heads: Heads
    scale: float
    dtype: ActivationDtype

    @property
    def name(self) -> str:
        """What its values' names begin with."""
        return f"model.layers.{self.layer}.self_attn"


@dataclass(frozen=True, slots=True)
class Projections:
    """Rotated query [B, H, S, D], rotated key and value [B, Hkv, S, D].

    ``scale`` is what the product of query and key is multiplied by.
    """

    query: str
    key: str
    value: str
    scale: float


class Lowering(Protocol):
    """The building blocks a dialect provides. Values are named by their output."""

    opset: int
    domains: Mapping[str, int]
    """Operator domains beside ONNX's own, and their versions."""
    cache_length: str
    """Symbolic length of the cache outputs: ``capacity``, or ``sequence`` for new rows only."""

    def inputs(self, g: GraphBuilder) -> None:
        """Declare the graph's inputs, all but the caches."""

    def dense(self, g: GraphBuilder, tensor: GraphTensor, dtype: ActivationDtype) -> str:
        """Return a stored weight as a value of the activation dtype."""

    def rms_norm(self, g: GraphBuilder, x: str, norm: Norm) -> str:
        """Normalize the last axis in float32 and multiply by the norm's weight."""

    def add_norm(
        self, g: GraphBuilder, x: str, branch: str, total: str, norm: Norm
    ) -> tuple[str, str]:
        """Return ``x + branch``, named ``total``, and its norm."""

    def multiply(
        self,
        g: GraphBuilder,
        x: str,
        product: Product,
        dtype: ActivationDtype,
        output: str | None = None,
    ) -> str:
        """Return x times a linear's weight, plus its bias; named after the linear by default."""

    def multiply_all(
        self,
        g: GraphBuilder,
        x: str,
        products: Sequence[Product],
        dtype: ActivationDtype,
        name: str,
    ) -> Sequence[str]:
        """Multiply the same x by several linears; ``name`` is what a joined one is called."""

    def attention(self, g: GraphBuilder, x: str, block: AttentionBlock) -> str:
        """Project x [B, S, hidden], put new rows into the cache, attend; return [B, S, H D].

        Makes the layer's cache outputs (:meth:`cache_outputs`).
        """

    def cache_outputs(self, layer: int) -> tuple[str, str]:
        """Return the names of the key and value outputs of a layer."""

    def silu(self, g: GraphBuilder, x: str, output: str) -> str:
        """Return ``x * sigmoid(x)``."""


class StandardLowering:
    """ONNX opset 24, no custom domain."""

    opset = 24
    domains: Mapping[str, int] = {}
    cache_length = "capacity"

    def inputs(self, g: GraphBuilder) -> None:
        """Declare positions and the mask, which Attention reads."""
        g.input(engine_io.INPUT_IDS, "int64", ("batch", "sequence"))
        g.input(engine_io.POSITION_IDS, "int64", ("batch", "sequence"))
        g.input(engine_io.ATTENTION_MASK, "bool", ("batch", 1, "sequence", "mask_width"))
        g.input(engine_io.WRITE_INDEX, "int64", ("batch",))
        g.input(engine_io.LOGITS_INDEX, "int64", ("batch", "wanted", 1))

    def dense(self, g: GraphBuilder, tensor: GraphTensor, dtype: ActivationDtype) -> str:
        """Return the initializer, cast once when it is stored in another type.

        Engines fold the Cast when they load the graph, so blobs serve every activation dtype.
        """
        name = g.weight(tensor)
        if tensor.dtype == dtype:
            return name
        return cast_name(name, dtype) if g.has(cast_name(name, dtype)) else cast(g, name, dtype)

    def dequantized(
        self,
        g: GraphBuilder,
        codes: GraphTensor,
        scales: GraphTensor,
        scheme: QuantScheme,
        dtype: ActivationDtype,
        output: str,
    ) -> str:
        """Return DequantizeLinear of [K, N] codes: per group along K, or per channel of N."""
        inputs = [g.weight(codes), self.dense(g, scales, dtype)]
        if scheme.group_size:
            return g.node("DequantizeLinear", inputs, output, axis=0, block_size=scheme.group_size)
        flat = g.node("Reshape", [inputs[1], g.ints((-1,))], f"{scales.name}.flat")
        return g.node("DequantizeLinear", [inputs[0], flat], output, axis=1)

    def multiply(
        self,
        g: GraphBuilder,
        x: str,
        product: Product,
        dtype: ActivationDtype,
        output: str | None = None,
    ) -> str:
        """Return MatMul by the dense or dequantized weight, and Add where there is a bias."""
        name = product.linear.name
        if product.scheme is None or product.scales is None:
            matrix = self.dense(g, product.weight, dtype)
        else:
            matrix = self.dequantized(
                g, product.weight, product.scales, product.scheme, dtype, f"{name}.dequantized"
            )
        if product.bias is None:
            return g.node("MatMul", [x, matrix], output or name)
        y = g.node("MatMul", [x, matrix], f"{name}.matmul")
        return g.node("Add", [y, self.dense(g, product.bias, dtype)], output or name)

    def multiply_all(
        self,
        g: GraphBuilder,
        x: str,
        products: Sequence[Product],
        dtype: ActivationDtype,
        name: str,
    ) -> Sequence[str]:
        """Multiply by each linear alone."""
        del name
        return [self.multiply(g, x, product, dtype) for product in products]

    def rms_norm(self, g: GraphBuilder, x: str, norm: Norm) -> str:
        """Return RMSNormalization (opset 23), which computes in float32 (``stash_type``)."""
        return g.node(
            "RMSNormalization", [x, norm.weight], norm.name, axis=-1, epsilon=norm.epsilon
        )

    def add_norm(
        self, g: GraphBuilder, x: str, branch: str, total: str, norm: Norm
    ) -> tuple[str, str]:
        """Return Add and the norm of its sum."""
        total = g.node("Add", [x, branch], total)
        return total, self.rms_norm(g, total, norm)

    def attention(self, g: GraphBuilder, x: str, block: AttentionBlock) -> str:
        """Return heads projected, normalized, rotated and attended one by one."""
        name, heads, tables = block.name, block.heads, block.tables
        q = self._split_heads(g, x, block.query, heads.queries, block)
        k = self._split_heads(g, x, block.key, heads.keys, block)
        v = self._split_heads(g, x, block.value, heads.keys, block)
        q = self.rotary(g, q, tables, heads, block.dtype, f"{name}.q_rotary")
        k = self.rotary(g, k, tables, heads, block.dtype, f"{name}.k_rotary")
        a = self.attend(g, block.layer, Projections(q, k, v, block.scale), heads)
        a = g.node("Transpose", [a], f"{name}.merge", perm=[0, 2, 1, 3])  # [B, S, H, D]
        return g.node("Reshape", [a, g.ints((0, 0, heads.queries * heads.dim))], f"{name}.merged")

    def _split_heads(
        self, g: GraphBuilder, x: str, product: Product, heads: int, block: AttentionBlock
    ) -> str:
        """Project [B, S, hidden] and return [B, heads, S, D], normalized where the family does."""
        name = product.linear.name
        y = self.multiply(g, x, product, block.dtype)
        y = g.node("Reshape", [y, g.ints((0, 0, heads, block.heads.dim))], f"{name}.heads")
        norms = {block.query.linear.name: block.query_norm, block.key.linear.name: block.key_norm}
        norm = norms.get(name)
        if norm is not None:
            y = self.rms_norm(g, y, norm)
        return g.node("Transpose", [y], f"{name}.split", perm=[0, 2, 1, 3])

    def rotary(
        self,
        g: GraphBuilder,
        x: str,
        tables: RotaryTables,
        heads: Heads,
        dtype: ActivationDtype,
        output: str,
    ) -> str:
        """Return RotaryEmbedding (opset 23) of x [B, H, S, D], not interleaved."""
        del heads  # the operator reads them from the shape
        cos, sin = self.dense(g, tables.cos, dtype), self.dense(g, tables.sin, dtype)
        return g.node("RotaryEmbedding", [x, cos, sin, engine_io.POSITION_IDS], output)

    def attend(self, g: GraphBuilder, layer: int, qkv: Projections, heads: Heads) -> str:
        """Return Attention (opset 24) over caches written by TensorScatter (opset 24).

        TensorScatter is in place once past and present share memory. The mask is explicit:
        TensorRT's parser drops ``nonpad_kv_seqlen`` silently.
        """
        key, value = self.cache_outputs(layer)
        index = engine_io.WRITE_INDEX
        g.node("TensorScatter", [engine_io.past_key(layer), qkv.key, index], key, axis=2)
        g.node("TensorScatter", [engine_io.past_value(layer), qkv.value, index], value, axis=2)
        inputs = [qkv.query, key, value, engine_io.ATTENTION_MASK]
        # Left to the operator's default, 1 / sqrt(D), where that is the scale.
        scale: dict[str, Any] = {} if qkv.scale == heads.dim**-0.5 else {"scale": qkv.scale}
        return g.node("Attention", inputs, f"model.layers.{layer}.self_attn.attention", **scale)

    def cache_outputs(self, layer: int) -> tuple[str, str]:
        """Return the names of the whole updated caches."""
        return engine_io.present_key(layer), engine_io.present_value(layer)

    def silu(self, g: GraphBuilder, x: str, output: str) -> str:
        """Return Sigmoid and Mul: TensorRT parses opset 24's Swish only from 11.0."""
        gate = g.node("Sigmoid", [x], f"{output}.sigmoid")
        return g.node("Mul", [x, gate], output)


def cast(g: GraphBuilder, name: str, dtype: ActivationDtype) -> str:
    """Return ``name`` cast to ``dtype``."""
    return g.node("Cast", [name], cast_name(name, dtype), to=ELEM_TYPE[dtype])


def cast_name(name: str, dtype: ActivationDtype) -> str:
    """Return what :func:`cast` calls its output."""
    return f"{name}.{dtype}"
