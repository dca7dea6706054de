"""A dense decoder as one ONNX graph, described once for every dialect.

The layers are those of Qwen2, Llama and Qwen3: RMSNorm, grouped-query attention with rotary
embedding and an in-place cache, SwiGLU. Shapes in comments: B sequences, S new tokens, H heads,
D head size, C cache capacity, K wanted positions (see ``contracts.engine_io``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from edgekit.contracts import engine_io
from edgekit.errors import GraphError
from edgekit.graph.builder import ActivationDtype, GraphBuilder
from edgekit.graph.exponents import Exponents
from edgekit.graph.lowering import Heads, Lowering, Projections, RotaryTables, cast
from edgekit.graph.weights import (
    ROPE_COS,
    ROPE_SIN,
    GraphTensor,
    bias_name,
    codes_name,
    dense_name,
    scales_name,
)
from edgekit.models.config import Linear, ModelConfig, layer_linears, lm_head
from edgekit.quant.scheme import QuantScheme


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Everything a graph is made from; the same spec gives the same bytes.

    Attributes:
        config: Architecture.
        weights: Stored weights by name (``graph.weights``).
        schemes: Linear name to scheme; None is a dense weight.
        activation_dtype: Type of activations, caches and logits.
        exponents: Powers of two already multiplied into the stored weights.
    """

    config: ModelConfig
    weights: Mapping[str, GraphTensor]
    schemes: Mapping[str, QuantScheme | None]
    activation_dtype: ActivationDtype
    exponents: Exponents = field(default_factory=Exponents)


def build_decoder(spec: DecoderSpec, lowering: Lowering, producer_version: str) -> onnx.ModelProto:
    """Return the decoder's graph, its weights as external data."""
    return _Decoder(spec, lowering).build(producer_version)


