"""Powers of two that keep a float16 graph inside float16's range (65504).

Real Qwen2 checkpoints have residual activations of 1e4 to 1e5, and keys whose products with queries
exceed 65504: they overflow in float16. Scaling by powers of two is exact in binary floating point,
so the model's function does not change:

- ``residual`` r: embedding, o_proj and down_proj are multiplied by 2**-r. The residual stream
  shrinks by 2**-r; RMSNorm is invariant once its epsilon is multiplied by 2**-2r.
- ``mlp[i]`` m: up_proj of layer i is multiplied by 2**-m and down_proj by 2**m. ``up`` and the
  product of gate and up, which feeds down_proj, shrink by 2**-m.
- ``value[i]`` v: v_proj by 2**-v and o_proj by 2**v, which shrinks values and their average.
- ``query[i]``, ``key[i]`` q, k: q_proj by 2**-q and k_proj by 2**-k. The attention's scale is
  multiplied by 2**(q + k); where the family has q_norm and k_norm, their epsilons by 2**-2q and
  2**-2k instead.
- ``input_norm[i]`` a, ``post_attention_norm[i]`` b, ``final_norm`` f: input_layernorm's weight is
  multiplied by 2**-a and q_proj, k_proj and v_proj by 2**a; post_attention_layernorm's by 2**-b and
  gate_proj and up_proj by 2**b; the final norm's by 2**-f and the head by 2**f. Biases stay.
- ``query_norm[i]``, ``key_norm[i]``, where the family has those norms: their weights by 2**-q and
  2**-k, the attention's scale by 2**(q + k).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from edgekit.errors import UnsupportedModelError
from edgekit.graph.float16_range import (
    UNSCALED_HEADROOM,
    LayerMaxima,
    ModelRange,
    NormRange,
    needed_exponent,
)
from edgekit.quant.packing import FLOAT16_MAX

_REMEDY = "Build it for a target with float32 activations: --target cpu"


@dataclass(frozen=True, slots=True)
class Exponents:
    """Exponents of two; empty tuples mean zero for every layer.

    Those that are attended (query and key, or query_norm and key_norm) and those of norms may be
    negative, others not.
    """

    residual: int = 0
    mlp: tuple[int, ...] = field(default=())
    value: tuple[int, ...] = field(default=())
    query: tuple[int, ...] = field(default=())
    key: tuple[int, ...] = field(default=())
    query_norm: tuple[int, ...] = field(default=())
    key_norm: tuple[int, ...] = field(default=())
    input_norm: tuple[int, ...] = field(default=())
    post_attention_norm: tuple[int, ...] = field(default=())
    final_norm: int = 0

    def attended(self, layer: int, *, qk_norm: bool) -> tuple[int, int]:
        """Return the exponents of what a layer's attention multiplies, its queries and keys.

        Args:
            layer: Its index.
            qk_norm: Whether queries and keys are normalized after their projection.
        """
        query, key = (self.query_norm, self.key_norm) if qk_norm else (self.query, self.key)
        return _at(query, layer), _at(key, layer)

    def of_score(self, layer: int, *, qk_norm: bool) -> int:
        """Return e such that a layer's attention scale is multiplied by 2**e."""
        return sum(self.attended(layer, qk_norm=qk_norm))

    def of_weight(self, name: str) -> int:
        """Return e such that the stored weight of ``name`` is multiplied by 2**e.

        Args:
            name: ``model.embed_tokens``, a linear's name or a norm's.
        """
        outside = {
            "model.embed_tokens": -self.residual,
            "model.norm": -self.final_norm,
            "lm_head": self.final_norm,
        }
        if name in outside:
            return outside[name]
        layer, module = int(name.split(".")[2]), name.rsplit(".", 1)[1]
        attention, mlp = _at(self.input_norm, layer), _at(self.post_attention_norm, layer)
        norms = {
            "input_layernorm": attention,
            "post_attention_layernorm": mlp,
            "q_norm": _at(self.query_norm, layer),
            "k_norm": _at(self.key_norm, layer),
        }
        if module in norms:
            return -norms[module]
        # What a linear reads was multiplied by 2**-undone.
        undone = {"o_proj": _at(self.value, layer), "down_proj": _at(self.mlp, layer)}
        undone.update(dict.fromkeys(("q_proj", "k_proj", "v_proj"), attention))
        undone.update(dict.fromkeys(("gate_proj", "up_proj"), mlp))
        return undone.get(module, 0) + self.of_bias(name)

    def of_bias(self, name: str) -> int:
        """Return e such that the bias of a linear in a layer, as its output, is times 2**e.

        An o_proj or down_proj bias is added to its output, so only the residual's exponent counts.
        """
        layer, module = int(name.split(".")[2]), name.rsplit(".", 1)[1]
        by_module = {
            "o_proj": self.residual,
            "down_proj": self.residual,
            "up_proj": _at(self.mlp, layer),
            "v_proj": _at(self.value, layer),
            "q_proj": _at(self.query, layer),
            "k_proj": _at(self.key, layer),
        }
        return -by_module.get(module, 0)

    def of_tensor(self, key: str) -> int:
        """Return e such that the checkpoint's tensor ``key`` (a weight or bias) is times 2**e."""
        module, kind = key.rsplit(".", 1)
        return self.of_bias(module) if kind == "bias" else self.of_weight(module)

    def of_norm_input(self, name: str) -> int:
        """Return e such that what norm ``name`` reads is multiplied by 2**e."""
        module = name.rsplit(".", 1)[1]
        if module in {"q_norm", "k_norm"}:
            return self.of_bias(name.replace("_norm", "_proj"))
        return -self.residual

    def to_dict(self) -> dict[str, int | list[int]]:
        """Return the JSON form stored in a manifest."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Exponents:
        """Read what :meth:`to_dict` wrote; a missing field means zero.

        Raises:
            TypeError, ValueError: A field has another form.
        """
        found = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        residual, final_norm = (int(found.pop(name, 0)) for name in ("residual", "final_norm"))
        by_layer = {name: tuple(map(int, value)) for name, value in found.items()}
        return cls(residual=residual, final_norm=final_norm, **by_layer)


def choose_exponents(
    residual_amax: float, maxima: Sequence[LayerMaxima], held: ModelRange, *, qk_norm: bool
) -> Exponents:
    """Choose exponents from measured absolute maxima of the reference model.

    Each layer is searched once; where nothing holds its queries and keys, or what a norm makes,
    theirs are zero, and :func:`require_float16` refuses it.

    Args:
        residual_amax: Largest |residual| over all layers and tokens.
        maxima: One entry a layer.
        held: The same as ranges (``model_range``).
        qk_norm: Whether queries and keys are normalized after their projection.
    """
    pairs = [layer.exponents() or (0, 0) for layer in held.attention]
    attended = tuple(q for q, _ in pairs), tuple(k for _, k in pairs)
    projected = attended
    if qk_norm:
        projected = (
            tuple(needed_exponent(seen.query_projection) for seen in maxima),
            tuple(needed_exponent(seen.key_projection) for seen in maxima),
        )
    return Exponents(
        residual=needed_exponent(residual_amax),
        mlp=tuple(needed_exponent(max(seen.up, seen.mlp_product)) for seen in maxima),
        value=tuple(needed_exponent(seen.value) for seen in maxima),
        query=projected[0],
        key=projected[1],
        query_norm=attended[0] if qk_norm else (),
        key_norm=attended[1] if qk_norm else (),
        input_norm=tuple(norm.exponent() or 0 for norm in held.input_norm),
        post_attention_norm=tuple(norm.exponent() or 0 for norm in held.post_attention_norm),
        final_norm=held.final_norm.exponent() or 0,
    )


def require_float16(
    maxima: Sequence[LayerMaxima], held: ModelRange, chosen: Exponents, *, qk_norm: bool
) -> None:
    """Refuse a model with activations that float16 cannot hold, however it is scaled.

    Args:
        maxima: One entry a layer.
        held: The same as ranges (``model_range``).
        chosen: From :func:`choose_exponents`.
        qk_norm: Whether queries and keys are normalized after their projection.

    Raises:
        UnsupportedModelError: Names the layer, what is out of range there, and how large it is.
    """
    for layer, (seen, attention) in enumerate(zip(maxima, held.attention, strict=True)):
        unscaled = {"attention scores": seen.attention_score, "gate": seen.gate}
        for what, amax in unscaled.items():
            if amax * UNSCALED_HEADROOM > FLOAT16_MAX:
                raise UnsupportedModelError(
                    f"layer {layer} has {what} of {amax:.4g}, too near float16's {FLOAT16_MAX:.0f} "
                    "(or beyond it), and they cannot be scaled",
                    _REMEDY,
                )
        if not attention.fits(*chosen.attended(layer, qk_norm=qk_norm)):
            raise UnsupportedModelError(
                f"layer {layer} has queries of {attention.query:.4g} and keys of "
                f"{attention.key:.4g}: no power of two holds both in float16",
                _REMEDY,
            )
    for name, norm in _norms(held):
        if not norm.fits(-chosen.of_weight(name)):
            raise UnsupportedModelError(
                f"{name} has outputs up to {norm.output:.4g} and weights up to {norm.weight:.4g}: "
                "no power of two holds them in float16",
                _REMEDY,
            )


def _norms(held: ModelRange) -> Iterator[tuple[str, NormRange]]:
    """Yield the norms before linears by their names."""
    layers = zip(held.input_norm, held.post_attention_norm, strict=True)
    for layer, (before_attention, before_mlp) in enumerate(layers):
        yield f"model.layers.{layer}.input_layernorm", before_attention
        yield f"model.layers.{layer}.post_attention_layernorm", before_mlp
    yield "model.norm", held.final_norm


def _at(exponents: tuple[int, ...], layer: int) -> int:
    return exponents[layer] if exponents else 0
