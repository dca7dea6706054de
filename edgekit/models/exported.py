"""What is known of a model whose graph another exporter made: enough to run it, not to build it.

A bundle's manifest holds either this or a :class:`~edgekit.models.config.ModelConfig`, told apart
by the key ``exporter``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from edgekit.contracts.fields import check_choice, check_fields, show
from edgekit.errors import BundleError
from edgekit.models.config import ModelConfig, RopeConfig, RopeType


@dataclass(frozen=True, slots=True)
class ExportedConfig:
    """An architecture edgekit has no graph of its own for.

    Cache sizes and vocabulary are those of the exported graph, the rest is ``config.json``'s;
    names are those of :class:`~edgekit.models.config.ModelConfig`.
    """

    model_type: str
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    exporter: str = "optimum"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :func:`stored_config` reads back."""
        return {**asdict(self), "eos_token_ids": list(self.eos_token_ids)}


AnyConfig = ModelConfig | ExportedConfig

MAX_LAYERS = 1000
_SIZES = ("num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size")
_SHARED = {
    **dict.fromkeys((*_SIZES, "max_position_embeddings"), "positive"),
    "model_type": "text",
    "eos_token_ids": "counts",
    "bos_token_id": "count?",
    "pad_token_id": "count?",
}
_FLAGS = ("tie_word_embeddings", "qkv_bias", "o_bias", "mlp_bias", "qk_norm")
_NATIVE = {
    **_SHARED,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), "positive"),
    **dict.fromkeys(_FLAGS, "flag"),
    "rms_norm_eps": "number",
    "rope": "object",
}
_ROPE = {
    "rope_type": "text",
    **dict.fromkeys(("rope_theta", "factor", "attention_factor"), "number"),
    "original_max_position_embeddings": "positive?",
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"), "number?"),
}


def stored_config(data: Mapping[str, Any]) -> AnyConfig:
    """Read the ``model.config`` of a bundle's manifest.

    Raises:
        BundleError: A field is missing, unknown or of a wrong type.
    """
    where = "manifest.json: model.config"
    native = "exporter" not in data
    check_fields(data, _NATIVE if native else {**_SHARED, "exporter": "text"}, where)
    if native:
        check_fields(data["rope"], _ROPE, f"{where}.rope")
        check_choice(data["rope"]["rope_type"], get_args(RopeType), f"{where}.rope: rope_type")
    if data["num_hidden_layers"] > MAX_LAYERS:
        raise BundleError(f"{where} has {data['num_hidden_layers']} layers, at most {MAX_LAYERS}")
    _refuse_unknown(data, ModelConfig if native else ExportedConfig, where)
    if native:
        _refuse_unknown(data["rope"], RopeConfig, f"{where}.rope")
        return ModelConfig.from_dict(dict(data))
    return ExportedConfig(**{**data, "eos_token_ids": tuple(data["eos_token_ids"])})


def _refuse_unknown(data: Mapping[str, Any], kind: Any, where: str) -> None:
    unknown = sorted(set(data) - {item.name for item in fields(kind)})
    if unknown:
        raise BundleError(f"{where} has an unknown field {show(unknown[0])}", "Upgrade edgekit")
