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
from edgekit.graph.lowering import (
    AttentionBlock,
    Heads,
    Lowering,
    Norm,
    Product,
    RotaryTables,
    cast,
)
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


@dataclass(frozen=True, slots=True)
class Branch:
    """What is to be added to the residual, and what the sum is called."""

    value: str
    total: str


def build_decoder(spec: DecoderSpec, lowering: Lowering, producer_version: str) -> onnx.ModelProto:
    """Return the decoder's graph, its weights as external data."""
    return _Decoder(spec, lowering).build(producer_version)


class _Decoder:
    """Holds what every block of one graph needs."""

    def __init__(self, spec: DecoderSpec, lowering: Lowering) -> None:
        self.spec = spec
        self.lower = lowering
        config = spec.config
        self.g = GraphBuilder("decoder", lowering.opset, lowering.domains)
        self.heads = Heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim)

    def build(self, producer_version: str) -> onnx.ModelProto:
        g, config = self.g, self.spec.config
        self._declare_inputs()
        tables = RotaryTables(self.stored(ROPE_COS), self.stored(ROPE_SIN))
        x, branch = self.embedding(), None
        for layer in range(config.num_hidden_layers):
            name = f"model.layers.{layer}"
            x, h = self.norm_of_sum(x, branch, f"{name}.input_layernorm")
            branch = Branch(self.attention(layer, h, tables), f"{name}.self_attn.residual")
            x, h = self.norm_of_sum(x, branch, f"{name}.post_attention_layernorm")
            branch = Branch(self.mlp(layer, h), f"{name}.mlp.residual")
        if branch is not None:
            x = g.node("Add", [x, branch.value], branch.total)
        # [B, S, hidden] -> [B, K, hidden]: the head runs only where logits are wanted.
        x = g.node("GatherND", [x, engine_io.LOGITS_INDEX], "wanted", batch_dims=1)
        x = self.lower.rms_norm(g, x, self.norm("model.norm"))
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

    def attention(self, layer: int, h: str, tables: RotaryTables) -> str:
        """Attend from the normalized input h [B, S, hidden]; return what the residual gets."""
        config, name = self.spec.config, f"model.layers.{layer}.self_attn"
        query, key, value, out, *_ = layer_linears(config, layer)
        block = AttentionBlock(
            layer=layer,
            query=self.product(query),
            key=self.product(key),
            value=self.product(value),
            query_norm=self.norm(f"{name}.q_norm") if config.qk_norm else None,
            key_norm=self.norm(f"{name}.k_norm") if config.qk_norm else None,
            tables=tables,
            heads=self.heads,
            scale=self.scale(layer),
            dtype=self.spec.activation_dtype,
        )
        return self.linear(out, self.lower.attention(self.g, h, block))

    def scale(self, layer: int) -> float:
        exponent = self.spec.exponents.of_score(layer, qk_norm=self.spec.config.qk_norm)
        return float(self.heads.dim**-0.5 * 2.0**exponent)

    def mlp(self, layer: int, h: str) -> str:
        """Run SwiGLU over the normalized input h; return what the residual gets."""
        g, name = self.g, f"model.layers.{layer}.mlp"
        gate, up, down = layer_linears(self.spec.config, layer)[4:]
        both = [self.product(gate), self.product(up)]
        dtype = self.spec.activation_dtype
        gated, raised = self.lower.multiply_all(g, h, both, dtype, f"{name}.gate_up_proj")
        activated = self.lower.silu(g, gated, f"{name}.silu")
        return self.linear(down, g.node("Mul", [activated, raised], f"{name}.gated"))

    def norm_of_sum(self, x: str, branch: Branch | None, name: str) -> tuple[str, str]:
        """Add a branch to the residual x; return the sum and its norm."""
        norm = self.norm(name)
        if branch is None:
            return x, self.lower.rms_norm(self.g, x, norm)
        return self.lower.add_norm(self.g, x, branch.value, branch.total, norm)

    def norm(self, name: str) -> Norm:
        """Return a norm, whose epsilon follows its input's power of two (squared, as the mean)."""
        epsilon = self.spec.config.rms_norm_eps * 4.0 ** self.spec.exponents.of_norm_input(name)
        return Norm(name, self.dense(f"{name}.weight"), epsilon)

    def linear(self, linear: Linear, x: str, output: str | None = None) -> str:
        """Multiply x by a linear's weight and add its bias."""
        dtype = self.spec.activation_dtype
        return self.lower.multiply(self.g, x, self.product(linear), dtype, output)

    def product(self, linear: Linear) -> Product:
        name, scheme = linear.name, self.spec.schemes[linear.name]
        return Product(
            linear,
            scheme,
            self.stored(dense_name(name) if scheme is None else codes_name(name)),
            None if scheme is None else self.stored(scales_name(name)),
            self.stored(bias_name(name)) if linear.bias else None,
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
        self.lower.inputs(g)
        for layer in range(self.spec.config.num_hidden_layers):
            g.input(engine_io.past_key(layer), dtype, self.cache_shape())
            g.input(engine_io.past_value(layer), dtype, self.cache_shape())

    def _declare_outputs(self) -> None:
        g, dtype = self.g, self.spec.activation_dtype
        g.output(engine_io.LOGITS, dtype, ("batch", "wanted", self.spec.config.vocab_size))
        for layer in range(self.spec.config.num_hidden_layers):
            for name in self.lower.cache_outputs(layer):
                g.output(name, dtype, self.cache_shape(self.lower.cache_length))
