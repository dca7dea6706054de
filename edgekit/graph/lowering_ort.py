"""The ``ort`` dialect: ONNX Runtime's own operators, fewer and faster than the standard ones.

``MatMulNBits`` multiplies by 4 and 8 bit codes, query, key and value by one node and gate and up by
one; ``GroupQueryAttention`` rotates, writes the cache and attends;
``SkipSimplifiedLayerNormalization`` adds and normalizes. Their weights are made from the blobs at
load (``contracts.derived``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.contracts import derived, engine_io
from edgekit.contracts.derived import DerivedTensor
from edgekit.graph.builder import ActivationDtype, GraphBuilder
from edgekit.graph.lowering import AttentionBlock, Norm, Product, StandardLowering
from edgekit.graph.weights import GraphTensor, bias_name, codes_name, scales_name
from edgekit.models.config import ModelConfig

DOMAIN = "com.microsoft"
ROW_MULTIPLE = 64
"""Rotary tables reach to the next multiple of this above the context: where the last cache tier
ends, an idle slot that is full still has a position."""
INT8_ACTIVATIONS = 4
"""``accuracy_level`` on a CPU: without it 8-bit weights run a hundred times slower."""
_BLOCKS = (128, 64, 32, 16)


def fits_ort(config: ModelConfig) -> bool:
    """Whether GroupQueryAttention rotates heads of the model's size: multiples of 16 only."""
    return config.head_dim % 16 == 0


def block_size(product: Product) -> int | None:
    """Return the block size of a linear as ``MatMulNBits``; None where it cannot be one.

    It is the scheme's group size. Where a scheme has one scale a channel, this is repeated in every
    block. Blocks of 32 for every scheme would open ONNX Runtime's weight-only kernels for CUDA
    (``ep.cuda.fpa_intb_gemm``), but at batch 1 these are slower: docs/adr/0012.
    """
    scheme, channels = product.scheme, product.linear.in_features
    if scheme is None or channels % 2:
        return None
    size = scheme.group_size
    if not size:
        return next((block for block in _BLOCKS if channels % block == 0), _BLOCKS[-1])
    return size if size in {*_BLOCKS, 256} else None


