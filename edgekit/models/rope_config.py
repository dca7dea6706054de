"""The rope section of ``config.json``, in both of its layouts.

transformers 5 writes everything under ``rope_parameters``; published checkpoints have a top-level
``rope_theta`` and maybe ``rope_scaling`` (with ``type`` or ``rope_type``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.models.config import RopeConfig, RopeType
from edgekit.models.rope import yarn_mscale

_KEYS: dict[RopeType, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attn_factor",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
    },
}
MIN_NUMBER, MAX_NUMBER = 1e-6, 1e12

_INERT: dict[str, Any] = {"partial_rotary_factor": 1.0, "truncate": True}
"""Values at which keys of transformers 5 change nothing; null never does."""

_OPTIONAL = {
    "beta_fast",
    "beta_slow",
    "attn_factor",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
}


def rope_config(data: Mapping[str, Any], max_position_embeddings: int) -> RopeConfig:
    """Return the rope parameters of a ``config.json``.

    Raises:
        UnsupportedModelError: A rope type or key that is not modelled.
        CheckpointError: A value is missing, of the wrong type, or the two layouts disagree.
    """
    values = _section(data)
    names = [values.pop(key) for key in ("rope_type", "type") if key in values]
    if len(names) == 2 and names[0] != names[1]:
        raise CheckpointError(f"config.json names two rope types: {names[0]!r} and {names[1]!r}")
    kind = _rope_type(names[0] if names else "default")
    theta = values.pop("rope_theta", None)
    top = data.get("rope_theta")
    if theta is not None and top is not None and theta != top:
        raise CheckpointError(f"config.json has rope_theta {top} and, in its rope section, {theta}")
    values = {key: value for key, value in values.items() if _INERT.get(key) != value}
    _check_keys(kind, values)
    numbers = {key: _number(key, value) for key, value in values.items()}
    if kind == "llama3" and not numbers["low_freq_factor"] < numbers["high_freq_factor"]:
        raise CheckpointError("config.json: rope's low_freq_factor must be below high_freq_factor")
    context = numbers.get("original_max_position_embeddings")
    if context is None and kind == "yarn":
        context = float(max_position_embeddings)
    if context is not None and (context < 1 or context != int(context)):
        raise CheckpointError(
            "config.json: rope's original_max_position_embeddings must be a whole number of "
            f"tokens, is {context!r}"
        )
    base = _number("rope_theta", next((t for t in (theta, top) if t is not None), 10000.0))
    if base <= 1:
        raise CheckpointError(f"config.json: rope_theta must be more than 1, is {base!r}")
    return RopeConfig(
        rope_type=kind,
        rope_theta=base,
        factor=numbers.get("factor", 1.0),
        original_max_position_embeddings=None if context is None else int(context),
        low_freq_factor=numbers.get("low_freq_factor"),
        high_freq_factor=numbers.get("high_freq_factor"),
        beta_fast=numbers.get("beta_fast", 32.0) if kind == "yarn" else None,
        beta_slow=numbers.get("beta_slow", 1.0) if kind == "yarn" else None,
        attention_factor=_attention_factor(kind, numbers),
    )


def _section(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope section of either layout, without its nulls."""
    found = [data[key] for key in ("rope_parameters", "rope_scaling") if data.get(key)]
    for section in found:
        if not isinstance(section, Mapping):
            raise CheckpointError(
                f"config.json: the rope section must be an object, is {section!r}"
            )
    if len(found) == 2 and found[0] != found[1]:
        raise CheckpointError(
            "config.json has rope_parameters and another rope_scaling",
            "Remove the one that the weights were not trained with",
        )
    section = found[0] if found else {}
    return {key: value for key, value in section.items() if value is not None}


def _attention_factor(kind: str, numbers: Mapping[str, float]) -> float:
    """Resolve YaRN's attention scaling to one number.

    ``attention_factor`` replaces the mscale, as in transformers. DeepSeek-R1-0528-Qwen3-8B ships
    ``attn_factor`` 0.87825, which multiplies it: 0.87825 * (0.1 ln 4 + 1) = 1.0. transformers 5.23
    ignores that key and attends 1.1386 squared times too sharply. ``mscale`` over
    ``mscale_all_dim``, DeepSeek's own pair, scales the logarithm of each.
    """
    if kind != "yarn":
        return 1.0
    if "attention_factor" in numbers:
        return numbers["attention_factor"]
    factor = numbers.get("factor", 1.0)
    mscale = yarn_mscale(factor)
    if "mscale" in numbers and "mscale_all_dim" in numbers:
        mscale = yarn_mscale(factor, numbers["mscale"])
        mscale /= yarn_mscale(factor, numbers["mscale_all_dim"])
    return numbers.get("attn_factor", 1.0) * mscale


def _rope_type(name: Any) -> RopeType:
    for kind in _KEYS:
        if name == kind:
            return kind
    raise UnsupportedModelError(
        f"config.json has rope type {name!r}; modelled are {', '.join(_KEYS)}",
        "Use a checkpoint with one of these",
    )


def _check_keys(kind: RopeType, values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - _KEYS[kind])
    if unknown:
        raise UnsupportedModelError(
            f"config.json: rope type {kind} has {unknown[0]} = {values[unknown[0]]!r}, "
            "which edgekit does not model",
            "Use a checkpoint without it",
        )
    needed = _KEYS[kind] - _OPTIONAL - {"original_max_position_embeddings"}
    if kind == "llama3":
        needed |= {"original_max_position_embeddings"}
    missing = sorted(needed - set(values))
    if missing:
        raise CheckpointError(f"config.json: rope type {kind} lacks {missing[0]}")


def _number(key: str, value: Any) -> float:
    """Return a number of the rope section; beyond these bounds frequencies overflow or vanish."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not MIN_NUMBER <= value <= MAX_NUMBER:
        raise CheckpointError(
            f"config.json: rope's {key} must be a positive number from {MIN_NUMBER:g} to "
            f"{MAX_NUMBER:g}, is {value!r:.60}"
        )
    return float(value)
