"""What is known of a model whose graph another exporter made: enough to run it, not to build it.

A bundle's manifest holds either this or a :class:`~edgekit.models.config.ModelConfig`, told apart
by the key ``exporter``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.models.config import ModelConfig


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


def stored_config(data: Mapping[str, Any]) -> AnyConfig:
    """Read the ``model.config`` of a bundle's manifest."""
    if "exporter" not in data:
        return ModelConfig.from_dict(dict(data))
    return ExportedConfig(**{**data, "eos_token_ids": tuple(data["eos_token_ids"])})
