"""The folder another exporter reads: links to the weights, and a ``config.json`` it understands.

Optimum needs transformers 4, which does not know transformers 5's ``rope_parameters`` and silently
falls back to a ``rope_theta`` of 10000. The staged file says the same in transformers 4's words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.bundle.storage import storage_errors
from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.exporters.source import Source

_ROPE_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
    },
    "llama3": {
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    },
}
"""Rope types, and their keys, that mean the same in transformers 4.57 and 5."""

_OTHER_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
"""Families whose transformers 4 configuration spells the two keys its own way."""


def stage_checkpoint(source: Source, folder: Path) -> dict[str, Any]:
    """Fill ``folder`` with links to the weights and a rewritten ``config.json``.

    Returns:
        The rewritten configuration.

    Raises:
        UnsupportedModelError: The rope section cannot be said in transformers 4's words.
        CheckpointError: The configuration contradicts itself.
        StorageError: The folder cannot be written.
    """
    config = rewrite_config(source.hf_config)
    with storage_errors(folder):
        folder.mkdir(parents=True)
        for path in source.weight_files:
            (folder / path.name).symlink_to(path.resolve())
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text, encoding="utf-8")
    return config


def rewrite_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` in transformers 4's layout, without references to code.

    Raises:
        UnsupportedModelError: The rope section cannot be said in transformers 4's words.
        CheckpointError: Both layouts are there and disagree.
    """
    staged = {key: value for key, value in config.items() if key != "auto_map"}
    section = staged.pop("rope_parameters", None)
    _refuse_attn_factor(section, staged.get("rope_scaling"))
    if not section:
        return staged
    values = _flat(section)
    names = _OTHER_NAMES.get(str(config.get("model_type")), {})
    for key in ("rope_theta", "partial_rotary_factor"):
        value = values.pop(key, None)
        if value is not None:
            _put(staged, key, value)
            _put(staged, names.get(key, key), value)
    scaling = _scaling(values)
    if staged.get("rope_scaling") not in (None, scaling, section):
        raise CheckpointError(
            "config.json has rope_parameters and another rope_scaling",
            "Remove the one that the weights were not trained with",
        )
    staged["rope_scaling"] = scaling
    return staged


def _flat(section: Any) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise CheckpointError(f"config.json: rope_parameters must be an object, is {section!r}")
    nested = [key for key, value in section.items() if isinstance(value, Mapping)]
    if nested:
        raise UnsupportedModelError(
            f"config.json has rope_parameters for each kind of layer ({', '.join(nested)}), which "
            "transformers 4, that Optimum needs, reads otherwise",
            "Use a model whose layers share one rotary embedding",
        )
    return {key: value for key, value in section.items() if value is not None}


def _scaling(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return ``rope_scaling`` of what is left of ``rope_parameters``."""
    kinds = {values.pop(key) for key in ("rope_type", "type") if key in values}
    kind = kinds.pop() if len(kinds) == 1 else "default" if not kinds else None
    unknown = sorted(set(values) - _ROPE_KEYS.get(str(kind), set()))
    if kind not in _ROPE_KEYS or unknown:
        what = f"{unknown[0]} = {values[unknown[0]]!r}" if unknown else f"rope type {kind!r}"
        raise UnsupportedModelError(
            f"config.json: rope_parameters has {what}, which transformers 4, that Optimum needs, "
            "reads otherwise or not at all",
            f"Use a checkpoint with one of the rope types {', '.join(_ROPE_KEYS)}",
        )
    return None if kind == "default" else {"rope_type": kind, **values}


def _put(staged: dict[str, Any], key: str, value: Any) -> None:
    if staged.get(key) not in (None, value):
        raise CheckpointError(
            f"config.json has {key} {staged[key]!r} and, in rope_parameters, {value!r}"
        )
    staged[key] = value


def _refuse_attn_factor(*sections: Any) -> None:
    """Refuse a key that transformers 4 ignores: the model would attend too sharply."""
    for section in sections:
        if isinstance(section, Mapping) and section.get("attn_factor") is not None:
            raise UnsupportedModelError(
                "config.json: the rope section has attn_factor, which transformers ignores",
                "Build it with --exporter native, or replace it by attention_factor",
            )
