"""Predicted bytes of a bundle on its target, before anything is built.

The one memory model: ``edgekit build`` refuses by it what ``edgekit plan`` says does not fit.
Weights are exact (the recipe fixes every blob's size). Caches are exact for the given context and
sequences. Activations are bounded by one prefill chunk; the runtime's own memory is an
allowance, stated as such. So is what the device needs while it builds its engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.errors import UnsupportedModelError
from edgekit.models.config import ModelConfig, all_linears, count_parameters, tensor_shapes
from edgekit.quant.scheme import QuantScheme
from edgekit.recipe import EmbeddingType
from edgekit.targets import Target
from edgekit.units import format_bytes

PREFILL_CHUNK_TOKENS = 512
RUNTIME_ALLOWANCE_BYTES = 1_000_000_000
"""CUDA context, cuBLAS and the engine's own buffers; an allowance, not a measurement."""
ENGINE_BUILD_BYTES_PER_PARAMETER = 4
"""Peak memory of building an engine on the device: users of TensorRT Edge-LLM saw three to four
bytes a parameter (github.com/NVIDIA/TensorRT-Edge-LLM/issues/30); the larger is taken."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Predicted memory of a model on its target.

    Attributes:
        weights_bytes: Every stored tensor.
        linear_bytes: The linears alone, head included: codes, scales, dense weights.
        cache_bytes: Keys and values of ``max_sequences`` full contexts.
        activations_bytes: One prefill chunk's largest live tensors.
        runtime_bytes: Allowance for the engine itself.
        usable_bytes: What the target offers after its reserve.
        bits_per_linear_weight: Stored bits per weight of the linears, scales included.
    """

    weights_bytes: int
    linear_bytes: int
    cache_bytes: int
    activations_bytes: int
    runtime_bytes: int
    usable_bytes: int
    bits_per_linear_weight: float

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.cache_bytes + self.activations_bytes + self.runtime_bytes

    @property
    def fits(self) -> bool:
        """Whether it stays within the usable memory."""
        return self.total_bytes <= self.usable_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "total_bytes": self.total_bytes, "fits": self.fits}


def predict_fit(
    config: ModelConfig,
    schemes: Mapping[str, QuantScheme | None],
    embedding: EmbeddingType,
    target: Target,
    *,
    max_context: int,
    max_sequences: int,
) -> Fit:
    """Predict the memory of a model quantized by ``schemes`` on ``target``."""
    linear_bits = sum(
        linear.in_features
        * linear.out_features
        * (16.0 if scheme is None else scheme.bits_per_weight(linear.in_features))
        for linear, scheme in ((x, schemes[x.name]) for x in all_linears(config))
    )
    linear_weights = sum(x.in_features * x.out_features for x in all_linears(config))
    width = 2 if target.activation_dtype == "float16" else 4
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    chunk = min(PREFILL_CHUNK_TOKENS, max_context)
    # An engine that does not fuse attention holds every head's scores and their softmax; the
    # trt103 dialect spells both out, in float32.
    scores = 2 * config.num_attention_heads * max_context
    scores *= 4 // width if target.dialect == "trt103" else 1
    widest = 4 * config.hidden_size + max(3 * config.intermediate_size, scores)
    return Fit(
        weights_bytes=int(linear_bits) // 8 + _other_bytes(config, embedding, max_context),
        linear_bytes=int(linear_bits) // 8,
        cache_bytes=cache * width * max_context * max_sequences,
        activations_bytes=width * (chunk * widest + max_sequences * config.vocab_size),
        runtime_bytes=RUNTIME_ALLOWANCE_BYTES,
        usable_bytes=target.usable_bytes,
        bits_per_linear_weight=linear_bits / linear_weights,
    )


def require_fit(fit: Fit, target: Target) -> None:
    """Refuse a model that would not leave the target its reserve.

    Raises:
        UnsupportedModelError: It needs more than the target's usable memory.
    """
    if not fit.fits:
        raise misfit(fit, target)


def misfit(fit: Fit, target: Target) -> UnsupportedModelError:
    """Return why a model does not fit, and what to do."""
    return UnsupportedModelError(
        f"the model needs {format_bytes(fit.total_bytes)} of memory "
        f"({format_bytes(fit.cache_bytes)} of it caches), {target.title} offers "
        f"{format_bytes(fit.usable_bytes)} after its 20 % reserve",
        "Lower --max-context or --max-sequences, or use a recipe with fewer bits",
    )


def engine_build_peak_bytes(config: ModelConfig) -> int:
    """Return what the device needs while it builds its engine; an allowance."""
    return ENGINE_BUILD_BYTES_PER_PARAMETER * count_parameters(config)


def vector_bytes(config: ModelConfig) -> int:
    """Return float16 bytes of norms and biases: what a decode step reads beside its linears."""
    shapes = tensor_shapes(config)
    return sum(2 * shape[0] for shape in shapes.values() if len(shape) == 1)


def _other_bytes(config: ModelConfig, embedding: EmbeddingType, max_context: int) -> int:
    """Bytes of what is no linear's weight: embedding, norms, biases, rope tables."""
    linears = {x.weight_key for x in all_linears(config)} - {"model.embed_tokens.weight"}
    total = 0
    for name, shape in tensor_shapes(config).items():
        size = math.prod(shape)
        if name == "model.embed_tokens.weight":
            total += size * (2 if embedding == "float16" else 1)
            total += 0 if embedding == "float16" else 2 * shape[0]
        elif name not in linears:
            total += 2 * size
    return total + 2 * 4 * max_context * (config.head_dim // 2)
