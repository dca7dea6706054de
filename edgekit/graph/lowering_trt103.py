"""The ``trt103`` dialect: primitives only, for JetPack 6.2's TensorRT 10.3 (opset <= 21).

TensorRT 10.3's parser knows none of Attention, RotaryEmbedding, RMSNormalization and
TensorScatter, and promises no in-place outputs. So norms, rotary and attention are spelled out,
norms and softmax in float32, and instead of whole caches the graph returns the new rows
``new_key_i``, ``new_value_i`` [B, Hkv, S, D], which the runtime appends. Scores over the cache and
over the new rows are computed apart and share one softmax.

``attention_mask`` keeps its meaning over the cache *after* the append, and its width is the cache's
capacity here; positions at and after ``write_index`` are masked inside, since the cache does not
hold the new rows yet.
"""

from __future__ import annotations

from edgekit.contracts import engine_io
from edgekit.graph.builder import ActivationDtype, GraphBuilder
from edgekit.graph.lowering import (
    Heads,
    Norm,
    Projections,
    RotaryTables,
    StandardLowering,
    cast,
)

MASKED_SCORE = -1e6
"""Added to masked scores, in float32: even the largest float16 score then stays below any other."""


class Trt103Lowering(StandardLowering):
    """ONNX opset 21 primitives; weights are stored and dequantized as in ``standard``."""

    opset = 21
    cache_length = "sequence"

    def __init__(self, dtype: ActivationDtype) -> None:
        self._dtype = dtype

    def rms_norm(self, g: GraphBuilder, x: str, norm: Norm) -> str:
        """Return x / sqrt(mean(x**2) + epsilon) * weight, the quotient in float32."""
        output = norm.name
        wide = self._widen(g, x, f"{output}.wide")
        square = g.node("Mul", [wide, wide], f"{output}.square")
        mean = g.node("ReduceMean", [square, g.ints((-1,))], f"{output}.mean", keepdims=1)
        shifted = g.node("Add", [mean, g.scalar(norm.epsilon, "float32")], f"{output}.shifted")
        root = g.node("Sqrt", [shifted], f"{output}.root")
        unit = g.node("Div", [wide, root], f"{output}.unit")
        return g.node("Mul", [self._narrow(g, unit), norm.weight], output)

    def rotary(
        self,
        g: GraphBuilder,
        x: str,
        tables: RotaryTables,
        heads: Heads,
        dtype: ActivationDtype,
        output: str,
    ) -> str:
        """Return [a cos - b sin, b cos + a sin] of the halves a, b of each head."""
        cos = self._positions(g, self.dense(g, tables.cos, dtype))
        sin = self._positions(g, self.dense(g, tables.sin, dtype))
        half = g.ints((heads.dim // 2, heads.dim // 2))
        a, b = g.node_many("Split", [x, half], (f"{output}.a", f"{output}.b"), axis=-1)
        first = g.node(
            "Sub",
            [
                g.node("Mul", [a, cos], f"{output}.a_cos"),
                g.node("Mul", [b, sin], f"{output}.b_sin"),
            ],
            f"{output}.first",
        )
        second = g.node(
            "Add",
            [
                g.node("Mul", [b, cos], f"{output}.b_cos"),
                g.node("Mul", [a, sin], f"{output}.a_sin"),
            ],
            f"{output}.second",
        )
        return g.node("Concat", [first, second], output, axis=-1)

    def attend(self, g: GraphBuilder, layer: int, qkv: Projections, heads: Heads) -> str:
        """Return attention over the cache and the new rows under one softmax."""
        name = f"model.layers.{layer}.self_attn.attention"
        new_key, new_value = self.cache_outputs(layer)
        g.node("Identity", [qkv.key], new_key)
        g.node("Identity", [qkv.value], new_value)
        group = heads.queries // heads.keys
        scale = g.scalar(qkv.scale, self._dtype)
        query = g.node("Mul", [qkv.query, scale], f"{name}.scaled")
        # [B, H, S, D] -> [B, Hkv, group, S, D], so that each key head meets its queries.
        shape = g.ints((0, heads.keys, group, -1, heads.dim))
        query = g.node("Reshape", [query, shape], f"{name}.grouped")
        past_mask, new_mask = self._mask_biases(g)
        past = self._scores(g, query, engine_io.past_key(layer), past_mask, f"{name}.past")
        new = self._scores(g, query, new_key, new_mask, f"{name}.new")
        scores = g.node("Concat", [past, new], f"{name}.scores", axis=-1)
        weights = self._narrow(g, g.node("Softmax", [scores], f"{name}.softmax", axis=-1))
        lengths = g.node("Concat", [self._capacity(g), self._tokens(g)], f"{name}.lengths", axis=0)
        over_past, over_new = g.node_many(
            "Split", [weights, lengths], (f"{name}.over_past", f"{name}.over_new"), axis=-1
        )
        total = g.node(
            "Add",
            [
                self._average(g, over_past, engine_io.past_value(layer), f"{name}.past_value"),
                self._average(g, over_new, new_value, f"{name}.new_value"),
            ],
            f"{name}.total",
        )
        return g.node("Reshape", [total, g.ints((0, heads.queries, -1, heads.dim))], name)

    def cache_outputs(self, layer: int) -> tuple[str, str]:
        """Return the names of the new rows."""
        return engine_io.new_key(layer), engine_io.new_value(layer)

    def _scores(self, g: GraphBuilder, query: str, key: str, bias: str, output: str) -> str:
        """Return float32 [B, Hkv, group, S, keys] of query against key [B, Hkv, keys, D]."""
        key = g.node("Unsqueeze", [key, g.ints((2,))], f"{output}.key")
        key = g.node("Transpose", [key], f"{output}.key_t", perm=[0, 1, 2, 4, 3])
        scores = g.node("MatMul", [query, key], f"{output}.matmul")
        wide = self._widen(g, scores, f"{output}.wide")
        return g.node("Add", [wide, bias], f"{output}.masked")

    def _average(self, g: GraphBuilder, weights: str, value: str, output: str) -> str:
        value = g.node("Unsqueeze", [value, g.ints((2,))], f"{output}.grouped")
        return g.node("MatMul", [weights, value], f"{output}.average")

    def _positions(self, g: GraphBuilder, table: str) -> str:
        """Return the rows of a rotary table at the positions, [B, 1, S, D / 2]."""
        output = f"{table}.positions"
        if g.has(output):
            return output
        rows = g.node("Gather", [table, engine_io.POSITION_IDS], f"{table}.rows")
        return g.node("Unsqueeze", [rows, g.ints((1,))], output)

    def _mask_biases(self, g: GraphBuilder) -> tuple[str, str]:
        """Return float32 biases over the cache and over the new rows, [B, 1, 1, S, keys]."""
        past, new = "mask.past_bias", "mask.new_bias"
        if g.has(past):
            return past, new
        mask = engine_io.ATTENTION_MASK
        zero, one = g.ints((0,)), g.ints((1,))
        # The cache holds rows [0, write_index); what comes after is stale.
        columns = g.node("Range", [
            g.int_scalar(0), g.node("Squeeze", [self._capacity(g), zero], "mask.capacity"),
            g.int_scalar(1)], "mask.columns")  # fmt: skip
        start = g.node("Unsqueeze", [engine_io.WRITE_INDEX, one], "mask.start")  # [B, 1]
        written = g.node("Less", [columns, start], "mask.written")  # [B, C]
        written = g.node("Unsqueeze", [written, g.ints((1, 2))], "mask.written_rows")
        seen = g.node("And", [mask, written], "mask.past")
        self._bias(g, seen, past)
        # New row j stands at column write_index + j of the mask.
        rows = g.node("Range", [
            g.int_scalar(0), g.node("Squeeze", [self._tokens(g), zero], "mask.tokens"),
            g.int_scalar(1)], "mask.rows")  # fmt: skip
        at = g.node("Add", [start, rows], "mask.new_columns")  # [B, S]
        at = g.node("Unsqueeze", [at, g.ints((1, 2))], "mask.new_columns_rows")  # [B, 1, 1, S]
        shape = g.node("Concat", [
            g.node("Shape", [at], "mask.batch", start=0, end=2), self._tokens(g), self._tokens(g)],
            "mask.new_shape", axis=0)  # fmt: skip
        at = g.node("Expand", [at, shape], "mask.new_columns_all")
        numbers = g.node("Cast", [mask], "mask.int32", to=6)
        picked = g.node("GatherElements", [numbers, at], "mask.new_int32", axis=3)
        self._bias(g, g.node("Cast", [picked], "mask.new", to=9), new)
        return past, new

    def _bias(self, g: GraphBuilder, mask: str, output: str) -> str:
        values = [g.scalar(0.0, "float32"), g.scalar(MASKED_SCORE, "float32")]
        bias = g.node("Where", [mask, *values], f"{output}.heads")
        return g.node("Unsqueeze", [bias, g.ints((2,))], output)

    def _capacity(self, g: GraphBuilder) -> str:
        if g.has("cache.capacity"):
            return "cache.capacity"
        return g.node("Shape", [engine_io.past_key(0)], "cache.capacity", start=2, end=3)

    def _tokens(self, g: GraphBuilder) -> str:
        if g.has("cache.tokens"):
            return "cache.tokens"
        return g.node("Shape", [engine_io.INPUT_IDS], "cache.tokens", start=1, end=2)

    def _widen(self, g: GraphBuilder, x: str, output: str) -> str:
        if self._dtype == "float32":
            return x
        return g.node("Cast", [x], output, to=1)

    def _narrow(self, g: GraphBuilder, x: str) -> str:
        return x if self._dtype == "float32" else cast(g, x, self._dtype)