class OrtLowering(StandardLowering):
    """ONNX opset 23 and ``com.microsoft``; norms of a sum, products and attention are fused."""

    opset = 23
    domains: Mapping[str, int] = {DOMAIN: 1}

    def __init__(self, dtype: ActivationDtype) -> None:
        self._dtype = dtype

    def inputs(self, g: GraphBuilder) -> None:
        """Declare lengths instead of positions and masks."""
        g.input(engine_io.INPUT_IDS, "int64", ("batch", "sequence"))
        g.input(engine_io.SEQLENS_K, "int32", ("batch",))
        g.input(engine_io.TOTAL_SEQUENCE_LENGTH, "int32", (1,))
        g.input(engine_io.LOGITS_INDEX, "int64", ("batch", "wanted", 1))

    def add_norm(
        self, g: GraphBuilder, x: str, branch: str, total: str, norm: Norm
    ) -> tuple[str, str]:
        """Return both outputs of SkipSimplifiedLayerNormalization."""
        normed, _, _, total = g.node_many(
            "SkipSimplifiedLayerNormalization",
            [x, branch, norm.weight],
            [norm.name, "", "", total],
            domain=DOMAIN,
            epsilon=norm.epsilon,
        )
        return total, normed

    def multiply(
        self,
        g: GraphBuilder,
        x: str,
        product: Product,
        dtype: ActivationDtype,
        output: str | None = None,
    ) -> str:
        """Return MatMulNBits, or what ``standard`` has where it does not take the scheme."""
        if block_size(product) is None:
            return super().multiply(g, x, product, dtype, output)
        return self._joined(g, x, [product], product.linear.name, output)

    def multiply_all(
        self,
        g: GraphBuilder,
        x: str,
        products: Sequence[Product],
        dtype: ActivationDtype,
        name: str,
    ) -> Sequence[str]:
        """Multiply at once and split, where the linears are stored alike."""
        if not joinable(products):
            return super().multiply_all(g, x, products, dtype, name)
        joined = self._joined(g, x, products, name)
        widths = g.ints([product.linear.out_features for product in products])
        names = [product.linear.name for product in products]
        return g.node_many("Split", [joined, widths], names, axis=-1)

    def attention(self, g: GraphBuilder, x: str, block: AttentionBlock) -> str:
        """Return GroupQueryAttention of the joined projection, or of three where it cannot be."""
        products = [block.query, block.key, block.value]
        name = f"{block.name}.qkv_proj"
        if joinable(products) and block.query_norm is None:
            qkv = [self._joined(g, x, products, name), "", ""]
        else:
            query, key, value = self.multiply_all(g, x, products, block.dtype, name)
            query = self._norm_heads(g, query, block.query_norm, block.heads.dim)
            qkv = [query, self._norm_heads(g, key, block.key_norm, block.heads.dim), value]
        past = [engine_io.past_key(block.layer), engine_io.past_value(block.layer)]
        lengths = [engine_io.SEQLENS_K, engine_io.TOTAL_SEQUENCE_LENGTH]
        tables = [self._table(g, table) for table in (block.tables.cos, block.tables.sin)]
        outputs = [f"{block.name}.attention", *self.cache_outputs(block.layer)]
        return g.node_many(
            "GroupQueryAttention",
            [*qkv, *past, *lengths, *tables],
            outputs,
            domain=DOMAIN,
            num_heads=block.heads.queries,
            kv_num_heads=block.heads.keys,
            scale=block.scale,
            do_rotary=1,
        )[0]

    def _norm_heads(self, g: GraphBuilder, x: str, norm: Norm | None, dim: int) -> str:
        """Normalize each head of x [B, S, heads D]."""
        if norm is None:
            return x
        heads = g.node("Reshape", [x, g.ints((0, 0, -1, dim))], f"{norm.name}.heads")
        normed = self.rms_norm(g, heads, norm)
        return g.node("Reshape", [normed, g.ints((0, 0, -1))], f"{norm.name}.merged")

    def _joined(
        self,
        g: GraphBuilder,
        x: str,
        products: Sequence[Product],
        name: str,
        output: str | None = None,
    ) -> str:
        """Return x times the linears side by side, their biases added."""
        first, width = products[0], sum(p.linear.out_features for p in products)
        block, scheme = block_size(first), first.scheme
        if block is None or scheme is None:
            raise AssertionError
        channels = first.linear.in_features
        blocks = -(-channels // block)
        shape = (width, blocks, block * scheme.bits // 8)
        codes = tuple(codes_name(p.linear.name) for p in products)
        scales = tuple(scales_name(p.linear.name) for p in products)
        inputs = [
            x,
            g.derived(
                DerivedTensor(f"{name}.nbits_codes", derived.CODES, "uint8", shape, codes)
            ),
            g.derived(
                DerivedTensor(
                    f"{name}.nbits_scales", derived.SCALES, self._dtype, (width, blocks), scales
                )
            ),
        ]  # fmt: skip
        bias = self._bias(g, products, name, width)
        # On CUDA a bias keeps older MatMulNBits from its fast kernels.
        fused = bias is not None and self._dtype == "float32"
        result = output or name
        y = g.node(
            "MatMulNBits",
            [*inputs, "", "", bias] if bias is not None and fused else inputs,
            result if bias is None or fused else f"{name}.matmul",
            domain=DOMAIN,
            K=channels,
            N=width,
            bits=scheme.bits,
            block_size=block,
            accuracy_level=INT8_ACTIVATIONS if self._dtype == "float32" else 0,
        )
        return y if bias is None or fused else g.node("Add", [y, bias], result)

    def _bias(
        self, g: GraphBuilder, products: Sequence[Product], name: str, width: int
    ) -> str | None:
        biases = [product.bias for product in products if product.bias is not None]
        if not biases:
            return None
        if len(biases) == 1:
            return self.dense(g, biases[0], self._dtype)
        names = tuple(bias_name(product.linear.name) for product in products)
        joined = DerivedTensor(f"{name}.bias", derived.JOIN, self._dtype, (width,), names)
        return g.derived(joined)

    def _table(self, g: GraphBuilder, table: GraphTensor) -> str:
        rows = -(-(table.shape[0] + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
        shape = (rows, table.shape[1])
        name = f"{table.name}.rows"
        return g.derived(DerivedTensor(name, derived.ROWS, self._dtype, shape, (table.name,)))


def joinable(products: Sequence[Product]) -> bool:
    """Whether linears over the same input are stored alike: scheme, and a bias or none."""
    schemes = {p.scheme and p.scheme.label for p in products}
    biases = {p.bias is None for p in products}
    return len(schemes) == len(biases) == 1 and block_size(products[0]) is not None
