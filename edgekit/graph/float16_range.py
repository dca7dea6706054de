"""What float16 (largest 65504) holds of a model's activations, by the reference's measured maxima.

Most activations can be shrunk by powers of two (``graph.exponents``). Two cannot: attention's
scaled scores, of which a softmax is taken, and SwiGLU's gate, of which a sigmoid is. A model that
exceeds float16 there is refused. Scores also have to be held finely, since a softmax is taken of
their differences: large ones are warned of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekit.quant.packing import FLOAT16_MAX

HEADROOM = 16.0
"""Factor kept free above the largest activation seen: other inputs may go higher."""
UNSCALED_HEADROOM = 2.0
"""The same where nothing can be done about it: enough to refuse what is about to overflow, not
models that merely come near."""
FLOAT16_FRACTION_BITS = 10
COARSE_SCORE = 512.0
"""From here float16 holds scores in steps of 0.5: attention weights are off by up to 28 %."""
SMALLEST_PEAK = 2.0**-10
"""Least a norm's largest output may be: values 16 times smaller are still normal numbers."""
LARGEST_EXPONENT = 15
"""q, k and norms are multiplied by 2**-15 to 2**15: beyond that float16 loses small values."""


@dataclass(frozen=True, slots=True)
class LayerMaxima:
    """Largest absolute values seen in one layer.

    Attributes:
        residual: Residual stream after the layer's attention and after its MLP, and what both add.
        input_norm: Output of input_layernorm.
        input_norm_weight: Its weight.
        post_attention_norm: Output of post_attention_layernorm.
        post_attention_norm_weight: Its weight.
        query_projection: Output of q_proj, before and after its bias.
        key_projection: Output of k_proj, before and after its bias.
        query: q after bias and q_norm, before rotary.
        key: k after bias and k_norm, before rotary.
        value: v, before and after its bias.
        attention_score: ``q . k / sqrt(head_dim)``, masked pairs included where computed.
        attended_score: The same of each query's largest score alone: near it lies what is attended.
        gate: Output of gate_proj, before and after its bias.
        up: Output of up_proj, before and after its bias.
        mlp_product: ``silu(gate) * up``, which down_proj reads.
    """

    residual: float = 0.0
    input_norm: float = 0.0
    input_norm_weight: float = 0.0
    post_attention_norm: float = 0.0
    post_attention_norm_weight: float = 0.0
    query_projection: float = 0.0
    key_projection: float = 0.0
    query: float = 0.0
    key: float = 0.0
    value: float = 0.0
    attention_score: float = 0.0
    attended_score: float = 0.0
    gate: float = 0.0
    up: float = 0.0
    mlp_product: float = 0.0

    def merge(self, **seen: float) -> LayerMaxima:
        """Return the larger of each field and ``seen``."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values.update({name: max(values[name], value) for name, value in seen.items()})
        return LayerMaxima(**values)

    def to_dict(self) -> dict[str, float]:
        """Return the JSON form (``residual_amax``, ...), four significant digits."""
        return {f"{name}_amax": float(f"{getattr(self, name):.4g}") for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class AttentionRange:
    """Queries, keys and scores of one layer, q and k multiplied by 2**-query and 2**-key.

    The attention's scale is multiplied by 2**(query + key). Engines differ in where they apply it:
    to the product of q and k, to q alone, or its root to both (as ONNX defines ``Attention``).

    Attributes:
        query: Largest |q| an engine holds.
        key: Largest |k|.
        score: Largest ``|q . k| / sqrt(head_dim)``.
        head_dim: Size of a head.
    """

    query: float
    key: float
    score: float
    head_dim: int

    def fits(self, query: int, key: int) -> bool:
        """Whether everything an engine may compute keeps its headroom under two exponents."""
        scale = math.ldexp(1 / math.sqrt(self.head_dim), query + key)
        q, k = math.ldexp(self.query, -query), math.ldexp(self.key, -key)
        root = math.sqrt(scale)
        largest = max(q, k, self.score / scale, q * scale, q * root, k * root)
        return largest * HEADROOM <= FLOAT16_MAX and scale <= FLOAT16_MAX

    def exponents(self) -> tuple[int, int] | None:
        """Return the smallest exponents (query, key) that fit; None where none do.

        One is negative where a tiny q meets a huge k, or the reverse. Of equally small ones those
        that leave queries and keys nearest in size.
        """
        for total in range(2 * LARGEST_EXPONENT + 1):
            fitting = [pair for pair in _pairs(total) if self.fits(*pair)]
            if fitting:
                return min(fitting, key=self._imbalance)
        return None

    def _imbalance(self, pair: tuple[int, int]) -> float:
        query, key = pair
        least = 2.0**-24  # float16's smallest stands for an amax of 0
        q, k = math.log2(max(self.query, least)), math.log2(max(self.key, least))
        return abs(q - query - k + key)


@dataclass(frozen=True, slots=True)
class NormRange:
    """Output of an RMSNorm, whose weight is multiplied by 2**-e, the linears that read it by 2**e.

    What is normalized is at most ``sqrt(hidden_size)``: only the weight can take it out of range.

    Attributes:
        output: Largest |output|; 0 needs no exponent.
        weight: Largest |weight|.
    """

    output: float
    weight: float

    def fits(self, exponent: int) -> bool:
        """Whether an exponent leaves the output its headroom and keeps it from being subnormal."""
        output = math.ldexp(self.output, -exponent)
        held = (
            output * HEADROOM <= FLOAT16_MAX and math.ldexp(self.weight, -exponent) <= FLOAT16_MAX
        )
        return held and (output >= SMALLEST_PEAK or output == 0)

    def exponent(self) -> int | None:
        """Return the smallest exponent that fits; None where none does."""
        ascending = sorted(range(-LARGEST_EXPONENT, LARGEST_EXPONENT + 1), key=abs)
        return next((e for e in ascending if self.fits(e)), None)


@dataclass(frozen=True, slots=True)
class ModelRange:
    """What exponents that depend on each other, or may be negative, have to hold in a model.

    Attributes:
        attention: One entry a layer.
        input_norm: One entry a layer.
        post_attention_norm: One entry a layer.
        final_norm: The norm before the head.
    """

    attention: tuple[AttentionRange, ...]
    input_norm: tuple[NormRange, ...]
    post_attention_norm: tuple[NormRange, ...]
    final_norm: NormRange


def model_range(
    maxima: Sequence[LayerMaxima], final_norm: NormRange, head_dim: int, *, qk_norm: bool
) -> ModelRange:
    """Return the ranges of a model that was measured.

    Args:
        maxima: One entry a layer.
        final_norm: Measured before the head.
        head_dim: Size of a head.
        qk_norm: Whether queries and keys are normalized after their projection.
    """
    return ModelRange(
        tuple(attention_range(x, head_dim, qk_norm=qk_norm) for x in maxima),
        tuple(NormRange(x.input_norm, x.input_norm_weight) for x in maxima),
        tuple(NormRange(x.post_attention_norm, x.post_attention_norm_weight) for x in maxima),
        final_norm,
    )


def attention_range(seen: LayerMaxima, head_dim: int, *, qk_norm: bool) -> AttentionRange:
    """Return what the exponents of a layer's queries and keys have to hold.

    Without q_norm and k_norm they are those of the projections too.
    """
    query = seen.query if qk_norm else max(seen.query, seen.query_projection)
    key = seen.key if qk_norm else max(seen.key, seen.key_projection)
    return AttentionRange(query, key, seen.attention_score, head_dim)


def coarse_score_warning(maxima: Sequence[LayerMaxima]) -> str | None:
    """Return a sentence on attention that float16 rounds coarsely; None where there is none."""
    scores = [seen.attended_score for seen in maxima]
    largest = max(scores, default=0.0)
    if largest < COARSE_SCORE:
        return None
    step = 2.0 ** (math.floor(math.log2(largest)) - FLOAT16_FRACTION_BITS)
    return (
        f"layer {scores.index(largest)} attends to scores up to {largest:.4g}, which float16 holds "
        f"in steps of {step:g} ({sum(x >= COARSE_SCORE for x in scores)} of {len(scores)} layers "
        f"exceed {COARSE_SCORE:g}): answers may differ from the float32 graph's (--target cpu)"
    )


def needed_exponent(amax: float) -> int:
    """Return the smallest e >= 0 with ``amax * HEADROOM * 2**-e <= 65504``."""
    if amax * HEADROOM <= FLOAT16_MAX:
        return 0
    return math.ceil(math.log2(amax * HEADROOM / FLOAT16_MAX))


def _pairs(total: int) -> Iterator[tuple[int, int]]:
    """Yield the exponents (q, k) with ``|q| + |k| == total``, ascending."""
    for query in range(-min(total, LARGEST_EXPONENT), min(total, LARGEST_EXPONENT) + 1):
        key = total - abs(query)
        if key <= LARGEST_EXPONENT:
            yield from ((query, x) for x in sorted({-key, key}))
