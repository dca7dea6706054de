"""How the decoder's few building blocks become operators: one class per dialect.

``decoder.py`` describes the model once, in terms of :class:`Lowering`; a dialect is another
implementation of it, never a fork of the model. ``standard`` uses ONNX's own operators only
(opset 24: Attention, RotaryEmbedding, RMSNormalization, TensorScatter), which ONNX Runtime runs
and TensorRT 10.15 and later parses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from edgekit.contracts import engine_io
from edgekit.graph.builder import ELEM_TYPE, ActivationDtype, GraphBuilder
from edgekit.graph.weights import GraphTensor
from edgekit.quant.scheme import QuantScheme


@dataclass(frozen=True, slots=True)
class Heads:
    """Head counts and size of one attention block."""

    queries: int
    keys: int
    dim: int


@dataclass(frozen=True, slots=True)
class RotaryTables:
    """Values that hold the rotary tables [positions, D / 2] in the activation dtype."""

    cos: str
    sin: str


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

    def dense(self, g: GraphBuilder, tensor: GraphTensor, dtype: ActivationDtype) -> str:
        """Return a stored weight as a value of the activation dtype."""

    def dequantized(
        self,
        g: GraphBuilder,
        codes: GraphTensor,
        scales: GraphTensor,
        scheme: QuantScheme,
        dtype: ActivationDtype,
        output: str,
    ) -> str:
        """Return a quantized weight [K, N] as a value of the activation dtype."""

    def rms_norm(self, g: GraphBuilder, x: str, weight: str, epsilon: float, output: str) -> str:
        """Normalize the last axis in float32 and multiply by ``weight``."""

    def rotary(
        self, g: GraphBuilder, x: str, tables: RotaryTables, heads: Heads, output: str
    ) -> str:
        """Rotate ``x`` [B, H, S, D] (halves, as in GPT-NeoX) by its positions."""

    def attend(self, g: GraphBuilder, layer: int, qkv: Projections, heads: Heads) -> str:
        """Put the new keys and values into the layer's cache and attend to it.

        Makes the layer's cache outputs (:meth:`cache_outputs`) and returns [B, H, S, D].
        """

    def cache_outputs(self, layer: int) -> tuple[str, str]:
        """Return the names of the key and value outputs of a layer."""

    @property
    def cache_length(self) -> str:
        """Symbolic length of the cache outputs: ``capacity``, or ``sequence`` for new rows only."""

    def silu(self, g: GraphBuilder, x: str, output: str) -> str:
        """Return ``x * sigmoid(x)``."""


class StandardLowering:
    """ONNX opset 24, no custom domain."""

    opset = 24
    cache_length = "capacity"

    def dense(self, g: GraphBuilder, tensor: GraphTensor, dtype: ActivationDtype) -> str:
        """Return the initializer, cast when it is stored in another type.

        Engines fold the Cast when they load the graph, so blobs serve every activation dtype.
        """
        name = g.weight(tensor)
        if tensor.dtype == dtype:
            return name
        return cast(g, name, dtype)

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

    def rms_norm(self, g: GraphBuilder, x: str, weight: str, epsilon: float, output: str) -> str:
        """Return RMSNormalization (opset 23), which computes in float32 (``stash_type``)."""
        return g.node("RMSNormalization", [x, weight], output, axis=-1, epsilon=epsilon)

    def rotary(
        self, g: GraphBuilder, x: str, tables: RotaryTables, heads: Heads, output: str
    ) -> str:
        """Return RotaryEmbedding (opset 23), not interleaved."""
        del heads  # the operator reads them from the shape
        return g.node(
            "RotaryEmbedding", [x, tables.cos, tables.sin, engine_io.POSITION_IDS], output
        )

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
    return g.node("Cast", [name], f"{name}.{dtype}", to=ELEM_TYPE[dtype])
