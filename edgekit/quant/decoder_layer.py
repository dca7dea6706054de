"""One decoder layer in torch, cut where its linears read their inputs.

The arithmetic is that of ``edgekit.evaluate.reference`` (all three families) in float32, and it is
differentiable. Whole sequences only: there is no key/value cache. Needs torch (extra
``calibrate``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from edgekit.models.config import ModelConfig
from edgekit.models.rope import cos_sin_tables

LayerTensors = Mapping[str, torch.Tensor]
"""Tensors of one layer by their name within it: ``self_attn.q_proj.weight`` [N, K], float32."""
ApplyLinear = Callable[[LayerTensors, str, torch.Tensor], torch.Tensor]
"""Takes a layer's tensors, a linear's name and its input [..., K] to its output [..., N]."""


@dataclass(frozen=True, slots=True)
class Sublayer:
    """Linears that read one input, in execution order.

    Attributes:
        linears: Their names within the layer.
        inputs: Residual stream [B, S, hidden] to their input [B, S, K].
        norm: The norm that makes the input; empty when a linear does.
        residual: Whether the (single) linear's output is added to the residual stream.
    """

    linears: tuple[str, ...]
    inputs: Callable[[DecoderLayer, LayerTensors, torch.Tensor], torch.Tensor]
    norm: str = ""
    residual: bool = False


class DecoderLayer:
    """The forward pass of any decoder layer of a model.

    Args:
        config: The architecture.
        window: Tokens of the longest sequence.
        device: Where the rotary tables live.
        apply: Applies a linear by its name; :func:`linear` unless told otherwise.
    """

    def __init__(
        self,
        config: ModelConfig,
        window: int,
        device: torch.device,
        apply: ApplyLinear | None = None,
    ) -> None:
        self.config = config
        self._apply = apply or linear
        cos, sin = cos_sin_tables(config.rope, config.head_dim, np.arange(window))
        self._cos = torch.from_numpy(cos).to(device)
        self._sin = torch.from_numpy(sin).to(device)

    def __call__(self, tensors: LayerTensors, x: torch.Tensor) -> torch.Tensor:
        """Return the residual stream [B, S, hidden] after the layer."""
        x = x + self._apply(tensors, "self_attn.o_proj", self.attention(tensors, x))
        return x + self._apply(tensors, "mlp.down_proj", self.gated_product(tensors, x))

    def norm(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the RMS norm of ``x`` [..., D] times ``weight`` [D]."""
        power = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(power + self.config.rms_norm_eps) * weight

    def attention_norm(self, tensors: LayerTensors, x: torch.Tensor) -> torch.Tensor:
        """Return what q, k and v read, [B, S, hidden]."""
        return self.norm(tensors["input_layernorm.weight"], x)

    def attention(self, tensors: LayerTensors, x: torch.Tensor) -> torch.Tensor:
        """Return what o_proj reads, [B, S, heads * head_dim]."""
        normed = self.attention_norm(tensors, x)
        queries = self._heads(tensors, "q", normed)
        keys = self._heads(tensors, "k", normed)
        values = self._heads(tensors, "v", normed)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2)

    def mlp_norm(self, tensors: LayerTensors, x: torch.Tensor) -> torch.Tensor:
        """Return what gate_proj and up_proj read, [B, S, hidden]; ``x`` is past the attention."""
        return self.norm(tensors["post_attention_layernorm.weight"], x)

    def gated_product(self, tensors: LayerTensors, x: torch.Tensor) -> torch.Tensor:
        """Return what down_proj reads, [B, S, intermediate]; ``x`` is past the attention."""
        normed = self.mlp_norm(tensors, x)
        gate = F.silu(self._apply(tensors, "mlp.gate_proj", normed))
        return gate * self._apply(tensors, "mlp.up_proj", normed)

    def _heads(self, tensors: LayerTensors, kind: str, x: torch.Tensor) -> torch.Tensor:
        """Return queries, keys or values, [B, heads, S, head_dim], normed and rotated."""
        heads = self._apply(tensors, f"self_attn.{kind}_proj", x)
        heads = heads.view(*x.shape[:-1], -1, self.config.head_dim)
        if kind == "v":
            return heads.transpose(1, 2)
        if self.config.qk_norm:
            heads = self.norm(tensors[f"self_attn.{kind}_norm.weight"], heads)
        length = x.shape[1]
        cos, sin = self._cos[:length, None], self._sin[:length, None]
        first, second = heads.chunk(2, -1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        return rotated.transpose(1, 2)


SUBLAYERS: tuple[Sublayer, ...] = (
    Sublayer(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        DecoderLayer.attention_norm,
        norm="input_layernorm",
    ),
    Sublayer(("self_attn.o_proj",), DecoderLayer.attention, residual=True),
    Sublayer(
        ("mlp.gate_proj", "mlp.up_proj"), DecoderLayer.mlp_norm, norm="post_attention_layernorm"
    ),
    Sublayer(("mlp.down_proj",), DecoderLayer.gated_product, residual=True),
)


def linear(tensors: LayerTensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` [..., K] through linear ``name``, [..., N], bias included."""
    return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