class _Decoder:
    """Holds what every block of one graph needs."""

    def __init__(self, spec: DecoderSpec, lowering: Lowering) -> None:
        self.spec = spec
        self.lower = lowering
        config = spec.config
        self.g = GraphBuilder("decoder", lowering.opset)
        self.heads = Heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim)

    def build(self, producer_version: str) -> onnx.ModelProto:
        g, config = self.g, self.spec.config
        self._declare_inputs()
        x = self.embedding()
        tables = RotaryTables(self.dense(ROPE_COS), self.dense(ROPE_SIN))
        for layer in range(config.num_hidden_layers):
            x = self.attention_block(layer, x, tables)
            x = self.mlp_block(layer, x)
        # [B, S, hidden] -> [B, K, hidden]: the head runs only where logits are wanted.
        x = g.node("GatherND", [x, engine_io.LOGITS_INDEX], "wanted", batch_dims=1)
        x = self.norm("model.norm", x)
        self.linear(lm_head(config), x, output=engine_io.LOGITS)
        self._declare_outputs()
        return g.model(producer_version)

    def embedding(self) -> str:
        """Look up [B, S, hidden]: float16 rows, or int8 rows times their scale."""
        g, name = self.g, "model.embed_tokens"
        ids = engine_io.INPUT_IDS
        if codes_name(name) in self.spec.weights:
            codes = g.weight(self.stored(codes_name(name)))
            scales = g.weight(self.stored(scales_name(name)))
            rows = self._as_activation(g.node("Gather", [codes, ids], f"{name}.rows"), "int8")
            scale = g.node("Gather", [scales, ids], f"{name}.row_scales")
            return g.node("Mul", [rows, self._as_activation(scale, "float16")], name)
        tensor = self.stored(dense_name(name))
        return self._as_activation(g.node("Gather", [g.weight(tensor), ids], name), tensor.dtype)

    def _as_activation(self, x: str, dtype: str) -> str:
        wanted = self.spec.activation_dtype
        return x if dtype == wanted else cast(self.g, x, wanted)

    def attention_block(self, layer: int, x: str, tables: RotaryTables) -> str:
        g, name = self.g, f"model.layers.{layer}.self_attn"
        query, key, value, out, *_ = layer_linears(self.spec.config, layer)
        h = self.norm(f"model.layers.{layer}.input_layernorm", x)
        q = self.split_heads(query, h, self.heads.queries, norm=f"{name}.q_norm")
        k = self.split_heads(key, h, self.heads.keys, norm=f"{name}.k_norm")
        v = self.split_heads(value, h, self.heads.keys, norm=None)
        q = self.lower.rotary(g, q, tables, self.heads, f"{name}.q_rotary")
        k = self.lower.rotary(g, k, tables, self.heads, f"{name}.k_rotary")
        a = self.lower.attend(g, layer, Projections(q, k, v, self.scale(layer)), self.heads)
        a = g.node("Transpose", [a], f"{name}.merge", perm=[0, 2, 1, 3])  # [B, S, H, D]
        width = self.heads.queries * self.heads.dim
        a = g.node("Reshape", [a, g.ints((0, 0, width))], f"{name}.merged")
        return g.node("Add", [x, self.linear(out, a)], f"{name}.residual")

    def scale(self, layer: int) -> float:
        exponent = self.spec.exponents.of_score(layer, qk_norm=self.spec.config.qk_norm)
        return float(self.heads.dim**-0.5 * 2.0**exponent)

    def split_heads(self, linear: Linear, x: str, heads: int, norm: str | None) -> str:
        """Project [B, S, hidden] and return [B, heads, S, D], normalized where the family does."""
        g, dim = self.g, self.heads.dim
        y = self.linear(linear, x)
        y = g.node("Reshape", [y, g.ints((0, 0, heads, dim))], f"{linear.name}.heads")
        if norm is not None and self.spec.config.qk_norm:
            y = self.norm(norm, y)
        return g.node("Transpose", [y], f"{linear.name}.split", perm=[0, 2, 1, 3])

    def mlp_block(self, layer: int, x: str) -> str:
        g, name = self.g, f"model.layers.{layer}.mlp"
        gate, up, down = layer_linears(self.spec.config, layer)[4:]
        h = self.norm(f"model.layers.{layer}.post_attention_layernorm", x)
        activated = self.lower.silu(g, self.linear(gate, h), f"{name}.silu")
        product = g.node("Mul", [activated, self.linear(up, h)], f"{name}.gated")
        return g.node("Add", [x, self.linear(down, product)], f"{name}.residual")

    def norm(self, name: str, x: str) -> str:
        """Normalize x, whose power of two the epsilon follows (squared, as the mean square)."""
        weight = self.dense(f"{name}.weight")
        epsilon = self.spec.config.rms_norm_eps * 4.0 ** self.spec.exponents.of_norm_input(name)
        return self.lower.rms_norm(self.g, x, weight, epsilon, name)

    def linear(self, linear: Linear, x: str, output: str | None = None) -> str:
        """Multiply by a dense or dequantized weight [K, N]; add the bias where there is one."""
        g = self.g
        product = output or linear.name
        if linear.bias:
            product = f"{linear.name}.matmul"
        y = g.node("MatMul", [x, self.matrix(linear)], product)
        if linear.bias:
            bias = self.dense(bias_name(linear.name))
            y = g.node("Add", [y, bias], output or linear.name)
        return y

    def matrix(self, linear: Linear) -> str:
        scheme = self.spec.schemes[linear.name]
        if scheme is None:
            return self.dense(dense_name(linear.name))
        return self.lower.dequantized(
            self.g,
            self.stored(codes_name(linear.name)),
            self.stored(scales_name(linear.name)),
            scheme,
            self.spec.activation_dtype,
            f"{linear.name}.dequantized",
        )

    def dense(self, name: str) -> str:
        return self.lower.dense(self.g, self.stored(name), self.spec.activation_dtype)

    def stored(self, name: str) -> GraphTensor:
        try:
            return self.spec.weights[name]
        except KeyError:
            raise GraphError(f"no stored weight named {name}") from None

    def cache_shape(self, length: str = "capacity") -> tuple[int | str, ...]:
        return ("batch", self.heads.keys, length, self.heads.dim)

    def _declare_inputs(self) -> None:
        g, dtype = self.g, self.spec.activation_dtype
        g.input(engine_io.INPUT_IDS, "int64", ("batch", "sequence"))
        g.input(engine_io.POSITION_IDS, "int64", ("batch", "sequence"))
        g.input(engine_io.ATTENTION_MASK, "bool", ("batch", 1, "sequence", "mask_width"))
        g.input(engine_io.WRITE_INDEX, "int64", ("batch",))
        g.input(engine_io.LOGITS_INDEX, "int64", ("batch", "wanted", 1))
        for layer in range(self.spec.config.num_hidden_layers):
            g.input(engine_io.past_key(layer), dtype, self.cache_shape())
            g.input(engine_io.past_value(layer), dtype, self.cache_shape())

    def _declare_outputs(self) -> None:
        g, dtype = self.g, self.spec.activation_dtype
        g.output(engine_io.LOGITS, dtype, ("batch", "wanted", self.spec.config.vocab_size))
        for layer in range(self.spec.config.num_hidden_layers):
            for name in self.lower.cache_outputs(layer):
                g.output(name, dtype, self.cache_shape(self.lower.cache_length))
